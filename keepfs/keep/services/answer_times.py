"""AnswerTimes: the usual time of the services to a first answer.

An exponentially weighted moving average. A sample is limited to the wait that is
derived from the average, so an outlier changes little, but a link that has become
slow is detected within a few answers. Any thread may call any method.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from keepfs.keep.errors import Cause

if TYPE_CHECKING:
    from keepfs.keep.errors import KeepReadError

#: The wait as a multiple of the usual time: most answers come within it, also those that
#: need a request to a second or third service.
_FACTOR = 4.0
#: The shortest wait, in seconds; shorter waits save nothing noticeable.
_LEAST_WAIT = 0.1
#: Weight of one sample: the average is over about ten answers.
_WEIGHT = 0.25


class AnswerTimes:
    """A moving average of answer times, and the wait that follows from it."""

    def __init__(self) -> None:
        self._usual: float | None = None
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Add a service's time to a first answer, in seconds."""
        seconds = max(seconds, _LEAST_WAIT / _FACTOR)
        with self._lock:
            if self._usual is None:
                self._usual = seconds
            else:
                sample = min(seconds, _FACTOR * self._usual)
                self._usual += _WEIGHT * (sample - self._usual)

    def answered(self, begun: float) -> None:
        """Add the time of a request that was sent at `begun`, on the monotonic clock."""
        self.add(time.monotonic() - begun)

    def failed(self, begun: float, error: KeepReadError) -> None:
        """Add the time of a request that failed, if a service answered it."""
        if error.cause in {Cause.NOT_FOUND, Cause.DENIED}:
            self.answered(begun)

    def wait(self, most: float) -> float:
        """Return the seconds to wait for an answer: four times the usual, 0.1 s at least.

        Args:
            most: The longest wait, in seconds, also used while no time is known.
        """
        with self._lock:
            usual = self._usual
        return most if usual is None else min(most, max(_LEAST_WAIT, _FACTOR * usual))
