"""KeepBlockCache: blocks in memory, bounded in bytes, one fetch per block.

Blocks never change, so a cached block is never stale; it is verified before
it comes in. Every method may be called from any thread. The lock is held for
arithmetic only: fetching happens outside.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cachetools

from keepfs.keep.buffers import FreshRoom
from keepfs.keep.errors import Cause, KeepReadError, fresh_copy
from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.buffers import Room
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


class Fetch:
    """One fetch under way, and who waits for it.

    Args:
        locator: The block's name.
        effort: How persistent it is: its rounds after the first.
    """

    def __init__(self, locator: KeepLocator, effort: int = 0) -> None:
        self.locator = locator
        self.effort = effort
        self.size = MAX_BLOCK_SIZE if locator.size is None else locator.size
        self.done = threading.Event()
        self.block: memoryview | None = None
        self.failure: Exception | None = None
        self._answered = threading.Event()
        self._announced: int | None = None

    def announce(self, size: int) -> None:
        """Tell those who wait for no more that the block is being received."""
        self._announced = size
        self._answered.set()

    def end(self) -> None:
        """Wake everybody: there is a block now, or a failure."""
        self.done.set()
        self._answered.set()

    def wait_for_size(self, timeout: float) -> int | None:
        """Wait until the block is known to be there, and return its size.

        Returns:
            None if `timeout` seconds brought no answer.

        Raises:
            Exception: A copy of what the fetch raised.
        """
        if not self._answered.wait(max(0.0, timeout)):
            return None
        if self.failure is not None:
            raise fresh_copy(self.failure)
        return self._announced if self.block is None else len(self.block)


class KeepBlockCache:
    """Blocks by their digest, the least recently used thrown out first.

    Invariants: cached bytes plus bytes being fetched never exceed
    `cache_max`, but for a single block larger than all of it, which is
    fetched alone and not kept; at most one fetch per block is under way; a
    failed fetch leaves nothing behind. A block larger than its locator said
    is kept only where it fits.

    Args:
        cache_max: Bytes.
        allocate: Makes the memory that its blocks are fetched into.
    """

    def __init__(
        self,
        cache_max: int = DEFAULT_CACHE_MAX,
        allocate: Callable[[int], Room] = FreshRoom,
    ) -> None:
        self.cache_max = cache_max
        self.allocate = allocate
        self._changed = threading.Condition()
        self._blocks: cachetools.LRUCache[str, memoryview] = cachetools.LRUCache(
            maxsize=cache_max, getsizeof=len
        )
        self._fetches: dict[str, Fetch] = {}
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
        self,
        locator: KeepLocator,
        fetch: Callable[[], bytes | memoryview],
        effort: int = 0,
        timeout: float | None = None,
    ) -> memoryview:
        """Return the block, from memory or by calling `fetch`; blocks meanwhile.

        Of several callers for one block one fetches; the others wait, and
        share what comes of it, a failure too. Only a failure of a differently
        hinted locator isn't shared: the hints may be why it failed; nor one
        that came of less effort than the caller would make.

        Args:
            locator: The block's name.
            fetch: Returns the block's verified bytes, or raises.
            effort: How persistent `fetch` is: its rounds after the first.
            timeout: Seconds to wait for others, be it for their fetch or for
                the room that they take; None for no limit.

        Raises:
            KeepReadError: Others took too long (cause TIMED_OUT).
            Exception: What `fetch` raised; a copy, for callers that waited.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            block, running, is_mine = self._join(locator, effort)
            if block is not None:
                return block
            if is_mine:
                return self._fetch(running, fetch, deadline)
            if not running.done.wait(_left(deadline)):
                raise _waited_too_long(locator)
            if running.block is not None:
                return running.block
            if (
                running.failure is not None
                and running.locator == locator
                and running.effort >= effort
            ):
                raise fresh_copy(running.failure)

    def begin(
        self,
        locator: KeepLocator,
        fetch: Callable[[], bytes | memoryview],
        spawn: Callable[[Callable[[], None]], None],
        effort: int = 0,
    ) -> Fetch | memoryview:
        """Return the block if it is here, else its fetch: begun by now, or joined. Doesn't wait.

        Args:
            locator: The block's name.
            fetch: Returns the block's verified bytes, or raises.
            spawn: Runs what it is given in another thread.
            effort: How persistent `fetch` is.
        """
        block, running, is_mine = self._join(locator, effort)
        if block is not None:
            return block

        def run() -> None:
            # Whoever waits is told of the failure; nobody else needs to be.
            with contextlib.suppress(Exception):
                self._fetch(running, fetch, None)

        if is_mine:
            try:
                spawn(run)
            except BaseException as error:
                running.failure = KeepReadError(f"no thread to fetch in: {error}")
                with self._changed:
                    del self._fetches[locator.md5sum]
                running.end()
                raise
        return running

    def announce(self, locator: KeepLocator, size: int) -> None:
        """Tell those who wait for a block's size that a service has begun to send it."""
        with self._changed:
            running = self._fetches.get(locator.md5sum)
        if running is not None:
            running.announce(size)

    def _join(self, locator: KeepLocator, effort: int) -> tuple[memoryview | None, Fetch, bool]:
        """Return the block if it is here; else its fetch, and whether that is the caller's."""
        with self._changed:
            block = self._blocks.get(locator.md5sum)
            if block is not None:
                self._hits += 1
                return block, Fetch(locator), False
            running = self._fetches.get(locator.md5sum)
            if running is not None:
                self._joined += 1
                return None, running, False
            mine = self._fetches[locator.md5sum] = Fetch(locator, effort)
            self._misses += 1
            return None, mine, True

    def _fetch(
        self, mine: Fetch, fetch: Callable[[], bytes | memoryview], deadline: float | None
    ) -> memoryview:
        reserved = False
        try:
            self._reserve(mine, deadline)
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
            mine.end()
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

    def _reserve(self, mine: Fetch, deadline: float | None) -> None:
        """Set bytes aside for a fetch, waiting for others to end where there is no room."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._in_flight == 0 or self._in_flight + mine.size <= self.cache_max,
                _left(deadline),
            ):
                raise _waited_too_long(mine.locator)
            self._make_room(mine.size)
            self._in_flight += mine.size

    def _has_place_for(self, size: int) -> bool:
        """Tell whether throwing out blocks can make room; a size hint may have been too low."""
        return self._in_flight + size <= self.cache_max

    def _make_room(self, size: int) -> None:
        while self._blocks and self._in_flight + self._blocks.currsize + size > self.cache_max:
            self._blocks.popitem()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _waited_too_long(locator: KeepLocator) -> KeepReadError:
    return KeepReadError(
        f"failed to read {locator.stripped()}: others' fetches take too long",
        cause=Cause.TIMED_OUT,
    )
