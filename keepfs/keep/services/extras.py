"""Extras: which slow transfers of a block may get a second one from another service.

A second transfer helps if one service is slow. If the link or all services are
slow, it takes bandwidth from the first and never overtakes it. Two rules
distinguish the cases:

- If every other service has sent a block recently, and none at `_MUCH` times the
  rate of this transfer, there is no second transfer.
- A second transfer that starts later, at no better rate, ends later. So the result
  of one decides about the next. At first one block at a time may have a second
  transfer; each win doubles that number, up to 16. A loss resets it to one and
  forbids second transfers for a minute; each further loss doubles the pause, up
  to 16 minutes.

TCP's congestion control follows the same pattern. A loss costs `hedge.PROBE` bytes
and those in the kernel's buffer, since the second transfer stops there until it is
known to be faster.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: The factor by which another service must be faster. Guessed: rates of one service
#: vary by a half; below a factor of two the second transfer would end no earlier.
_MUCH = 4.0
#: Most second transfers at a time: the number of a mount's read threads.
_MOST = 16
#: Seconds without second transfers after a loss; doubled by each further loss, up to the limit.
_PAUSE, _LONGEST_PAUSE = 60.0, 960.0
#: Seconds for which a rate is valid. Guessed: longer than a block of 64 MiB takes at
#: 200 kB/s, so that a slow link stays known.
_REMEMBERED = 600.0
#: Least bytes of a block whose time gives a rate: smaller blocks measure latency.
_TELLING = 256 * 1024
#: Weight of one transfer in the moving average of a service's rate.
_WEIGHT = 0.25


class Extras:
    """The second transfers of one store, and the rates of its services. Any thread may use it.

    Args:
        clock: Replaces `time.monotonic`, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._rates: dict[str, tuple[float, float]] = {}
        self._allowed = 1
        self._running = 0
        self._pause = _PAUSE
        self._resume_at = clock()

    def note(self, root: str, size: int, seconds: float) -> None:
        """Record the time of a service for a block, from the request to the last byte.

        Args:
            root: The service.
            size: The size of the block, in bytes.
            seconds: The time, above 0.
        """
        if size < _TELLING:
            return
        rate, now = size / max(seconds, 1e-6), self.clock()
        with self._lock:
            usual, noted_at = self._rates.get(root, (rate, now))
            if now - noted_at <= _REMEMBERED:
                rate = usual + _WEIGHT * (rate - usual)
            self._rates[root] = (rate, now)

    def begin(self, rate: float, others: Iterable[str]) -> bool:
        """Return whether a block received at `rate` may be requested from another service too.

        If True, the caller must call `end` once.

        Args:
            rate: Bytes per second.
            others: The other services.
        """
        with self._lock:
            now = self.clock()
            if self._running >= self._allowed or now < self._resume_at:
                return False
            if not any(self._may_be_faster(root, rate, now) for root in others):
                return False
            self._running += 1
            return True

    def _may_be_faster(self, root: str, rate: float, now: float) -> bool:
        usual, noted_at = self._rates.get(root, (0.0, float("-inf")))
        return now - noted_at > _REMEMBERED or usual >= _MUCH * rate

    def end(self, has_won: bool | None) -> None:  # noqa: FBT001 - one value of three
        """Record the result of a second transfer.

        Args:
            has_won: Whether its block was complete first; None if undecided: the service
                didn't have the block, or the call failed.
        """
        with self._lock:
            self._running -= 1
            if has_won:
                self._allowed = min(_MOST, 2 * self._allowed)
                self._pause = _PAUSE
            elif has_won is not None:
                self._allowed = 1
                self._resume_at = self.clock() + self._pause
                self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
