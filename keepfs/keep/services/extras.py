"""Extras: which slow transfers of a block may be doubled by one from another service.

A second transfer helps where one service is slow. Where the link is slow, or all
services are, it takes bytes from the first and never overtakes it. Two facts tell
the cases apart:

- Where every other service has sent a block lately, and none at `_MUCH` times the
  rate of this transfer, no other service is asked.
- A second transfer that begins later, at no better rate, ends later. So one that
  was overtaken by the first is evidence against the next ones, one that won is
  evidence for them: one block at a time is doubled to begin with, twice as many
  after each that won, and none for a minute after one that lost; for two minutes
  after the next, and so on, up to 16.

The numbers are those of TCP's congestion control in kind: doubled while it works,
back to one when it doesn't. A loss costs `hedge.PROBE` bytes, and what the kernel
buffers, since the second transfer waits there until it is known to be faster.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: How many times faster another service must have been. Guessed: rates of one service
#: vary by a half; with less than twice, the second transfer would end no earlier.
_MUCH = 4.0
#: Blocks whose transfers are doubled at once: as many as a mount has readers.
_MOST = 16
#: Seconds without a second transfer after one that lost; doubled each time, up to the last.
_PAUSE, _LONGEST_PAUSE = 60.0, 960.0
#: Seconds for which a rate is remembered. Guessed: longer than a block of 64 MiB takes
#: at 200 kB/s, so that a slow link stays known.
_REMEMBERED = 600.0
#: Bytes of a block whose time tells the rate of a service: less tells its latency.
_TELLING = 256 * 1024
#: Weight of one transfer in the moving average of a service's rate.
_WEIGHT = 0.25


class Extras:
    """The second transfers of one store, and the rates of its services. Any thread may use it.

    Args:
        clock: Seconds, instead of `time.monotonic`.
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
        """Note how long a service took for a block, from the request to the last byte.

        Args:
            root: The service.
            size: Bytes of the block.
            seconds: Above 0.
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
        """Tell whether a block that comes at `rate` may be asked for from another service too.

        Where it may, `end` is to be called once.

        Args:
            rate: Bytes a second.
            others: The services that could be asked.
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
        """Note what came of a second transfer.

        Args:
            has_won: Whether its block came first; None if it told nothing: the service
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
