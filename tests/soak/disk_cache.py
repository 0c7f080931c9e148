"""Processes that share a disk cache are killed and its files damaged; every byte is checked."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from keepfs.keep.caching.disk.disk_cache import DiskCache

#: Blocks of a run, and the part of them that fits the budget.
_BLOCKS, _PART = 60, 0.5
_SIZE = 300_000
_WORKERS = 3


@dataclass
class Outcome:
    """What a soak did.

    Attributes:
        kills: Processes killed.
        damaged: Files damaged by the soak.
        reads: Blocks read afterwards and compared.
        thrown_out: Files found damaged by those reads.
    """

    kills: int = 0
    damaged: int = 0
    reads: int = 0
    thrown_out: int = 0


def block_of(number: int) -> tuple[str, bytes]:
    """Make a block by its number."""
    block = random.Random(number).randbytes(_SIZE + number)  # noqa: S311 - test data
    return hashlib.md5(block, usedforsecurity=False).hexdigest(), block


def cache_in(directory: Path) -> DiskCache:
    """Open the cache that all share, with room for half of the blocks."""
    return DiskCache(directory, int(_PART * _BLOCKS * _SIZE), least_free=0)


def work(directory: Path, seed: int) -> None:
    """Read and add blocks until killed; exit with 3 if a byte is wrong."""
    cache, odds = cache_in(directory), random.Random(seed)  # noqa: S311 - test data
    while True:
        md5sum, block = block_of(odds.randrange(_BLOCKS))
        begin = odds.randrange(len(block) - 5000)
        found = cache.read(md5sum)
        part = cache.read_part(md5sum, begin, begin + 5000, len(block))
        if (found is not None and found != block) or (
            part is not None and part != memoryview(block)[begin : begin + 5000]
        ):
            sys.exit(3)
        if found is None:
            cache.add(md5sum, block, timeout=5)


def soak(directory: Path, *, kills: int, damages: int, seed: int) -> Outcome:
    """Kill workers and damage files, then read everything.

    Raises:
        AssertionError: A byte was wrong, or a worker ended by itself.
    """
    odds, outcome = random.Random(seed), Outcome()  # noqa: S311 - test data
    start = [sys.executable, "-m", "tests.soak.disk_cache", "--work", str(directory)]
    workers = [subprocess.Popen([*start, str(seed + n)]) for n in range(_WORKERS)]
    try:
        while outcome.kills < kills or outcome.damaged < damages:
            time.sleep(odds.uniform(0.1, 0.5))
            for _ in range(-(-damages // max(1, kills))):
                outcome.damaged += _damage(directory, odds)
            at = odds.randrange(_WORKERS)
            if workers[at].poll() is not None:
                raise AssertionError(f"a worker ended with {workers[at].returncode}")
            workers[at].send_signal(signal.SIGKILL)
            workers[at].wait()
            outcome.kills += 1
            workers[at] = subprocess.Popen([*start, str(seed + _WORKERS + outcome.kills)])
        _await_a_block(directory)
    finally:
        for each in workers:
            each.kill()
            each.wait()
    cache = cache_in(directory)
    for number in range(_BLOCKS):
        md5sum, block = block_of(number)
        found = cache.read(md5sum)
        if found is not None and found != block:
            raise AssertionError(f"block {number} is wrong")
        outcome.reads += found is not None
    outcome.thrown_out = cache.statistics().damaged
    cache.close()
    return outcome


def _await_a_block(directory: Path) -> None:
    """Wait until the workers have written a block that nothing damages any more."""
    cache, end = cache_in(directory), time.monotonic() + 60
    while time.monotonic() < end:
        if any(cache.read(block_of(number)[0]) is not None for number in range(_BLOCKS)):
            break
        time.sleep(0.1)
    cache.close()


def _damage(directory: Path, odds: random.Random) -> bool:
    """Flip a bit of a file, cut it, or put another one in its place."""
    files = [it for it in directory.rglob("?" * 32) if it.parent.name != "tmp"]
    if not files:
        return False
    path, kind = odds.choice(files), odds.randrange(3)
    try:
        size = path.stat().st_size
        if kind == 0:
            with path.open("r+b") as file:
                at = odds.randrange(max(1, size))
                file.seek(at)
                byte = file.read(1) or b"\0"
                file.seek(at)
                file.write(bytes([byte[0] ^ 1 << odds.randrange(8)]))
        elif kind == 1:
            os.truncate(path, odds.randrange(max(1, size)))
        else:
            path.write_bytes(odds.randbytes(1000))
    except OSError:
        return False  # evicted meanwhile
    return True


def main() -> None:
    """Run a soak: KILLS and SEED as arguments."""
    logging.disable()  # a line for each damaged file
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), int(sys.argv[3]))
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as directory:
        print(soak(Path(directory), kills=kills, damages=max(1000, kills), seed=seed))


if __name__ == "__main__":
    main()
