"""What time it is for a server: the real time, or the one a test sets."""

from __future__ import annotations

import datetime as dt
import time

#: Nanoseconds of a second.
SECOND = 1_000_000_000


class Clock:
    """A server's wall clock; any thread may read and set it.

    Args:
        fixed: Unix time in nanoseconds at which the clock stands still. None
            follows the machine's clock.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.fixed = fixed

    def time_ns(self) -> int:
        """Read the clock, in nanoseconds since 1970."""
        return time.time_ns() if self.fixed is None else self.fixed

    def http_date(self) -> str:
        """Render the time as the `Date` header has it."""
        now = dt.datetime.fromtimestamp(self.time_ns() // SECOND, dt.UTC)
        return now.strftime("%a, %d %b %Y %H:%M:%S GMT")
