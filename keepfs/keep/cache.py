"""KeepBlockCache: blocks in memory, bounded in bytes, one fetch per block.

Blocks never change, so a cached block is never stale; it is verified before
it comes in. Every method may be called from any thread. The lock is held for
arithmetic only: fetching happens outside.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cachetools

from keepfs.keep.errors import KeepReadError, fresh_copy
from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.locator import KeepLocator

#: Bytes, as in the SDK: four blocks of the largest size.
DEFAULT_CACHE_MAX = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What the cache holds and has done.

    Attributes:
        maxsize: Bytes it may hold, blocks being fetched included.
        currsize: Bytes of the blocks it holds.
        in_flight: Bytes set aside for blocks being fetched.
        blocks: How many it holds.
        hits: Calls answered from memory.
        misses: Calls that fetched.
        joined: Calls that waited for another's fetch.
    """

    maxsize: int
    currsize: int
    in_flight: int
    blocks: int
    hits: int
    misses: int
    joined: int


class _Fetch:
    """One fetch under way, and who waits for it."""

    def __init__(self, locator: KeepLocator) -> None:
        self.locator = locator
        self.size = MAX_BLOCK_SIZE if locator.size is None else locator.size
        self.done = threading.Event()
        self.block: memoryview | None = None
        self.failure: Exception | None = None


class KeepBlockCache:
    """Blocks by their digest, the least recently used thrown out first.

    Invariants: cached bytes plus bytes being fetched never exceed
    `cache_max`, but for a single block larger than all of it, which is
    fetched alone and not kept; at most one fetch per block is under way; a
    failed fetch leaves nothing behind. A block larger than its locator said
    is kept only where it fits.

    Args:
        cache_max: Bytes.
    """

    def __init__(self, cache_max: int = DEFAULT_CACHE_MAX) -> None:
        self.cache_max = cache_max
        self._changed = threading.Condition()
        self._blocks: cachetools.LRUCache[str, memoryview] = cachetools.LRUCache(
            maxsize=cache_max, getsizeof=len
        )
        self._fetches: dict[str, _Fetch] = {}
        self._in_flight = 0
        self._hits = self._misses = self._joined = 0

    def get_nowait(self, md5sum: str) -> memoryview | None:
        """Return the block if it is here, else None. Never waits."""
        with self._changed:
            block = self._blocks.get(md5sum)
            if block is not None:
                self._hits += 1
            return block

    def get_or_fetch(
        self, locator: KeepLocator, fetch: Callable[[], bytes | memoryview]
    ) -> memoryview:
        """Return the block, from memory or by calling `fetch`; blocks meanwhile.

        Of several callers for one block one fetches; the others wait, and
        share what comes of it, a failure too. Only a failure of a differently
        hinted locator isn't shared: the hints may be why it failed.

        Args:
            locator: The block's name.
            fetch: Returns the block's verified bytes, or raises.

        Raises:
            Exception: What `fetch` raised; a copy, for callers that waited.
        """
        while True:
            with self._changed:
                block = self._blocks.get(locator.md5sum)
                if block is not None:
                    self._hits += 1
                    return block
                running = self._fetches.get(locator.md5sum)
                is_mine = running is None
                if running is None:
                    running = self._fetches[locator.md5sum] = _Fetch(locator)
                    self._misses += 1
                else:
                    self._joined += 1
            if is_mine:
                return self._fetch(running, fetch)
            running.done.wait()
            if running.block is not None:
                return running.block
            if running.failure is not None and running.locator == locator:
                raise fresh_copy(running.failure)

    def _fetch(self, mine: _Fetch, fetch: Callable[[], bytes | memoryview]) -> memoryview:
        reserved = False
        try:
            self._reserve(mine.size)
            reserved = True
            mine.block = memoryview(fetch()).toreadonly()
        except BaseException as error:
            mine.failure = (
                fresh_copy(error)
                if isinstance(error, Exception)
                else KeepReadError(f"the fetch of {mine.locator.stripped()} was given up")
            )
            raise
        finally:
            with self._changed:
                del self._fetches[mine.locator.md5sum]
                if reserved:
                    self._in_flight -= mine.size
                if mine.block is not None and self._has_place_for(len(mine.block)):
                    self._make_room(len(mine.block))
                    self._blocks[mine.locator.md5sum] = mine.block
                self._changed.notify_all()
            mine.done.set()
        return mine.block

    def clear(self) -> None:
        """Forget every block; fetches under way go on."""
        with self._changed:
            self._blocks.clear()

    def statistics(self) -> CacheStatistics:
        """Return what it holds and has done, at one moment."""
        with self._changed:
            return CacheStatistics(
                maxsize=self.cache_max,
                currsize=int(self._blocks.currsize),
                in_flight=self._in_flight,
                blocks=len(self._blocks),
                hits=self._hits,
                misses=self._misses,
                joined=self._joined,
            )

    def _reserve(self, size: int) -> None:
        """Set bytes aside for a fetch, waiting for others to end where there is no room."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._in_flight == 0 or self._in_flight + size <= self.cache_max
            )
            self._make_room(size)
            self._in_flight += size

    def _has_place_for(self, size: int) -> bool:
        """Tell whether throwing out blocks can make room; a size hint may have been too low."""
        return self._in_flight + size <= self.cache_max

    def _make_room(self, size: int) -> None:
        while self._blocks and self._in_flight + self._blocks.currsize + size > self.cache_max:
            self._blocks.popitem()
