"""ReadAhead: reads a block's file into the page cache, ahead of a sequential reader.

The kernel reads ahead of a program that reads a file in order, in large folios. For
posix_fadvise(2) it takes single pages, and five times the processor time. So a thread reads the
file in order, and drops what it gets. With sendfile(2) to /dev/null, which copies nothing, the
kernel's read-ahead was smaller, and the whole slower.
"""

from __future__ import annotations

import contextlib
import os
import threading

#: Bytes that are read ahead of the reader; and by one system call.
AHEAD, _AT_ONCE = 16 * 1024 * 1024, 1024 * 1024


class ReadAhead:
    """Reads one open file ahead. Any thread may use it; the reads of one at a time.

    Args:
        file: The file's descriptor, open until `close`. Its position is not used.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._lock = threading.Lock()
        # Another open file description of the same file: the kernel keeps the state of its
        # read-ahead in it, which the reads of others would disturb.
        self._own = -1
        self._end = 0

    def read_on(self, begin: int, size: int) -> None:
        """Read the `AHEAD` bytes from `begin` on. Blocks.

        Leaves out what the last call has read. Does nothing while another thread reads ahead.

        Args:
            begin: The offset of the next byte that the reader needs.
            size: The offset at which to stop in any case.

        Raises:
            OSError: The file can't be read.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._own < 0:
                self._own = os.open(f"/proc/self/fd/{self._file}", os.O_RDONLY | os.O_CLOEXEC)
                os.posix_fadvise(self._own, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            at = self._end if begin <= self._end <= begin + AHEAD else begin
            dropped = bytearray(_AT_ONCE)
            while at < min(begin + AHEAD, size):
                at = at // _AT_ONCE * _AT_ONCE + _AT_ONCE
                if not os.preadv(self._own, [dropped], at - _AT_ONCE):
                    break  # the file was cut off
            self._end = at
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close its descriptor; call it when no thread reads ahead."""
        if self._own >= 0:
            with contextlib.suppress(OSError):
                os.close(self._own)
            self._own = -1
