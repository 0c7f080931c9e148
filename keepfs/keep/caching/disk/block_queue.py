"""BlockQueue: the writes of blocks that wait, and the thread that does them.

The thread is started when a block comes, and ends soon after the last one. It has no reference
to the disk cache but that of the writes in the queue. So a cache that nobody uses any more is
freed, with its descriptors.
"""

from __future__ import annotations

import atexit
import collections
import threading
import time
import weakref
from typing import TYPE_CHECKING

from keepfs.keep.forks import renew_in_children
from keepfs.keep.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

#: Most writes of `put_small` that wait: of a disk that hangs, too.
_MOST_SMALL = 10_000
#: Seconds without a block after which the thread ends. To start another takes 100 µs.
_IDLE = 0.1
#: Seconds for which a program that ends waits for the writes of all its queues: the disk may
#: hang. Guessed: the three blocks of 64 MiB of a queue in that time are 40 MB/s.
_AT_EXIT = 5.0


class BlockQueue:
    """Does writes in another thread, one at a time, in their order. Any thread may use it.

    Args:
        most: Most writes that wait, in addition to the one that is done.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        #: Whether `close` was called.
        self.is_closed = False
        self._begin()
        _all.add(self)
        renew_in_children(self)

    def _begin(self) -> None:
        # The start of a thread may take seconds.
        self._starting = threading.Lock()
        self._changed = threading.Condition()
        # Each with whether it is of a block, which takes memory; and the number of these.
        self._waiting = collections.deque["tuple[Callable[[], None], bool]"]()
        self._blocks = 0
        self._is_writing = self._hurries = False
        self._thread: Thread | None = None

    def put(self, write: Callable[[], None], timeout: float) -> bool:
        """Add a write; return whether there was room for it, and the queue is open.

        Args:
            write: Called later by the thread; must not raise.
            timeout: Seconds to wait for room.

        Raises:
            NoThreadError: The system can't start a thread.
        """
        while True:
            self._ensure_thread()
            with self._changed:
                self._changed.wait_for(lambda: self._has_room() or self._hurries, timeout)
                if self.is_closed or not self._has_room():
                    return False
                if self._thread is None:
                    continue  # it has ended meanwhile
                self._blocks += 1
                self._waiting.append((write, True))
                self._changed.notify_all()
                return True

    def put_small(self, write: Callable[[], None]) -> None:
        """Add a write of a few bytes; drop it if 10,000 writes wait. Doesn't wait for the disk.

        Args:
            write: As of `put`.

        Raises:
            NoThreadError: The system can't start a thread.
        """
        with self._changed:
            if self.is_closed or len(self._waiting) >= _MOST_SMALL:
                return
            self._waiting.append((write, False))
            self._changed.notify_all()
        self._ensure_thread()

    def end_waits(self) -> None:
        """Wake the calls of `put` that wait for room, and let none wait any more."""
        with self._changed:
            self._hurries = True
            self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the writes added so far are done, `timeout` s at most."""
        with self._changed:
            self._changed.wait_for(self._is_done, timeout)

    def close(self, timeout: float) -> bool:
        """Do the writes that wait, and refuse others; return whether the thread has ended.

        Args:
            timeout: Seconds to wait for the thread, if it is not being started.
        """
        with self._starting, self._changed:
            self.is_closed = True
            thread = self._thread
            self._changed.notify_all()
        if thread is None:
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def renew_after_fork(self) -> None:
        """Drop the writes in a forked child: the parent does them."""
        self._begin()

    def _has_room(self) -> bool:
        return self.is_closed or self._blocks < self._most

    def _is_done(self) -> bool:
        return not self._waiting and not self._is_writing

    def _ensure_thread(self) -> None:
        with self._starting:
            thread = self._thread
            if self.is_closed or (thread is not None and thread.is_alive()):
                return
            self._thread = thread = Thread(target=self._run, name="disk cache", daemon=True)
            try:
                thread.start()
            except BaseException:
                self._thread = None
                raise

    def _run(self) -> None:
        while (write := self._next()) is not None:
            try:
                write()
            finally:
                write = None
                with self._changed:
                    self._is_writing = False
                    self._changed.notify_all()

    def _next(self) -> Callable[[], None] | None:
        """Return the next write; None if the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.is_closed, _IDLE)
            if not self._waiting:
                self._thread = None
                return None
            write, is_block = self._waiting.popleft()
            self._blocks -= is_block
            self._is_writing = True
            self._changed.notify_all()
            return write


_all = weakref.WeakSet[BlockQueue]()


def _flush_all() -> None:
    """Wait for the writes of a program that didn't close its disk caches."""
    until = time.monotonic() + _AT_EXIT
    for each in list(_all):
        each.flush(max(0.0, until - time.monotonic()))


# It runs after all threads that aren't daemons have ended, and before daemons are stopped.
atexit.register(_flush_all)
