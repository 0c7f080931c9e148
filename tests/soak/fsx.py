"""fsx, the file system exerciser, for a mount: one file, every read checked.

The operation mix of Apple's and BSD's fsx.c: reads, writes, truncations, reads
and writes through a mapping, and close followed by open, at random places; and
besides fsync, reads past the kernel's pages, and remounts. Most of the file's
life is short; now and then it is long enough for its end to lie just over the
border between two blocks.
"""

from __future__ import annotations

import collections
import mmap
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keepfs.keep.locator import MAX_BLOCK_SIZE
from tests.mounted.mounts import mounted
from tests.soak.arguments import numbers_and_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.mounted.mounts import KeepfsMount

#: Longest piece read or written at once, in bytes.
_MOST_BYTES = 64 * 1024
#: Largest file, while it is short.
_SHORT = 256 * 1024
#: Reach on either side of the border between two blocks, while it is long.
_REACH = 128 * 1024
#: How often a file is long: once in so many mounts.
_LONG_ONCE_IN = 20
# How often each operation is done, out of their sum. Those by which a long file
# is stored are done a tenth as often: each time is 64 MiB. A mapping is one of
# them, since it has a descriptor of its own, which is closed with it.
_WEIGHTS = {
    "read": 25,
    "read_past_the_pages": 8,
    "write": 25,
    "truncate": 10,
    "read_mapping": 12,
    "write_mapping": 12,
    "reopen": 5,
    "sync": 3,
}
_STORING = ("read_mapping", "write_mapping", "reopen", "sync")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done.

    Attributes:
        operations: By name.
        remounts: Of the mount.
        long_mounts: Of these, with a file over 64 MiB.
    """

    operations: collections.Counter[str]
    remounts: int
    long_mounts: int


class Exerciser:
    """A file of a mount, and what it must hold.

    Args:
        path: The file.
        draw: Where chances come from.
    """

    def __init__(self, path: Path, draw: random.Random) -> None:
        self._path = path
        self._draw = draw
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._expected = bytearray()
        self._is_long = False

    def turn(self, *, is_long: bool) -> None:
        """Let the file be short, or reach over the border between two blocks, from now on."""
        self._is_long = is_long
        self._truncate_to(MAX_BLOCK_SIZE if is_long else 0)

    def step(self) -> str:
        """Do something, and return what."""
        weights = [
            weight * (1 if self._is_long and name in _STORING else 10)
            for name, weight in _WEIGHTS.items()
        ]
        (name,) = self._draw.choices(list(_WEIGHTS), weights)
        work: Callable[[], None] = getattr(self, name)
        work()
        self._check(os.fstat(self._file).st_size, len(self._expected), "size")
        return name

    def read(self) -> None:
        """Read somewhere."""
        offset, size = self._place()
        found = os.pread(self._file, size, offset)
        self._check_bytes(found, offset, size, "read")

    def read_past_the_pages(self) -> None:
        """Read somewhere what the kernel has forgotten."""
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)
        self.read()

    def write(self) -> None:
        """Write somewhere, perhaps beyond the end."""
        offset, size = self._place()
        content = self._draw.randbytes(size)
        self._check(os.pwrite(self._file, content, offset), size, "bytes taken by write")
        self._expect(offset, content)

    def truncate(self) -> None:
        """Make the file shorter or longer."""
        self._truncate_to(self._offset())

    def read_mapping(self) -> None:
        """Read somewhere through a mapping."""
        if self._expected:
            offset, size = self._place_within()
            with mmap.mmap(self._file, len(self._expected), access=mmap.ACCESS_READ) as mapped:
                self._check_bytes(mapped[offset : offset + size], offset, size, "mapping")

    def write_mapping(self) -> None:
        """Write somewhere through a mapping, and flush it or not."""
        if self._expected:
            offset, size = self._place_within()
            content = self._draw.randbytes(size)
            with mmap.mmap(self._file, len(self._expected)) as mapped:
                mapped[offset : offset + size] = content
                if self._draw.random() < 0.5:
                    mapped.flush()
            self._expect(offset, content)

    def reopen(self) -> None:
        """Close the file, and open it again."""
        self.close()
        self.open()

    def sync(self) -> None:
        """Have the file stored."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def open(self) -> None:
        """Open the file again."""
        self._file = os.open(self._path, os.O_RDWR)

    def check_all(self) -> None:
        """Read everything."""
        found = os.pread(self._file, len(self._expected) + 1, 0)
        self._check_bytes(found, 0, len(self._expected) + 1, "all")

    def _truncate_to(self, size: int) -> None:
        os.ftruncate(self._file, size)
        del self._expected[size:]
        self._expected.extend(bytes(size - len(self._expected)))

    def _offset(self) -> int:
        if self._is_long:
            return MAX_BLOCK_SIZE + self._draw.randint(-_REACH, _REACH)
        return self._draw.randint(0, _SHORT)

    def _place(self) -> tuple[int, int]:
        return self._offset(), self._draw.randint(1, _MOST_BYTES)

    def _place_within(self) -> tuple[int, int]:
        offset = min(self._offset(), len(self._expected) - 1)
        return offset, min(self._draw.randint(1, _MOST_BYTES), len(self._expected) - offset)

    def _expect(self, offset: int, content: bytes) -> None:
        missing = offset - len(self._expected)
        if missing > 0:
            self._expected.extend(bytes(missing))
        self._expected[offset : offset + len(content)] = content

    def _check_bytes(self, found: bytes, offset: int, size: int, what: str) -> None:
        expected = self._expected[offset : offset + size]
        if found != expected:
            self._check(len(found), len(expected), f"{what}: bytes from {offset} on")
            differences = [
                i for i, pair in enumerate(zip(found, expected, strict=True)) if len(set(pair)) > 1
            ]
            raise AssertionError(
                f"{what}: {len(differences)} of {len(found)} bytes from {offset} on differ, the"
                f" first at {offset + differences[0]}, the last at {offset + differences[-1]}"
            )

    def _check(self, found: int, expected: int, what: str) -> None:
        if found != expected:
            raise AssertionError(f"{what}: {found}, not {expected}")


