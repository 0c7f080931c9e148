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
    """The reads of a disk that are in progress. Any thread may use it.

    Args:
        report: Called once for each hang, with what to say of it; must return quickly.
        clock: Replaces `time.monotonic`, in seconds.
    """

    def __init__(
        self, report: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._report = report
        self._clock = clock
        self._reported: object = None
        self._lock = threading.Lock()
        # When each read began, the oldest first.
        self._begun: dict[object, float] = {}

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Watch the read in the body of `with`."""
        key = object()
        with self._lock:
            self._begun[key] = self._clock()
        try:
            yield
        finally:
            with self._lock:
                del self._begun[key]

    def hangs(self) -> bool:
        """Return whether a read takes longer than `HANGS_AFTER`. Doesn't block."""
        if not self._begun:
            return False
        now = self._clock()
        with self._lock:
            key, begun = next(iter(self._begun.items()), (None, now))
            hangs, is_new = now - begun > HANGS_AFTER, self._reported is not key
            if hangs:
                self._reported = key
        if hangs and is_new:
            self._report(f"a read of it takes more than {HANGS_AFTER:g} s")
        return hangs
