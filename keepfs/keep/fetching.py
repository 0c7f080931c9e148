"""FetchObserver: observes the reads that a client makes for its cache.

A read that bypasses the cache has a `SourceObserver`, which only records the service.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from cachetools import LRUCache

from keepfs.keep.store import ReadObserver

if TYPE_CHECKING:
    from keepfs.keep.buffers import Allocation, BufferPool
    from keepfs.keep.caching.cache import KeepBlockCache
    from keepfs.keep.caching.grants import Grants
    from keepfs.keep.locator import KeepLocator
    from keepfs.keep.services.answer_times import AnswerTimes

#: Most blocks whose services are recorded; these take about 2 MB.
_MOST_REMEMBERED = 10_000


class Sources:
    """The services that last sent or confirmed a block, for the last 10,000 blocks.

    Any thread may use it. No method blocks.
    """

    def __init__(self) -> None:
        self._services = LRUCache[str, tuple[str, ...]](_MOST_REMEMBERED)
        self._lock = threading.Lock()

    def note(self, locator: KeepLocator, *services: str) -> None:
        """Record the services of a block: root URLs, or the local store's name."""
        with self._lock:
            self._services[locator.md5sum] = services

    def of(self, locator: KeepLocator) -> tuple[str, ...]:
        """Return the services of a block; empty if none are recorded."""
        with self._lock:
            return self._services.get(locator.md5sum, ())


class SourceObserver(ReadObserver):
    """Records the service that sent a block.

    Args:
        locator: The block's locator.
        sources: The record of services.
    """

    def __init__(self, locator: KeepLocator, sources: Sources) -> None:
        self._locator = locator
        self._sources = sources

    def received_from(self, name: str) -> None:
        """Record the service."""
        self._sources.note(self._locator, name)


class FetchObserver(SourceObserver):
    """Observes a fetch for the cache, and provides memory within the cache's budget.

    Args:
        locator: The block's locator.
        sources: The record of services.
        cache: The cache that the block is fetched for.
        grants: The locators that may be answered from the cache.
        answer_times: Gets the time until a service begins to send the block.
        pool: Provides the buffer that the block is received into; None: the cache does.

    Attributes:
        begun_at: When the fetch began, on the monotonic clock, in seconds.
        has_begun: Whether a service has begun to send the block.
    """

    def __init__(
        self,
        locator: KeepLocator,
        sources: Sources,
        cache: KeepBlockCache,
        grants: Grants,
        answer_times: AnswerTimes,
        pool: BufferPool | None = None,
    ) -> None:
        super().__init__(locator, sources)
        self._cache = cache
        self._grants = grants
        self._answer_times = answer_times
        self._pool = pool
        self.begun_at = time.monotonic()
        self.has_begun = False

    def began(self, size: int) -> None:
        """Grant the locator, and wake the lookups that wait for the block's size."""
        self.has_begun = True
        self._answer_times.answered(self.begun_at)
        self._grants.answered(self._locator)
        self._cache.announce(self._locator, size)

    def allocate(self, size: int) -> Allocation:
        """Return memory within the budget of the cache. Blocks while there is none."""
        allocate = None if self._pool is None else self._pool.allocate
        return self._cache.allocate_for(self._locator, size, allocate)
