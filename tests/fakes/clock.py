"""FakeClock: time that moves only when someone sleeps, or a test says so."""

from __future__ import annotations


class FakeClock:
    """A monotonic clock and its `sleep`; for one thread.

    Args:
        now: Seconds it shows at first.

    Attributes:
        now: Seconds it shows.
        sleeps: Seconds of every sleep, in order.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        """Return the seconds it shows, as `time.monotonic` does."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move by so many seconds, and remember it. Negative ones are refused, as by `time`."""
        if seconds < 0:
            raise ValueError("sleep length must be non-negative")
        self.sleeps.append(seconds)
        self.now += seconds

    def advance(self, seconds: float) -> None:
        """Move by so many seconds: what happened meanwhile took that long."""
        self.now += seconds
