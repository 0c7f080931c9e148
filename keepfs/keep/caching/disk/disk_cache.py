"""DiskCache: the disk tier of the block cache, within a budget, written by a separate thread.

Opening it lists nothing: blocks are found by their names. The thread that writes blocks
lists the directory (of a large one, random folders) before it writes the first one, and
again when the budget may be exceeded; blocks of other processes count too. A disk that
can't be used turns the tier off for a minute, with one log line; reads go on without it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import threading
import time
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from keepfs.keep.buffers import FreshAllocation
from keepfs.keep.caching.disk.block_file import file_size
from keepfs.keep.caching.disk.block_folder import BlockFolder
from keepfs.keep.caching.disk.block_queue import BlockQueue
from keepfs.keep.caching.disk.fetch_locks import FetchClaim
from keepfs.keep.caching.disk.room import Room
from keepfs.keep.forks import renew_in_children
from keepfs.keep.threads import NoThreadError
from keepfs.messages import of_commands, of_stores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keepfs.keep.buffers import Allocation

_log = logging.getLogger(__name__)

#: Most blocks that wait to be written: they take memory beyond the cache's budget.
_MOST_WAITING = 2
#: Errors of a disk that takes no more.
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
#: Seconds for which the tier is off after an error of the disk.
_OFF = 60.0
#: Most seconds to wait for another process's fetch, which may hang. Guessed: 64 MiB in that
#: time are 13 MB/s; a slower fetch is duplicated.
_PATIENCE = 5.0
#: Seconds that `close` waits for the thread that writes.
_CLOSING = 10.0


@dataclass(slots=True)
class DiskStatistics:
    """Counters of this process's use of the disk tier.

    Attributes:
        maxsize: The budget of all processes together, in bytes. An automatic one is determined
            again before each write; before the first listing it is a lower bound.
        currsize: Bytes of the files, as last listed, plus those added since; 0 before.
        blocks: The number of these files.
        hits: Blocks and parts read from the disk.
        hit_bytes: Their bytes.
        misses: Blocks that were not on the disk, so that they were fetched.
        joined: Blocks that another process fetched while this one waited for it.
        added: Blocks written.
        added_bytes: Bytes of their files.
        skipped: Blocks not written: the disk was slower than the services, full, or failed.
        evictions: Blocks evicted.
        damaged: Damaged files found; they are removed if that is possible.
        problem: Why the tier was last turned off; empty once a block was written again.
    """

    maxsize: int
    currsize: int = 0
    blocks: int = 0
    hits: int = 0
    hit_bytes: int = 0
    misses: int = 0
    joined: int = 0
    added: int = 0
    added_bytes: int = 0
    skipped: int = 0
    evictions: int = 0
    damaged: int = 0
    problem: str = ""


def default_directory() -> Path:
    """Return the user's cache directory for keepfs.

    Raises:
        RuntimeError: The user has no home directory.
    """
    import platformdirs  # noqa: PLC0415 - takes 25 ms, and is needed only here

    return Path(platformdirs.user_cache_dir("keepfs"))


class DiskCache:
    """Verified blocks on the disk, shared by the processes of a user. Any thread may use it.

    Args:
        directory: The parent of its folder; made if it doesn't exist.
        budget: Most bytes of all files; None: `automatic_budget`, again before each write.
        least_free: Bytes of the disk that stay free; None: a tenth, at least 5 GiB.
        patience: Seconds that a fetch waits for a place in the queue; then its block is skipped.
    """

    def __init__(
        self,
        directory: Path,
        budget: int | None = None,
        *,
        least_free: int | None = None,
        patience: float = 0.0,
    ) -> None:
        self.directory = directory
        self._budget, self._least_free, self._patience = budget, least_free, patience
        self._lock = threading.Lock()  # the event loop takes it
        self._folder: BlockFolder | None = None
        self._off_until = 0.0
        self._queue = BlockQueue(_MOST_WAITING)
        self._room: Room | None = None
        self._statistics = DiskStatistics(budget or 0)
        # The folder must not keep the cache alive.
        damaged = weakref.WeakMethod(self._damaged)
        self._note_damage = lambda *arguments: (note := damaged()) and note(*arguments)
        try:
            self.directory = directory.absolute()  # a later os.chdir must not move the cache
            self._room = Room(self.directory, budget, least_free)
            self._folder = BlockFolder(self.directory, self._note_damage)
        except OSError as error:
            self._turn_off(error)
        renew_in_children(self)

    def has(self, md5sum: str) -> bool:
        """Return whether there is a file of a block; it may be damaged. Blocks."""
        folder = self.folder()
        return folder is not None and folder.has(md5sum)

    def read(
        self, md5sum: str, allocate: Callable[[int], Allocation] = FreshAllocation
    ) -> bytes | memoryview | None:
        """Return a block, every byte verified; None if it isn't there. Blocks.

        Raises:
            Exception: `allocate` failed.
        """
        folder = self.folder()
        block = None if folder is None else folder.read(md5sum, allocate)
        if block is not None:
            self._note_read(block)
        return block

    def read_part(self, md5sum: str, begin: int, end: int, size: int) -> memoryview | None:
        """Return verified bytes of a block of `size` bytes; None if it isn't there. Blocks."""
        folder = self.folder()
        part = None if folder is None else folder.read_part(md5sum, begin, end, size)
        if part is not None:
            self._note_read(part)
        return part

    def read_part_nowait(self, md5sum: str, begin: int, end: int, size: int) -> memoryview | None:
        """Return what `read_part` would, if its pages are in the page cache; else None."""
        folder = self.folder()
        part = None if folder is None else folder.read_part_nowait(md5sum, begin, end, size)
        if part is not None:
            self._note_read(part)
        return part

    def close_idle(self) -> None:
        """Close the files that are open between reads of parts."""
        folder = self.folder()
        if folder is not None:
            folder.close_idle()

    @contextlib.contextmanager
    def claimed(self, md5sum: str, timeout: float) -> Iterator[FetchClaim]:
        """Claim a block that is to be fetched, or wait while another process fetches it. Blocks.

        Args:
            md5sum: The block's digest.
            timeout: Seconds to wait; 5 s at most.
        """
        with self._lock:
            self._count(misses=1)
        folder = self.folder()
        claim = FetchClaim(None if folder is None else folder.locks, md5sum)
        try:
            claim.wait(lambda: self.has(md5sum), max(0.0, min(timeout, _PATIENCE)))
            yield claim
        finally:
            if not claim.is_passed_on:
                claim.release()

    def accepts(self, md5sum: str, record: bytes | None) -> bool:
        """Return whether the services accepted a name before, in any process. Blocks."""
        folder = self.folder()
        if record is None or folder is None:
            return False
        with folder.watch.reading():
            return folder.names.has(md5sum, record)

    def note_accepted(self, md5sum: str, record: bytes | None) -> None:
        """Record soon that the services accepted a name (`accepted_names`); don't wait for it."""
        folder = self.folder()
        if record is not None and folder is not None:
            self._write_soon(functools.partial(folder.names.add, md5sum, record))

    def note_refused(self, md5sum: str, record: bytes | None) -> None:
        """Record soon that the services refused a name; don't wait for it."""
        folder = self.folder()
        if record is not None and folder is not None:
            self._write_soon(functools.partial(folder.names.remove, md5sum, record))

    def _write_soon(self, write: Callable[[], None]) -> None:
        with contextlib.suppress(NoThreadError):  # then the name is asked for again
            self._queue.put_small(write)

    def note_joined(self) -> None:
        """Count a block that another process fetched while this one waited."""
        with self._lock:
            self._count(joined=1)

    def add(
        self,
        md5sum: str,
        block: bytes | memoryview,
        timeout: float | None = None,
        claim: FetchClaim | None = None,
        record: bytes | None = None,
    ) -> None:
        """Queue a verified block for the thread that writes; it stays in memory until then.

        Args:
            md5sum: The block's digest.
            block: Its bytes; they must not change.
            timeout: Seconds to wait for a place in the queue, then the block is skipped; None:
                the `patience` of this cache. `end_waits` and `close` end the wait.
            claim: Held until the block is written or skipped.
            record: The record of the name that the services accepted, if it has one.
        """
        claim = claim or FetchClaim(None, md5sum)
        claim.is_passed_on, is_queued = True, False
        try:
            wait = self._patience if timeout is None else timeout
            is_queued = self._queue.put(lambda: self._write(md5sum, block, record, claim), wait)
        except NoThreadError:
            pass
        finally:
            claim.is_passed_on = is_queued
        if not is_queued:
            with self._lock:
                self._count(skipped=1)

    def end_waits(self) -> None:
        """Wake the fetches that wait for a place in the queue, and let none wait any more."""
        self._queue.end_waits()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the blocks added so far are written or skipped, `timeout` s at most."""
        self._queue.flush(timeout)

    def close(self) -> None:
        """Write the blocks that were added, and close the directory. Blocks for up to 10 s.

        For up to 20 s if the thread that writes is being started, without memory.
        """
        if self._queue.close(_CLOSING) and self._folder is not None:
            self._folder.close()  # no thread uses the descriptor

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._queue.is_closed

    def renew_after_fork(self) -> None:
        """Replace the lock in a forked child; see `forks`."""
        self._lock = threading.Lock()

    def statistics(self) -> DiskStatistics:
        """Return a copy of the counters. Doesn't block."""
        room = self._room
        with self._lock:
            found = replace(self._statistics)
        if room is None:
            return found
        return replace(
            found,
            maxsize=room.maxsize,
            currsize=room.currsize,
            blocks=room.blocks,
            evictions=room.evictions,
        )

    def _count(self, **more: int) -> None:
        now = self._statistics
        for name, number in more.items():
            setattr(now, name, getattr(now, name) + number)

    def _note_read(self, content: bytes | memoryview) -> None:
        with self._lock:
            self._statistics.hits += 1
            self._statistics.hit_bytes += len(content)

    def _damaged(self, md5sum: str, reason: str) -> None:
        _log.warning("%s", of_stores.DISK_CACHE_DAMAGED(md5sum=md5sum, reason=reason))
        with self._lock:
            self._count(damaged=1)

    def folder(self) -> BlockFolder | None:
        """Return the directory; None while it can't be used or hangs. Reads aren't counted."""
        with self._lock:
            folder = None if self._off_until > time.monotonic() else self._folder
        return None if folder is None or folder.watch.hangs() else folder

    def _turn_off(self, error: OSError) -> None:
        with self._lock:
            first = not self._statistics.problem
            self._off_until = time.monotonic() + _OFF
            reason = error.strerror or str(error)
            self._statistics.problem = reason
        if first:
            _log.warning(
                "%s", of_stores.DISK_CACHE_FAILED(directory=self.directory, reason=reason)
            )

    def _write(
        self, md5sum: str, block: bytes | memoryview, record: bytes | None, claim: FetchClaim
    ) -> None:
        try:
            try:
                self._write_one(md5sum, block)
                folder = self.folder()
                if record is not None and folder is not None:
                    folder.names.add(md5sum, record)
            finally:
                claim.release()
        except OSError as error:
            with self._lock:
                self._count(skipped=1)
            self._turn_off(error)
        except Exception:  # noqa: BLE001 - the thread serves all blocks
            said = of_commands.UNEXPECTED(what="writing a block to the disk cache")
            _log.exception("%s", said)

    def _write_one(self, md5sum: str, block: bytes | memoryview) -> None:
        if self._off_until > time.monotonic():
            with self._lock:
                self._count(skipped=1)
            return
        folder, room = self._reopened()
        if folder.has(md5sum):
            return
        if not room.make(folder, file_size(len(block))):
            with self._lock:
                self._count(skipped=1)
            return
        try:
            length = folder.add(md5sum, block)
        except OSError as error:
            # A quota, or a disk without inodes, is not seen before.
            was_limited = room.is_limited
            if error.errno not in _FULL or not room.shrink(folder):
                raise
            if not was_limited:
                said = of_stores.DISK_CACHE_SHRUNK(directory=self.directory, reason=error.strerror)
                _log.warning("%s", said)
            length = folder.add(md5sum, block)
        room.note_added(length)
        with self._lock:
            self._count(added=1, added_bytes=length)
            self._statistics.problem = ""

    def _reopened(self) -> tuple[BlockFolder, Room]:
        """Return the directory, made again if it was removed, and its room.

        Raises:
            OSError: It can't be made, or a symbolic link or another user's is in its place.
        """
        room = self._room
        if room is None:
            room = self._room = Room(self.directory, self._budget, self._least_free)
        if self._folder is None or not self._folder.is_in_place():
            new = BlockFolder(self.directory, self._note_damage)
            with self._lock:
                former, self._folder = self._folder, new
            room.forget()
            if former is not None:
                former.close()  # its readers get an error, and ask the services
        return self._folder, room
