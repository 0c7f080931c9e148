"""OpenFiles: keeps the files of blocks open for some seconds between reads of parts.

Opening a file and verifying its table takes longer than reading a part. An open file occupies
the disk after another process has evicted it, so each is closed after some seconds. A table has
the checksums of a block: every read compares the content of the file with them.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.caching.disk.block_file import PieceTable

#: Most open files, and the seconds after which one is opened again. Guessed.
_MOST_OPEN, _SECONDS = 128, 10.0
#: Tables of blocks in memory: those of 16 GiB, 32 KiB each.
_MOST_TABLES = 256


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

    def __del__(self) -> None:
        os.close(self.file)


class OpenFiles:
    """The open files and tables of the blocks read last. Any thread may use it.

    Args:
        clock: Replaces `time.monotonic`, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._files = LRUCache[str, OpenBlock](_MOST_OPEN)
        self._tables = LRUCache[str, "PieceTable"](_MOST_TABLES)

    def get(self, md5sum: str) -> OpenBlock | None:
        """Return a block's open file; None if it isn't open, or was opened over 10 s ago."""
        with self._lock:
            found = self._files.get(md5sum)
            if found is not None and found.until < self._clock():
                del self._files[md5sum]
                return None
            return found

    def table(self, md5sum: str) -> PieceTable | None:
        """Return a block's table; None if it isn't in memory."""
        with self._lock:
            return self._tables.get(md5sum)

    def add(self, md5sum: str, file: int, table: PieceTable) -> OpenBlock | None:
        """Keep a duplicate of a descriptor and a verified table; None if that fails."""
        try:
            opened = OpenBlock(os.dup(file), table, self._clock() + _SECONDS)
        except OSError:
            return None
        with self._lock:
            self._files[md5sum] = opened
            self._tables[md5sum] = table
        return opened

    def discard(self, md5sum: str) -> None:
        """Drop the table of a block, and close its file after the reads in progress."""
        with self._lock:
            self._files.pop(md5sum, None)
            self._tables.pop(md5sum, None)

    def close_all(self) -> None:
        """Close all files, each after its reads in progress. The tables are kept."""
        with self._lock:
            self._files.clear()
