"""HangWatch: notices that a disk hangs, so that nobody else waits for it."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds after which a read shows that the disk hangs: a block of 64 MiB at 6.7 MB/s, a tenth
#: of the rate of a slow hard disk.
HANGS_AFTER = 10.0


class HangWatch:
    """The reads of a disk that are in progress, one of each thread. Any thread may use it.

    An interrupt (Ctrl-C) may leave the entry of a read that has ended. So the thread's next read
    replaces it, and it counts neither for this thread nor after the thread's end. In a forked
    child, the threads of the parent have ended.

    Args:
        report: Called once for each hang, with what to say of it; must return quickly.
        clock: Replaces `time.monotonic`, in seconds.
    """

    def __init__(
        self, report: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._report = report
        self._clock = clock
        # It is never waited for: a thread of the parent may hold it in a forked child.
        self._reporting = threading.Lock()
        self._reported: object = None
        # When each read began, the oldest first. Each operation on it is atomic.
        self._begun: dict[threading.Thread, tuple[float]] = {}

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Watch the read in the body of `with`, which has no other."""
        thread = threading.current_thread()
        self._begun.pop(thread, None)
        try:
            self._begun[thread] = (self._clock(),)
            yield
        finally:
            self._begun.pop(thread, None)

    def hangs(self) -> bool:
        """Return whether another thread's read takes longer than `HANGS_AFTER`. Doesn't block."""
        if not self._begun:
            return False
        now = self._clock()
        for thread, read in list(self._begun.items()):
            if now - read[0] <= HANGS_AFTER:
                return False  # the others began later
            if thread is not threading.current_thread() and thread.is_alive():
                self._report_once(read)
                return True
        return False

    def _report_once(self, read: object) -> None:
        if self._reported is read or not self._reporting.acquire(blocking=False):
            return
        try:
            if self._reported is not read:
                self._reported = read
                self._report(f"a read of it takes more than {HANGS_AFTER:g} s")
        finally:
            self._reporting.release()
