"""LocalStore: a block store in a local directory.

The layout is the SDK's: each block is a file `DIR/<md5>`, so either reads blocks
that the other wrote. Unlike the SDK, it verifies a block when it is read, and stores
it under a unique temporary name, syncs it, then renames it, so that a crash leaves
the whole block or none. Any thread and any process may use it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from keepfs.keep.buffers import FreshAllocation
from keepfs.keep.counters import Counters
from keepfs.keep.errors import (
    Cause,
    KeepReadError,
    KeepRequestError,
    KeepWriteError,
    NotFoundError,
)
from keepfs.keep.hashing.growing import md5_of
from keepfs.keep.locator import EMPTY_BLOCK, MAX_BLOCK_SIZE, KeepLocator
from keepfs.keep.store import Found, Receipt
from keepfs.privacy import sync_directory

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator

    from typing_extensions import Buffer

    from keepfs.keep.buffers import Allocation
    from keepfs.keep.store import CallOptions, Wanted

_CAUSE_BY_ERRNO = {
    errno.ENOSPC: Cause.FULL,
    errno.EDQUOT: Cause.FULL,
    errno.EACCES: Cause.DENIED,
    errno.EPERM: Cause.DENIED,
}
# The names of temporary files. The SDK's end in `.tmp` too; none of them is a digest.
_TEMPORARY_PREFIX, _TEMPORARY_SUFFIX = "keepfs-", ".tmp"
#: The age at which a temporary file counts as a leftover: a day.
_LEFTOVER_AGE_NS = 24 * 3600 * 10**9


class LocalStore:
    """Blocks in a directory, each verified when it is read.

    Args:
        directory: The directory; created when the first block is stored.
        counters: Where calls of the `Store` interface are counted, under `name`.
    """

    def __init__(
        self, directory: str | os.PathLike[str], counters: Counters | None = None
    ) -> None:
        self.directory = Path(directory).absolute()
        self.name = f"local:{self.directory}"
        self._counters = counters or Counters()

    def get(
        self, locator: KeepLocator, allocate: Callable[[int], Allocation] = FreshAllocation
    ) -> bytes | memoryview:
        """Read a block and verify it.

        Args:
            locator: The block's locator.
            allocate: Allocates the memory that it is read into.

        Raises:
            NotFoundError: The store doesn't have it.
            KeepReadError: The file can't be read, or doesn't match its locator
                (cause CORRUPT); the message has the file's path.
        """
        path = self._path(locator)
        if locator.md5sum == EMPTY_BLOCK.md5sum and not locator.size:
            return b""
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                self._check_size(locator, path, size)
                memory = allocate(size)
                got = _fill_from_file(memory.view, file)
                # Detect a file that grows meanwhile.
                is_whole = got == size and not file.read(1)
                block = memory.first(got)
        except OSError as error:
            raise self._read_error(locator, path, error) from error
        digest = md5_of(block)
        if digest != locator.md5sum or not is_whole:
            raise KeepReadError(
                f"the block file {path} is corrupt: its MD5 is {digest};"
                " move it away, and store the block again",
                cause=Cause.CORRUPT,
            )
        return block

    def head(self, locator: KeepLocator) -> int:
        """Return the size of a stored block, in bytes, without reading it.

        Raises:
            NotFoundError: The store doesn't have it.
            KeepReadError: The file's size differs from the locator's (cause CORRUPT).
        """
        path = self._path(locator)
        if locator.md5sum == EMPTY_BLOCK.md5sum and not locator.size:
            return 0
        try:
            size = path.stat().st_size
        except OSError as error:
            raise self._read_error(locator, path, error) from error
        self._check_size(locator, path, size)
        return size

    def put(self, block: Buffer) -> Receipt:
        """Store a block; when this returns, it survives a power cut.

        Raises:
            KeepWriteError: The block exceeds 64 MiB, or the file couldn't be
                written (cause FULL, DENIED or OTHER); nothing is left behind.
        """
        view = memoryview(block).cast("B")
        if view.nbytes > MAX_BLOCK_SIZE:
            raise KeepWriteError(
                f"a block has at most {MAX_BLOCK_SIZE} bytes, this one has {view.nbytes}"
            )
        locator = KeepLocator.of_block(view)
        path = self._path(locator)
        try:
            if not self._renewed(path, view):
                self._write(path, view)
        except OSError as error:
            raise KeepWriteError(
                f"can't store {locator} in {self.directory}: {error.strerror or error}",
                cause=_CAUSE_BY_ERRNO.get(error.errno or 0),
            ) from error
        return Receipt(locator, copies=1, services=(self.name,))

    def read(self, locator: KeepLocator, call: CallOptions) -> bytes | memoryview:
        """Read a block and verify it; see `Store.read`."""
        with self._counted("GET"):
            block = self.get(locator, call.observer.allocate)
        self._counters.received.add(self.name, len(block))
        call.observer.received_from(self.name)
        return block

    def find(self, locator: KeepLocator, call: CallOptions) -> Found:  # noqa: ARG002 - not needed
        """Return a block's size; see `Store.find`."""
        with self._counted("HEAD"):
            return Found(self.head(locator))

    def write(
        self,
        block: Buffer,
        locator: KeepLocator,  # noqa: ARG002 - computed again as a check
        wanted: Wanted,  # noqa: ARG002 - one directory, one copy
        call: CallOptions,  # noqa: ARG002 - a disk needs no retries
    ) -> Receipt:
        """Store a block; see `Store.write`."""
        with self._counted("PUT"):
            receipt = self.put(block)
        self._counters.sent.add(self.name, receipt.locator.size or 0)
        return receipt

    @contextlib.contextmanager
    def _counted(self, method: str) -> Iterator[None]:
        """Count a call, its duration and its failure as those of a service."""
        self._counters.requests.add(self.name)
        begun = time.monotonic()
        try:
            yield
        except KeepRequestError as error:
            self._counters.failures.add(self.name, error.cause.name.lower(), str(error))
            if error.cause is Cause.CORRUPT:
                self._counters.bad_copies.add(self.name)
            raise
        self._counters.answers.add(self.name, method, time.monotonic() - begun)

    def close(self) -> None:
        """Do nothing: calls leave no files open."""

    def free_space(self) -> tuple[int, int]:
        """Return capacity and space free for this user of the file system, in bytes."""
        existing = self.directory
        while not existing.exists():
            existing = existing.parent
        there = os.statvfs(existing)
        return there.f_blocks * there.f_frsize, there.f_bavail * there.f_frsize

    def _path(self, locator: KeepLocator) -> Path:
        return self.directory / locator.md5sum

    @staticmethod
    def _check_size(locator: KeepLocator, path: Path, size: int) -> None:
        if size > MAX_BLOCK_SIZE:
            raise KeepReadError(
                f"the block file {path} has {size} bytes, more than a block has",
                cause=Cause.CORRUPT,
            )
        if locator.size is not None and size != locator.size:
            raise KeepReadError(
                f"the block file {path} has {size} bytes, its name {locator.stripped()} says"
                f" {locator.size}: the file is corrupt or the name wrong",
                cause=Cause.CORRUPT,
            )

    @staticmethod
    def _read_error(locator: KeepLocator, path: Path, error: OSError) -> KeepReadError:
        if isinstance(error, FileNotFoundError):
            return NotFoundError(f"{locator.stripped()} not found: there is no {path}")
        return KeepReadError(
            f"can't read {locator.stripped()}: {path}: {error.strerror or error}",
            cause=_CAUSE_BY_ERRNO.get(error.errno or 0),
        )

    @staticmethod
    def _renewed(path: Path, view: memoryview) -> bool:
        """If the block is stored and intact, make it durable, set its time and return True."""
        try:
            with path.open("rb") as file:
                if file.read(view.nbytes + 1) != view:
                    return False
                os.fsync(file.fileno())
                os.utime(file.fileno())
            # Another writer may have renamed the file without syncing the directory yet.
            sync_directory(path.parent)
        except OSError:
            return False  # missing, damaged, or another user's: write it again
        return True

    def _write(self, path: Path, view: memoryview) -> None:
        self._make_directory()
        descriptor, name = tempfile.mkstemp(_TEMPORARY_SUFFIX, _TEMPORARY_PREFIX, self.directory)
        try:
            with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            Path(name).rename(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        # Syncing the directory makes the rename durable.
        sync_directory(self.directory)

    def _make_directory(self) -> None:
        paths = (self.directory, *self.directory.parents)
        missing = list(itertools.takewhile(lambda path: not path.exists(), paths))
        if missing:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Syncing the parent makes a new directory durable.
        for made in missing:
            sync_directory(made.parent)


def remove_leftovers(directory: Path) -> int:
    """Remove the temporary files of killed writers; return how many were removed. Blocks.

    These are the temporary files not written to for a day: a block takes seconds.
    Files that can't be removed stay.
    """
    removed = 0
    youngest = time.time_ns() - _LEFTOVER_AGE_NS
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(_TEMPORARY_PREFIX) and entry.name.endswith(_TEMPORARY_SUFFIX):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime_ns < youngest:
                        Path(entry.path).unlink()
                        removed += 1
    return removed


def _fill_from_file(view: memoryview, file: io.FileIO) -> int:
    """Fill a view from a file; return the bytes read, fewer at the end of the file."""
    got = 0
    while got < view.nbytes:
        count = file.readinto(view[got:])
        if not count:
            break
        got += count
    return got
