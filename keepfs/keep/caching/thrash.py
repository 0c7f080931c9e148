"""Thrash: detects that a cache refetches evicted blocks, and logs the size it needs.

For one thread at a time: the cache's lock guards it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from keepfs.keep.locator import MAX_BLOCK_SIZE
from keepfs.messages import of_running

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

#: Seconds of an interval, and thus the least time between two warnings.
_INTERVAL = 60.0
#: Refetches within an interval that cause a warning: the least number, and the least
#: fraction of all fetches. Guessed.
_MANY, _PART = 8, 0.25
#: Seconds between two measurements of the size, each of which visits every recorded block.
_MEASURING = 0.1
_MIB = 1024 * 1024


class Thrash:
    """Counts the misses of a cache per interval.

    Args:
        maxsize: The size of the cache, in bytes.
        clock: Returns seconds, like `time.monotonic`.
    """

    def __init__(self, maxsize: int, clock: Callable[[], float]) -> None:
        self._maxsize = maxsize
        self._clock = clock
        self._begin = clock()
        self._measured = clock() - _MEASURING
        self._misses = self._again = self._size = 0

    def missed(self, size_to_keep: Callable[[], int] | None) -> None:
        """Count a miss; after an interval, log a warning if there were too many.

        Args:
            size_to_keep: For an evicted block: returns the size of a cache, in bytes,
                that would have kept it. None for other blocks.
        """
        now = self._clock()
        if now - self._begin >= _INTERVAL:
            self._judge()
            self._begin = now
            self._misses = self._again = self._size = 0
        self._misses += 1
        if size_to_keep is not None:
            self._again += 1
            if now - self._measured >= _MEASURING:
                self._measured = now
                self._size = max(self._size, size_to_keep())

    def _judge(self) -> None:
        if self._again >= _MANY and self._again >= _PART * self._misses:
            blocks = -(-self._size // MAX_BLOCK_SIZE)
            _log.warning(
                "%s",
                of_running.CACHE_TOO_SMALL(
                    size=self._maxsize // _MIB,
                    fetched=self._misses,
                    again=self._again,
                    wanted=blocks * MAX_BLOCK_SIZE // _MIB,
                ),
            )
