"""KeepBlockCache: blocks in memory, bounded in bytes, one fetch per block.

Blocks never change, so a cached block is never stale; it is verified before
it comes in. Every method may be called from any thread. The lock is held for
arithmetic only: fetching happens outside. Which block goes when there is no
room is the business of `keepfs.keep.caching.reuse`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keepfs.keep.buffers import FreshAllocation
from keepfs.keep.caching.in_flight import Fetch, Reservations
from keepfs.keep.caching.reuse import ReuseCache
from keepfs.keep.caching.thrash import Thrash
from keepfs.keep.errors import Cause, KeepReadError, fresh_copy

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.buffers import Allocation
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


class KeepBlockCache:
    """Blocks by their digest; the one that will be wanted last is thrown out first.

    Invariants: cached bytes plus bytes being fetched never exceed
    `cache_max`, but for a single block larger than all of it, which is
    fetched alone and not kept, for a few small blocks (16 MiB together at
    most), which never wait for large ones, and for one block more while the fetches
    that hold all bytes stall; at most one fetch per block is under
    way; a failed fetch leaves nothing behind. A block larger than its locator said
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
        allocate: Callable[[int], Allocation] = FreshAllocation,
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
        self._in_flight = Reservations(cache_max, clock)
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
            taken = self._in_flight.size + size
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
        *,
        claims: bool = False,
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
            claims: Whether `fetch` takes its memory from `allocate_for`, as late
                as the block begins to come.

        Raises:
            KeepReadError: Others took too long (cause TIMED_OUT).
            Exception: What `fetch` raised; a copy, for callers that waited.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            mine = Fetch(locator, effort, claims=claims, deadline=deadline)
            block, running = self._join(mine, keep_for)
            if block is not None:
                return block
            if running is mine:
                return self._fetch(mine, fetch, keep_for)
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
        *,
        claims: bool = False,
    ) -> Fetch | memoryview:
        """Return the block if it is here, else its fetch: begun by now, or joined. Doesn't wait.

        Whoever has it fetched is about to go through it. If `spawn` raises, whoever
        joined the fetch meanwhile goes on without it: a `get_or_fetch` fetches itself.

        Args:
            locator: The block's name.
            fetch: Returns the block's verified bytes, or raises.
            spawn: Runs what it is given in another thread.
            effort: How persistent `fetch` is.
            claims: As of `get_or_fetch`.
        """
        mine = Fetch(locator, effort, claims=claims)
        block, running = self._join(mine, KEPT_FOR_READER)
        if block is not None:
            return block

        def run() -> None:
            # Whoever waits is told of the failure; nobody else needs to be.
            with contextlib.suppress(Exception):
                self._fetch(mine, fetch, KEPT_FOR_READER)

        if running is mine:
            try:
                spawn(run)
            except BaseException:
                with self._changed:
                    del self._fetches[locator.md5sum]
                mine.end()
                raise
        return running

    def announce(self, locator: KeepLocator, size: int) -> None:
        """Tell those who wait for a block's size that a service has begun to send it."""
        with self._changed:
            running = self._fetches.get(locator.md5sum)
        if running is not None:
            running.announce(size)

    def allocate_for(self, locator: KeepLocator, size: int) -> Allocation:
        """Return memory for a block whose fetch is under way, as it begins to come.

        Waits for room if the fetch has lost its own to another meanwhile.

        Args:
            locator: The block's name.
            size: Bytes.

        Raises:
            KeepReadError: Others take too long, or the fetch has ended meanwhile.
        """
        with self._changed:
            running = self._fetches.get(locator.md5sum)
            if running is not None:
                if running not in self._in_flight:
                    self._reserve(running)
                if self._in_flight.receive(running, size):
                    self._changed.notify_all()
        return self.allocate(size)

    def _found(self, md5sum: str, keep_for: float) -> memoryview | None:
        block = self._blocks.get(md5sum)
        if block is not None:
            self._hits += 1
            self._blocks.read(md5sum, keep_for)
            if not keep_for and self._waiting:
                self._changed.notify_all()
        return block

    def _join(self, mine: Fetch, keep_for: float) -> tuple[memoryview | None, Fetch]:
        """Return the block if it is here; else its fetch, which is `mine` if there was none."""
        md5sum = mine.locator.md5sum
        with self._changed:
            block = self._found(md5sum, keep_for)
            if block is not None:
                return block, mine
            running = self._fetches.setdefault(md5sum, mine)
            if running is not mine:
                self._joined += 1
                return None, running
            self._misses += 1
            self._note_miss(md5sum)
            return None, mine

    def _note_miss(self, md5sum: str) -> None:
        was_here = self._blocks.was_here(md5sum)
        self._refetched += was_here
        self._thrash.missed((lambda: self._blocks.size_to_keep(md5sum)) if was_here else None)

    def _fetch(
        self, mine: Fetch, fetch: Callable[[], bytes | memoryview], keep_for: float
    ) -> memoryview:
        try:
            with self._changed:
                self._reserve(mine)
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
                self._in_flight.discard(mine)
                if mine.block is not None:
                    self._keep(mine.locator.md5sum, mine.block, keep_for)
                if not self._is_free(0):
                    self._make_room(0)
                self._changed.notify_all()
            mine.end()
        return mine.block

    def _keep(self, md5sum: str, block: memoryview, keep_for: float) -> None:
        """Put a block in, if there is a place for it; a size hint may have been too low."""
        size = len(block)
        if not self._is_free(size):
            limit = self._in_flight.limit()
            if self._in_flight.size + size > limit:
                return
            fits = self._in_flight.size + self._blocks.currsize + size <= limit
            if not fits and self._in_flight.is_small(size) and self._blocks.patience():
                return  # it didn't wait for those who go through large blocks, nor costs them one
            self._make_room(size)
        self._blocks[md5sum] = block
        self._blocks.expect(md5sum, keep_for)

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
                in_flight=self._in_flight.size,
                blocks=len(self._blocks),
                hits=self._hits,
                misses=self._misses,
                joined=self._joined,
                refetched=self._refetched,
            )

    def _reserve(self, mine: Fetch) -> None:
        """Set bytes aside for a fetch, waiting for others where there is no room.

        For fetches under way to end, and a while for those who go through a
        block to come to its end: were it taken from them, they would have it
        fetched again for each part of it, and so on by turns.
        """
        if not self._is_free(mine.size):
            self._waiting += 1
            try:
                self._wait_for_room(mine)
            finally:
                self._waiting -= 1
        self._in_flight.add(mine)

    def _is_free(self, size: int) -> bool:
        """Tell whether there is room for so many bytes at nobody's cost."""
        return self._in_flight.size + self._blocks.currsize + size <= self.cache_max

    def _wait_for_room(self, mine: Fetch) -> None:
        yielding_until = self._clock() + _YIELDING
        patience: float | None
        while mine not in self._in_flight:
            if self._fetches.get(mine.locator.md5sum) is not mine:
                raise KeepReadError(f"the fetch of {mine.locator.stripped()} has ended")
            fits = self._in_flight.fits(mine.size)
            taken = self._in_flight.size + mine.size
            if fits and taken + self._blocks.currsize <= self._in_flight.limit():
                return
            if self._in_flight.fits_beyond(mine.size):
                if fits and not self._blocks.patience():
                    self._make_room(mine.size)
                return
            if fits:
                patience = min(self._blocks.patience(), yielding_until - self._clock())
                if patience <= 0:
                    self._make_room(mine.size)
                    return
            else:
                patience = self._in_flight.take_back(mine.size)
                if patience == 0:
                    continue
            left = _left(mine.deadline)
            if left == 0:
                raise _waited_too_long(mine.locator)
            self._changed.wait(
                min((it for it in (patience, left) if it is not None), default=None)
            )

    def _make_room(self, size: int) -> None:
        most = self._in_flight.limit() - self._in_flight.size - size
        while self._blocks and self._blocks.currsize > most:
            self._blocks.popitem()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _waited_too_long(locator: KeepLocator) -> KeepReadError:
    return KeepReadError(
        f"failed to read {locator.stripped()}: others' fetches take too long",
        cause=Cause.TIMED_OUT,
    )
