"""DiskReads: reads of parts of blocks from the disk cache, in the event loop or in threads.

A fast disk sends a small part sooner than a thread takes over the read and hands it back. So
the kernel is told to read the part into the page cache, and each turn of the event loop looks
whether it is there. Large parts, and all parts of a disk that is slow or hangs, are read in
threads.

For the trio thread.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, cast

import trio

from keepfs.fs.limits import YieldingLimiter
from keepfs.fs.worker_threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keepfs.fs.block_store import BlockParts
    from keepfs.keep.locator import KeepLocator

#: Seconds for which the event loop looks for a part: some ten times what it takes on the disk
#: of docs/performance.md, and less than a disk with moving heads takes.
POLL_TIME = 0.001
#: Most parts that the event loop looks for: each costs a system call a turn. Fewer than the
#: requests that a usual disk queues, since with a full queue to begin another one blocks.
MOST_POLLS = 32
#: Seconds after which a read in a thread shows that the disk may hang: none is begun in the
#: event loop then, and after `HANGING` not even the page cache is asked, nor while this number
#: of reads waits for the disk.
SUSPICIOUS, HANGING, MOST_WAITING = 0.02, 1.0, 32
#: Most threads that read ahead of sequential readers, without stalled ones, and with them. They
#: do not count against the limit of the reads that somebody waits for.
_MOST_AHEAD, _STALLED_AHEAD = 8, 64
#: Most threads that ask the services before they read, without stalled ones, and with them.
_MOST_ASKING, _STALLED_ASKING = 16, 128
#: Most parts in a row that are left to threads after the event loop has looked in vain.
LONGEST_PAUSE = 255


class DiskReads:
    """Reads parts of blocks from the disk.

    Args:
        limiter: Limits the threads that read names that the services have accepted.
        poll_time: Seconds for which the event loop looks for a part; 0.0: all are read in
            threads. None: `POLL_TIME`, or 0.0 if this thread has one processor only, which
            others could not use meanwhile.
        clock: Replaces `time.perf_counter`, in seconds.
    """

    def __init__(
        self,
        limiter: trio.CapacityLimiter,
        poll_time: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if poll_time is None:
            poll_time = POLL_TIME if len(os.sched_getaffinity(0)) > 1 else 0.0
        #: Limits the threads that read ahead.
        self.ahead = YieldingLimiter(_MOST_AHEAD, _STALLED_AHEAD)
        self._limiter = limiter
        # The reads of the disk don't queue behind the services.
        self._asking = YieldingLimiter(_MOST_ASKING, _STALLED_ASKING)
        self._poll_time = poll_time
        self._clock = clock
        self._polling = 0
        # The reads that wait for a thread or in one.
        self._waiting = 0
        # When each read in a thread began, the oldest first.
        self._lock = threading.Lock()
        self._in_threads: dict[object, float] = {}
        # The parts to leave to threads after the last look in vain, and how many are left.
        self._pause = self._pause_left = 0

    async def get_part(
        self, parts: BlockParts, locator: KeepLocator, begin: int, end: int, size: int
    ) -> memoryview | None:
        """Return verified bytes of a block; None if it isn't on the disk.

        Arguments, except the first, and errors as those of `parts.get_part`.
        """
        part = await self._polled(parts, locator, begin, end, size)
        if part is not None:
            return part
        if not parts.is_granted(locator):  # a service is asked first, which may be slow
            return await run_in_thread(
                lambda: parts.get_part(locator, begin, end, size),
                cast("trio.CapacityLimiter", self._asking),
            )

        def read() -> memoryview | None:
            with self._in_thread():
                return parts.get_part(locator, begin, end, size)

        self._waiting += 1
        try:
            return await run_in_thread(read, self._limiter)
        finally:
            self._waiting -= 1

    def part_nowait(
        self, parts: BlockParts, locator: KeepLocator, begin: int, end: int, size: int
    ) -> memoryview | None:
        """Return verified bytes of a block if they are in the page cache, else None.

        The kernel begins to read what is not there. Each such read is in the queue of the disk,
        and with a full queue the next one blocks. So nothing is tried while the disk may hang.
        """
        if self._waiting >= MOST_WAITING or self._in_thread_since(HANGING):
            return None
        return parts.part_nowait(locator, begin, end, size)

    async def _polled(
        self, parts: BlockParts, locator: KeepLocator, begin: int, end: int, size: int
    ) -> memoryview | None:
        """Return what `get_part` does; None if the part is large, or the disk takes longer."""
        self._pause_left -= self._pause_left > 0
        if self._poll_time <= 0 or self._pause_left or self._polling >= MOST_POLLS:
            return None
        if self._in_thread_since(SUSPICIOUS) or not parts.begin_part(locator, begin, end, size):
            return None
        until = self._clock() + self._poll_time
        self._polling += 1
        try:
            while self._clock() < until:
                await trio.lowlevel.checkpoint()
                part = parts.part_nowait(locator, begin, end, size)
                if part is not None:
                    self._pause = 0
                    return part
        finally:
            self._polling -= 1
        self._pause = min(2 * self._pause + 1, LONGEST_PAUSE)
        self._pause_left = self._pause + 1
        return None

    def _in_thread_since(self, seconds: float) -> bool:
        """Return whether a read in a thread takes longer."""
        if not self._in_threads:
            return False
        now = self._clock()
        with self._lock:
            return now - next(iter(self._in_threads.values()), now) > seconds

    @contextlib.contextmanager
    def _in_thread(self) -> Iterator[None]:
        """Note a read in a thread until exit; entered in that thread."""
        key, now = object(), self._clock()
        with self._lock:
            self._in_threads[key] = now
        try:
            yield
        finally:
            with self._lock:
                del self._in_threads[key]