def soak(
    mount: KeepfsMount,
    operations: int,
    per_mount: int,
    seed: int,
    *,
    long_once_in: int = _LONG_ONCE_IN,
) -> Outcome:
    """Exercise a file, with a remount after each `per_mount` operations.

    Raises:
        AssertionError: A read found something else than was written; says
            after how many operations.
    """
    draw = random.Random(seed)  # noqa: S311 - chances, not secrets
    exerciser = Exerciser(mount.upload / "fsx", draw)
    done = collections.Counter[str]()
    remounts = long_mounts = 0
    while done.total() < operations:
        is_long = remounts % long_once_in == long_once_in - 1
        long_mounts += is_long
        try:
            exerciser.turn(is_long=is_long)
            for _ in range(min(per_mount, operations - done.total())):
                done[exerciser.step()] += 1
            exerciser.close()
            _remount(mount)
            exerciser.open()
            exerciser.check_all()
        except (AssertionError, OSError) as error:
            error.add_note(f"seed {seed}, after {done.total()} operations, {remounts} remounts")
            raise
        remounts += 1
    exerciser.close()
    return Outcome(done, remounts, long_mounts)


def _remount(mount: KeepfsMount) -> None:
    """Remount, and meanwhile remove the blocks of older versions: each may be 64 MiB."""
    locators = mount.locator(mount.upload / "fsx").split(",")
    done = mount.unmount()
    assert (done.returncode, done.stderr) == (0, b"")
    current = {locator.partition("+")[0] for locator in locators}
    for block in mount.store.iterdir():
        if block.name not in current:
            block.unlink()
    mount.mount()


def main() -> int:
    """Run as a script."""
    operations, seed = numbers_and_seed(100_000)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as base, mounted(Path(base)) as mount:
        outcome = soak(mount, operations, 1000, seed)
    click.echo(
        f"{outcome.operations.total()} operations, {outcome.remounts} remounts, of which"
        f" {outcome.long_mounts} with a file over 64 MiB: no difference;"
        f" {time.monotonic() - begin:.0f} s"
    )
    for name, times in outcome.operations.most_common():
        click.echo(f"    {times:7} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
