"""Retry: which failures are transient, and the rounds and back-off of a call.

All retries of keepfs are made here. Time is measured on the monotonic clock, so a
step of the wall clock neither lengthens nor removes a wait.
"""

from __future__ import annotations

import enum
import itertools
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LOWEST_STATUS, _HIGHEST_STATUS = 100, 599
# The SDK's list and two more: 429 (too many requests) and 499 (keepstore's own
# deadline passed while the request waited).
_TRANSIENT = frozenset({408, 409, 423, 429, 499, 500, 502, 503, 504})


class Verdict(enum.Enum):
    """The class of an answer's status: whether a retry makes sense."""

    SUCCESS = enum.auto()
    TRANSIENT = enum.auto()
    PERMANENT = enum.auto()

    @classmethod
    def of(cls, status: int) -> Verdict:
        """Classify an HTTP status; 0 and other invalid values mean "no answer"."""
        if 200 <= status <= 299:  # noqa: PLR2004 - HTTP's class of success
            return cls.SUCCESS
        if status in _TRANSIENT or not _LOWEST_STATUS <= status <= _HIGHEST_STATUS:
            return cls.TRANSIENT
        return cls.PERMANENT


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off between rounds, in seconds, with jitter.

    The wait after round n (counted from 0) is drawn evenly from the upper half of
    `min(cap, first * factor**n)`, so that clients that failed together don't retry
    together.

    Attributes:
        first: Nominal wait after the first round.
        factor: Growth from round to round, at least 1.
        cap: Longest wait.
    """

    first: float = 2.0
    factor: float = 2.0
    cap: float = 60.0

    def wait(self, attempt: int, draw: float) -> float:
        """Compute the wait after `attempt`; `draw` is a random number from [0, 1)."""
        # Bound the exponent: 2.0**1024 overflows.
        nominal = min(self.cap, self.first * self.factor ** min(attempt, 64))
        return nominal * (1 + draw) / 2


class RetryLoop:
    """The rounds of one call: `for attempt in RetryLoop(retries): ...`, left by `break`.

    The first round starts at once. Each further round starts no sooner than the
    back-off after the *start* of the previous one, so the time of a round counts
    as waiting. There is no wait after the last round. If a wait would pass the
    deadline, the rounds end instead.

    Invariant: at least one round, and at most `retries + 1`.

    Args:
        retries: Rounds after the first; a negative number means none.
        backoff: The waits between them.
        total: Seconds after which no further round starts; None for no limit.
        sleep: Replaces `time.sleep`, which is looked up at each wait.
        clock: Replaces `time.monotonic`.
        draw: Replaces `random.random`.
    """

    def __init__(
        self,
        retries: int,
        *,
        backoff: Backoff | None = None,
        total: float | None = None,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] | None = None,
        draw: Callable[[], float] | None = None,
    ) -> None:
        self._retries = retries
        self._backoff = backoff or Backoff()
        self._total = total
        self._sleep = sleep
        self._clock = clock or time.monotonic
        self._draw = draw or random.random

    def __iter__(self) -> Iterator[int]:
        """Yield the number of each round, counted from 0. Blocks between rounds."""
        begin = self._clock()
        for attempt in itertools.count():
            started = self._clock()
            yield attempt
            if attempt >= self._retries:
                return
            wait = self._backoff.wait(attempt, self._draw()) - (self._clock() - started)
            if self._total is not None and self._clock() + max(wait, 0) - begin >= self._total:
                return
            if wait > 0:
                (self._sleep or time.sleep)(wait)
