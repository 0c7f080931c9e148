"""Hashes random byte strings that grow, several at once in several threads, and compares.

    python -m tests.soak.hashing [--extension FILE] [SECONDS [SEED]]

FILE is another build of the extension, for example one with sanitizers (scripts/soak-hashing).
Exits with 1 if a digest is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.machinery
import importlib.util
import random
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.hashing.growing import GrowingDigest

_NAME = "keepfs.keep.hashing._md5"
#: Sizes near which MD5 changes its course: a block of 64 bytes, of which padding takes 9.
_EDGES = (0, 55, 56, 63, 64, 65, 119, 120, 127, 128, 129, 16384, 65536, 131072)
_MOST = 400_000
_THREADS, _MOST_AT_ONCE = 4, 6


def load(path: str) -> None:
    """Make a file the extension that keepfs imports."""
    loader = importlib.machinery.ExtensionFileLoader(_NAME, path)
    spec = importlib.util.spec_from_file_location(_NAME, path, loader=loader)
    if spec is None:
        raise AssertionError
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[_NAME] = module


class Growing:
    """One digest, and the bytes it should be of."""

    def __init__(self, digest: GrowingDigest, chance: random.Random) -> None:
        self._digest = digest
        self._chance = chance
        near = chance.choice(_EDGES) + chance.randrange(-2, 3)
        self._size = max(0, near) if chance.random() < 0.5 else chance.randrange(_MOST)
        self._content = chance.randbytes(self._size)
        self._memory = bytearray(self._content)
        self._left: list[bytearray] = []
        self._got = 0
        self.is_over = False

    def step(self) -> bool:
        """Do the next thing; return whether the digest, if it was asked for, is right."""
        chance = self._chance
        longest = chance.choice((1, 100, 70_000, _MOST))
        self._got = min(self._size, self._got + chance.randrange(longest + 1))
        for _ in range(chance.choice((1, 1, 1, 1, 2, 4))):  # it moves, and at once again
            if chance.random() < 0.3:
                if chance.random() < 0.5:  # the other is freed as soon as nothing keeps it
                    self._left.append(self._memory)
                self._memory = bytearray(self._content)
            self._digest.extend(memoryview(self._memory)[: self._got])
        if chance.random() < 0.1:  # given up while it is hashed, as a transfer that failed
            time.sleep(chance.choice((0.0, 1e-5, 1e-4)))
            self._end()
            return True
        if chance.random() < 0.05 or self._got == self._size:
            padded = self._got + chance.choice((0, 0, 1, 8, 63, 64, 65, 5000))
            expected = self._content[: self._got] + bytes(padded - self._got)
            found = self._digest.hexdigest(padded)
            if self._got == self._size:
                self._end()
            return found == hashlib.md5(expected, usedforsecurity=False).hexdigest()
        return True

    def _end(self) -> None:
        if self._chance.random() < 0.7:
            self._digest.close()
            # Nothing may look at them any more, and nothing may keep them.
            for memory in (self._memory, *self._left):
                memory[:] = bytes(len(memory))
                memory.clear()
        self.is_over = True


def run(new: Callable[[], GrowingDigest], seconds: float, seed: int) -> int:
    """Hash in several threads for so long; return the number of steps.

    Raises:
        AssertionError: A digest was wrong, or a step failed.
    """
    steps, failures = [0] * _THREADS, list[BaseException]()
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        chance = random.Random(f"{seed}.{number}")  # noqa: S311 - a test, not a secret
        alive: list[Growing] = []
        over: list[Growing] = []
        try:
            while time.monotonic() < end and not failures:
                if len(alive) < chance.randrange(1, _MOST_AT_ONCE + 1):
                    alive.append(Growing(new(), chance))
                one = chance.choice(alive)
                if not one.step():
                    raise AssertionError("a digest is wrong")  # noqa: TRY301 - caught for the caller
                if one.is_over:
                    alive.remove(one)
                    over = [*over[-5:], one]  # not the end of the object, just of its use
                steps[number] += 1
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise AssertionError(f"seed {seed}") from failures[0]
    return sum(steps)


def main() -> None:
    """Run as the module's text says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--extension")
    parser.add_argument("seconds", nargs="?", type=float, default=60.0)
    parser.add_argument("seed", nargs="?", type=int, default=random.SystemRandom().getrandbits(32))
    chosen = parser.parse_args()
    if chosen.extension:
        load(chosen.extension)
    from keepfs.keep.hashing.growing import shared_digest  # noqa: PLC0415 - after `load`

    if shared_digest is None:
        sys.exit("there is no extension: run scripts/setup where a C compiler is")
    steps = run(shared_digest, chosen.seconds, chosen.seed)
    print(f"seed {chosen.seed}: {steps} steps, every digest right")


if __name__ == "__main__":
    main()
