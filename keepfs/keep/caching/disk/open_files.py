"""OpenFiles: keeps the files of blocks open for some seconds between reads of parts.

Opening a file and verifying its table takes longer than reading a part. An open file occupies
the disk after another process has evicted it. So it is opened again after some seconds, or closed
when another is opened; all are closed when nothing is read. A table has the checksums of a block:
every read compares the content of the file with them.
"""

from __future__ import annotations

import os
import resource
import threading
import time
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, ClassVar

from cachetools import LRUCache

from keepfs.keep.caching.disk.read_ahead import ReadAhead
from keepfs.keep.forks import renew_in_children

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.caching.disk.block_file import PieceTable

#: Most open files of the process, the part of its descriptors that they may take, and the
#: descriptors of one: another when it is read in sequence. The first two are guessed.
_MOST_OPEN, _SHARE, _EACH = 512, 4, 2
#: Seconds after which a file is opened again. Guessed.
_SECONDS = 10.0
#: Most bytes of tables in memory: those of 64 GiB, 32 KiB for 64 MiB, as a random read without
#: one reads three times as much; and bytes of a table beside its checksums, of which the objects
#: take about 800.
_TABLES, _TABLE = 33 * 1024 * 1024, 1024


class OpenBlock:
    """A block's open file; it is closed when the last reference to this object is gone.

    Args:
        file: The file's descriptor.
        table: The verified checksums of the block.
        until: The time from which the file is opened again, on the clock of `OpenFiles`.
    """

    def __init__(self, file: int, table: PieceTable, until: float) -> None:
        self.file = file
        self.table = table
        self.until = until
        self._ahead = ReadAhead(file)

    def has_part(self, begin: int, end: int, size: int) -> bool:
        """Return whether the block has `size` bytes, and bytes `begin` to `end` are among them."""
        return self.table.size == size and 0 <= begin <= end <= size

    def read_on(self, begin: int) -> None:
        """Read the block into the page cache from `begin` on; see `ReadAhead`. Blocks.

        Raises:
            OSError: The file can't be read.
        """
        self._ahead.read_on(begin, self.table.size)

    def __del__(self) -> None:
        self._ahead.close()
        os.close(self.file)


class OpenFiles:
    """The open files and tables of the blocks read last. Any thread may use it.

    The bound of the files is that of all instances in the process together.

    Args:
        clock: Replaces `time.monotonic`, in seconds.
    """

    #: The instances, and their lock.
    _all: ClassVar = weakref.WeakSet["OpenFiles"]()
    _lock: ClassVar = threading.Lock()

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._most = _most_open()
        self._begin()
        with self._lock:
            self._all.add(self)
        renew_in_children(self)

    def _begin(self) -> None:
        self._files = OrderedDict[str, OpenBlock]()  # the most recently read is the last
        self._tables = LRUCache[str, "PieceTable"](
            _TABLES, getsizeof=lambda it: it.sums.nbytes + _TABLE
        )

    def get(self, md5sum: str) -> OpenBlock | None:
        """Return a block's open file; None if it isn't open, or was opened over 10 s ago."""
        with self._lock:
            found = self._files.get(md5sum)
            if found is not None:
                self._files.move_to_end(md5sum)
        # `add` replaces one that is too old: closing an evicted file frees its blocks, and waits.
        return None if found is None or found.until < self._clock() else found

    def table(self, md5sum: str) -> PieceTable | None:
        """Return a block's table; None if it isn't in memory."""
        with self._lock:
            return self._tables.get(md5sum)

    def add(self, md5sum: str, file: int, table: PieceTable) -> OpenBlock | None:
        """Keep a duplicate of a descriptor and a verified table; None if that fails."""
        now = self._clock()
        try:
            opened = OpenBlock(os.dup(file), table, now + _SECONDS)
        except OSError:
            return None
        dropped: list[object] = []  # closed without the lock
        with self._lock:
            dropped.append(self._files.pop(md5sum, None))
            # Another process may have evicted those that weren't read since they were too old.
            while self._files and next(iter(self._files.values())).until < now:
                dropped.append(self._files.popitem(last=False))
            dropped += self._excess()
            self._files[md5sum] = opened
            self._tables[md5sum] = table
        return opened

    def discard(self, md5sum: str) -> None:
        """Drop the table of a block, and close its file after the reads in progress."""
        with self._lock:
            dropped = self._files.pop(md5sum, None)
            self._tables.pop(md5sum, None)
        del dropped  # closed without the lock

    def close_all(self) -> None:
        """Close all files, each after its reads in progress. The tables are kept."""
        with self._lock:
            dropped = list(self._files.values())
            self._files.clear()
        del dropped  # closed without the lock

    def renew_after_fork(self) -> None:
        """Close the files in a forked child: threads of the parent may be reading them."""
        OpenFiles._lock = threading.Lock()
        self._begin()

    def _excess(self) -> list[OpenBlock]:
        """Remove and return files of the process, so that there is room for one more."""
        every = [each._files for each in self._all]  # noqa: SLF001 - of the same class
        holders = [each for each in every if each]
        excess = sum(len(files) for files in holders) + 1 - self._most
        removed = []
        for _ in range(excess):
            oldest = min(holders, key=lambda files: next(iter(files.values())).until)
            removed.append(oldest.popitem(last=False)[1])
            if not oldest:
                holders.remove(oldest)
        return removed


def _most_open() -> int:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return _MOST_OPEN
    return max(1, min(_MOST_OPEN, descriptors // (_SHARE * _EACH)))
