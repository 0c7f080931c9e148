"""Thrash: notices that a cache fetches again what it had, and says which size would help.

For one thread at a time: the cache's lock guards it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

#: Seconds that are judged together, and thus between two complaints.
_INTERVAL = 60.0
#: Fetches of what had been here, within an interval, that are worth a word:
#: so many, and such a part of all. Guessed.
_MANY, _PART = 8, 0.25
#: Seconds between two measurements of a size, which look at every block known.
_MEASURING = 0.1
_MIB = 1024 * 1024


class Thrash:
    """Counts the misses of a cache, an interval at a time.

    Args:
        maxsize: The cache's, in bytes.
        clock: Seconds, as of `time.monotonic`.
    """

    def __init__(self, maxsize: int, clock: Callable[[], float]) -> None:
        self._maxsize = maxsize
        self._clock = clock
        self._begin = clock()
        self._measured = clock() - _MEASURING
        self._misses = self._again = self._size = 0

    def missed(self, size_to_keep: Callable[[], int] | None) -> None:
        """Note a miss, and complain where it is time to.

        Args:
            size_to_keep: For a block that had been here: returns the bytes of
                cache that would have kept it.
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
                "the cache of %d MiB is too small: of %d blocks fetched within a minute, %d had"
                " been in it; --cache-size %dMiB would have kept them",
                self._maxsize // _MIB,
                self._misses,
                self._again,
                blocks * MAX_BLOCK_SIZE // _MIB,
            )
