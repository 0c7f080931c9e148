"""KeepBlockCache: blocks in memory, bounded in bytes, one fetch per block.

Blocks never change, so a cached block is never stale; it is verified before
it comes in. Every method may be called from any thread. The lock is held for
arithmetic only: fetching happens outside. Which block goes when there is no
room is the business of `keepfs.keep.reuse`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keepfs.keep.buffers import FreshRoom
from keepfs.keep.errors import Cause, KeepReadError, fresh_copy
from keepfs.keep.locator import MAX_BLOCK_SIZE
from keepfs.keep.reuse import ReuseCache
from keepfs.keep.thrash import Thrash

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.buffers import Room
    from keepfs.keep.locator import KeepLocator

#: Bytes, as in the SDK: four blocks of the largest size.
DEFAULT_CACHE_MAX = 256 * 1024 * 1024
#: Seconds for which a block that was fetched for somebody who isn't here yet is
#: kept for them. Guessed: longer than a program stops for between two reads.
KEPT_FOR_READER = 1.0
#: Seconds for which a fetch waits, at most, for readers to come to the ends of
#: their blocks. Guessed: many of them take turns, and a slow one stops nobody.
_YIELDING = 5.0


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
        refetched: Of the misses, blocks that had been here and were thrown out.
    """

    maxsize: int
    currsize: int
    in_flight: int
    blocks: int
    hits: int
    misses: int
    joined: int
    refetched: int

    @property
    def refetch_ratio(self) -> float:
        """Which part of the misses a larger cache would have spared; 0.0 without any."""
        return self.refetched / self.misses if self.misses else 0.0


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
    """Blocks by their digest; the one that will be wanted last is thrown out first.

    Invariants: cached bytes plus bytes being fetched never exceed
    `cache_max`, but for a single block larger than all of it, which is
    fetched alone and not kept; at most one fetch per block is under way; a
    failed fetch leaves nothing behind. A block larger than its locator said
    is kept only where it fits.

    Args:
        cache_max: Bytes; the default where it is 0, as in the SDK.
        max_slots: The SDK's; ignored, as bytes alone are the bound.
        disk_cache: The SDK's; ignored: blocks are kept in memory.
        disk_cache_dir: The SDK's; ignored.
        allocate: Makes the memory that its blocks are fetched into.
        clock: Seconds, instead of `time.monotonic`.
    """

    def __init__(
        self,
        cache_max: int = DEFAULT_CACHE_MAX,
        max_slots: int = 0,  # noqa: ARG002 - the SDK's
        disk_cache: object = False,  # noqa: ARG002, FBT002 - the SDK's
        disk_cache_dir: object = None,  # noqa: ARG002 - the SDK's
        *,
        allocate: Callable[[int], Room] = FreshRoom,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        cache_max = cache_max or DEFAULT_CACHE_MAX
        self.cache_max = cache_max
        self.allocate = allocate
        self._clock = clock
        self._changed = threading.Condition()
        self._blocks = ReuseCache(cache_max, clock)
        self._thrash = Thrash(cache_max, clock)
        self._fetches: dict[str, Fetch] = {}
        self._in_flight = 0
        self._waiting = 0
        self._hits = self._misses = self._joined = self._refetched = 0

    def get_nowait(self, md5sum: str, keep_for: float = 0.0) -> memoryview | None:
        """Return the block if it is here, else None. Never waits.

        Args:
            md5sum: The block's digest.
            keep_for: Seconds in which the caller will read on in the block,
                going through it in order: so long others go before it.
        """
        with self._changed:
            return self._found(md5sum, keep_for)

    def has_room(self, size: int) -> bool:
        """Tell whether a block of so many bytes could be fetched without waiting for others."""
        with self._changed:
            taken = self._in_flight + size
            if taken + self._blocks.currsize <= self.cache_max:
                return True
            return taken + self._blocks.busy_size() <= self.cache_max

    def get_or_fetch(
        self,
        locator: KeepLocator,
        fetch: Callable[[], bytes | memoryview],
        effort: int = 0,
        timeout: float | None = None,
        keep_for: float = 0.0,
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
            keep_for: Seconds in which the caller will go through the block in parts.

        Raises:
            KeepReadError: Others took too long (cause TIMED_OUT).
            Exception: What `fetch` raised; a copy, for callers that waited.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            block, running, is_mine = self._join(locator, effort, keep_for)
            if block is not None:
                return block
            if is_mine:
                return self._fetch(running, fetch, deadline, keep_for)
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

        Whoever has it fetched is about to go through it.

        Args:
            locator: The block's name.
            fetch: Returns the block's verified bytes, or raises.
            spawn: Runs what it is given in another thread.
            effort: How persistent `fetch` is.
        """
        block, running, is_mine = self._join(locator, effort, KEPT_FOR_READER)
        if block is not None:
            return block

        def run() -> None:
            # Whoever waits is told of the failure; nobody else needs to be.
            with contextlib.suppress(Exception):
                self._fetch(running, fetch, None, KEPT_FOR_READER)

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

    def _found(self, md5sum: str, keep_for: float) -> memoryview | None:
        block = self._blocks.get(md5sum)
        if block is not None:
            self._hits += 1
            self._blocks.read(md5sum, keep_for)
            if not keep_for and self._waiting:
                self._changed.notify_all()
        return block

    def _join(
        self, locator: KeepLocator, effort: int, keep_for: float
    ) -> tuple[memoryview | None, Fetch, bool]:
        """Return the block if it is here; else its fetch, and whether that is the caller's."""
        with self._changed:
            block = self._found(locator.md5sum, keep_for)
            if block is not None:
                return block, Fetch(locator), False
            running = self._fetches.get(locator.md5sum)
            if running is not None:
                self._joined += 1
                return None, running, False
            mine = self._fetches[locator.md5sum] = Fetch(locator, effort)
            self._misses += 1
            self._note_miss(locator.md5sum)
            return None, mine, True

    def _note_miss(self, md5sum: str) -> None:
        was_here = self._blocks.was_here(md5sum)
        self._refetched += was_here
        self._thrash.missed((lambda: self._blocks.size_to_keep(md5sum)) if was_here else None)

    def _fetch(
        self,
        mine: Fetch,
        fetch: Callable[[], bytes | memoryview],
        deadline: float | None,
        keep_for: float,
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
                    self._blocks.expect(mine.locator.md5sum, keep_for)
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
                refetched=self._refetched,
            )

    def _reserve(self, mine: Fetch, deadline: float | None) -> None:
        """Set bytes aside for a fetch, waiting for others where there is no room.

        For fetches under way to end, and a while for those who go through a
        block to come to its end: were it taken from them, they would have it
        fetched again for each part of it, and so on by turns.
        """
        with self._changed:
            self._waiting += 1
            try:
                self._wait_for_room(mine, deadline)
            finally:
                self._waiting -= 1
            self._make_room(mine.size)
            self._in_flight += mine.size

    def _wait_for_room(self, mine: Fetch, deadline: float | None) -> None:
        yielding_until = self._clock() + _YIELDING
        while True:
            fits = self._in_flight == 0 or self._in_flight + mine.size <= self.cache_max
            patience = None
            if fits:
                if self._in_flight + self._blocks.currsize + mine.size <= self.cache_max:
                    return
                patience = min(self._blocks.patience(), yielding_until - self._clock())
                if patience <= 0:
                    return
            left = _left(deadline)
            if left == 0:
                raise _waited_too_long(mine.locator)
            self._changed.wait(
                min((it for it in (patience, left) if it is not None), default=None)
            )

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
