"""AnswerTimes: how long the services usually take to a first answer.

An exponentially weighted moving average. A sample counts at most as much as the
wait that is derived from the average, so one outlier changes little, while a
link that has become slow is noticed within a few answers. Any thread may call
any method.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from keepfs.keep.errors import Cause, KeepReadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: How often the usual time to wait: most answers come within it, also the one that
#: needs a second or third service to be asked.
_FACTOR = 4.0
#: Seconds to wait at least; shorter waits save nothing that anybody would notice.
_LEAST_WAIT = 0.1
#: Weight of one sample. Some ten answers make the average.
_WEIGHT = 0.25


class AnswerTimes:
    """A moving average of answer times, and the wait that follows from it."""

    def __init__(self) -> None:
        self._usual: float | None = None
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Note how long a service took to a first answer."""
        seconds = max(seconds, _LEAST_WAIT / _FACTOR)
        with self._lock:
            if self._usual is None:
                self._usual = seconds
            else:
                sample = min(seconds, _FACTOR * self._usual)
                self._usual += _WEIGHT * (sample - self._usual)

    @contextlib.contextmanager
    def measured(self) -> Iterator[Callable[[], None]]:
        """Time one request: until the function it gives is called, or a definite no is raised."""
        begun = time.monotonic()

        def answered() -> None:
            self.add(time.monotonic() - begun)

        try:
            yield answered
        except KeepReadError as error:
            if error.cause in {Cause.NOT_FOUND, Cause.DENIED}:
                answered()
            raise

    def wait(self, most: float) -> float:
        """Return the seconds to wait for an answer: four times the usual, 0.1 s at least.

        Args:
            most: Seconds to wait at most, and as long as no time is known.
        """
        with self._lock:
            usual = self._usual
        return most if usual is None else min(most, max(_LEAST_WAIT, _FACTOR * usual))
