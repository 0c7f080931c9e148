"""FetchObserver: what a client notes while the store reads a block for its cache.

A plain read that goes past the cache has a `SourceObserver`, which notes less.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cachetools import LRUCache

from keepfs.keep.store import ReadObserver

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.buffers import Allocation, BufferPool
    from keepfs.keep.caching.cache import KeepBlockCache
    from keepfs.keep.caching.grants import Grants
    from keepfs.keep.locator import KeepLocator

#: Blocks whose sources are remembered; some 2 MB.
_MOST_REMEMBERED = 10_000


class Sources:
    """The services that sent or confirmed a block last, of the last 10,000 blocks.

    Any thread may use it. No method blocks.
    """

    def __init__(self) -> None:
        self._services = LRUCache[str, tuple[str, ...]](_MOST_REMEMBERED)
        self._lock = threading.Lock()

    def note(self, locator: KeepLocator, *services: str) -> None:
        """Remember the services of a block: root URLs, or the local store's name."""
        with self._lock:
            self._services[locator.md5sum] = services

    def of(self, locator: KeepLocator) -> tuple[str, ...]:
        """Return the services of a block; empty where none are remembered."""
        with self._lock:
            return self._services.get(locator.md5sum, ())


class SourceObserver(ReadObserver):
    """Remembers the service that sends a block.

    Args:
        locator: The block's name.
        sources: Where it is remembered.
    """

    def __init__(self, locator: KeepLocator, sources: Sources) -> None:
        self._locator = locator
        self._sources = sources

    def received_from(self, name: str) -> None:
        """Remember the service."""
        self._sources.note(self._locator, name)


class FetchObserver(SourceObserver):
    """Follows a fetch for the cache, in memory of the cache.

    Args:
        locator: The block's name.
        sources: Where the service that sends the block is remembered.
        cache: The cache that the block is fetched for.
        grants: Which names may be answered from it.
        first_answer: Called as soon as a service begins to send the block.
        pool: The pool of the buffer that the block is received into; None: the cache chooses.
    """

    def __init__(
        self,
        locator: KeepLocator,
        sources: Sources,
        cache: KeepBlockCache,
        grants: Grants,
        first_answer: Callable[[], None],
        pool: BufferPool | None = None,
    ) -> None:
        super().__init__(locator, sources)
        self._cache = cache
        self._grants = grants
        self._first_answer = first_answer
        self._pool = pool

    def began(self, size: int) -> None:
        """Grant the name, and wake the lookups that wait for the block's size."""
        self._first_answer()
        self._grants.answered(self._locator)
        self._cache.announce(self._locator, size)

    def allocate(self, size: int) -> Allocation:
        """Return memory within the budget of the cache. Blocks while there is none."""
        allocate = None if self._pool is None else self._pool.allocate
        return self._cache.allocate_for(self._locator, size, allocate)
