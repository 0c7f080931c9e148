"""KeepBlockCache: blocks in memory, bounded in bytes, one fetch per block.

Blocks never change, so a cached block is never stale; it is verified before it is
cached. Any thread may call any method. The lock is never held during a fetch.
`keepfs.keep.caching.reuse` chooses the block to evict.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from keepfs.keep.buffers import FreshAllocation
from keepfs.keep.caching.cache_statistics import CacheStatistics
from keepfs.keep.caching.disk.sharing import shared_disk_cache
from keepfs.keep.caching.in_flight import Fetch, Reservations
from keepfs.keep.caching.reuse import ReuseCache
from keepfs.keep.caching.thrash import Thrash
from keepfs.keep.errors import Cause, KeepReadError, fresh_copy
from keepfs.keep.forks import renew_in_children

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from keepfs.keep.buffers import Allocation
    from keepfs.keep.caching.disk.disk_cache import DiskCache
    from keepfs.keep.locator import KeepLocator

#: Bytes, as in the SDK: four blocks of the largest size.
DEFAULT_CACHE_MAX = 256 * 1024 * 1024
#: Seconds for which a prefetched block is kept for its reader. Guessed: longer than a
#: program pauses between two reads.
KEPT_FOR_READER = 1.0
#: Most seconds for which a fetch waits for sequential readers to finish their blocks.
#: Guessed: many readers take turns, and a slow one doesn't block the others.
_YIELDING = 5.0


class KeepBlockCache:
    """Blocks by digest; evicts the block with the longest expected reuse distance.

    Invariants:

    - Cached bytes plus bytes being fetched never exceed `cache_max`, with three
      exceptions: a single block larger than `cache_max`, which is fetched alone and
      not kept; a few small blocks (16 MiB together at most), which never wait for
      large ones; one more block while the fetches that hold all bytes stall.
    - At most one fetch per block is in progress.
    - A failed fetch leaves nothing behind.
    - A block larger than its locator's size is kept only if it fits.

    Args:
        cache_max: Most bytes; 0: the default, as in the SDK.
        max_slots: Of the SDK; ignored: the bound is in bytes.
        disk_cache: Of the SDK: whether to keep blocks on the disk too. `cache_max` is then
            the budget of the disk, 0 for `automatic_budget`; memory has the default. Caches of
            one directory and budget share the disk tier.
        disk_cache_dir: Of the SDK: the directory; None: the user's cache directory.
        disk: The disk tier, with a separate budget; replaces the two above.
        allocate: Allocates the memory that blocks are fetched into.
        clock: Replaces `time.monotonic`, in seconds, except for timeouts.
    """

    def __init__(
        self,
        cache_max: int = 0,
        max_slots: int = 0,  # noqa: ARG002 - the SDK's
        disk_cache: object = False,  # noqa: FBT002 - the SDK's
        disk_cache_dir: str | os.PathLike[str] | None = None,
        *,
        disk: DiskCache | None = None,
        allocate: Callable[[int], Allocation] = FreshAllocation,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if disk_cache and disk is None:
            disk, cache_max = shared_disk_cache(disk_cache_dir, cache_max), 0
        #: The disk tier; None without one.
        self.disk = disk
        cache_max = cache_max or DEFAULT_CACHE_MAX
        self.cache_max = cache_max
        self.allocate = allocate
        self._clock = clock
        # Entered directly: that of the condition adds two calls of Python.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._blocks = ReuseCache(cache_max, clock)
        self._thrash = Thrash(cache_max, clock)
        self._fetches: dict[str, Fetch] = {}
        self._in_flight = Reservations(cache_max, clock)
        self._waiting = 0
        self._hits = self._misses = self._joined = self._refetched = 0
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Forget, in a forked child, the fetches that threads of the parent do; see `forks`."""
        is_consistent = self._lock.acquire(blocking=False)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        if not is_consistent:  # a thread of the parent was changing it
            self._blocks = ReuseCache(self.cache_max, self._clock)
            self._thrash = Thrash(self.cache_max, self._clock)
        abandoned, self._fetches = self._fetches, {}
        self._in_flight = Reservations(self.cache_max, self._clock)
        self._waiting = 0
        for each in abandoned.values():
            each.abandon()

    def get_nowait(self, md5sum: str, keep_for: float | None = 0.0) -> memoryview | None:
        """Return the block if it is cached, else None. Doesn't block.

        Args:
            md5sum: The block's digest.
            keep_for: Seconds for which a sequential reader expects to go on reading
                the block; other blocks are evicted before it until then. None: it is not
                read, so neither the hits nor its reuse distance change.
        """
        with self._lock:
            return self._blocks.get(md5sum) if keep_for is None else self._found(md5sum, keep_for)

    def release(self, md5sum: str) -> None:
        """End the effect of `keep_for` on a block, and wake fetches that wait for it.

        Neither the hits nor the reuse distance of the block change.

        Args:
            md5sum: The block's digest; a block that is not cached is ignored.
        """
        with self._lock:
            self._blocks.expect(md5sum, 0.0)
            if self._waiting:
                self._changed.notify_all()

    def has_room(self, size: int) -> bool:
        """Return whether a block of `size` bytes can be fetched without waiting for memory."""
        with self._lock:
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
        """Return the block, from memory or from `fetch`. Blocks.

        If several callers need one block, one fetches it; the others wait and share
        the result or the failure. A failure isn't shared if the locators have different
        hints, which may be the cause, or if the fetch made less effort.

        Args:
            locator: The block's locator.
            fetch: Returns the block's verified bytes, or raises.
            effort: How persistent `fetch` is: its rounds after the first.
            timeout: Seconds to wait for other fetches, of this block or for their
                memory; None for no limit.
            keep_for: Seconds for which the caller expects to go on reading the block.
            claims: Whether `fetch` takes its memory from `allocate_for` when the first
                bytes of the block arrive.

        Raises:
            KeepReadError: Other fetches took too long (cause TIMED_OUT).
            Exception: `fetch` failed; callers that waited get a copy.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            mine = Fetch(locator, effort, claims=claims, deadline=deadline)
            try:
                block, running = self._join(mine, keep_for)
                if block is not None:
                    return block
                if running is mine:
                    return self._fetch(mine, fetch, keep_for)
            except BaseException:
                self._forget(mine)
                raise
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
        """Return the cached block, or its fetch, started now or before. Doesn't block.

        The block is kept for a sequential reader. If `spawn` raises, callers that joined
        the fetch meanwhile continue without it: `get_or_fetch` then fetches the block.

        Args:
            locator: The block's locator.
            fetch: Returns the block's verified bytes, or raises.
            spawn: Runs a function in another thread.
            effort: How persistent `fetch` is: its rounds after the first.
            claims: See `get_or_fetch`.
        """
        mine = Fetch(locator, effort, claims=claims)
        block, running = self._join(mine, KEPT_FOR_READER)
        if block is not None:
            return block

        def run() -> None:
            # `Fetch` passes the failure to the callers that wait.
            with contextlib.suppress(Exception):
                self._fetch(mine, fetch, KEPT_FOR_READER)

        if running is mine:
            try:
                spawn(run)
            except BaseException:
                self._forget(mine)
                raise
        return running

    def announce(self, locator: KeepLocator, size: int) -> None:
        """Set a block's size for waiting callers: a service has started to send the block."""
        with self._lock:
            running = self._fetches.get(locator.md5sum)
        if running is not None:
            running.announce(size)

    def allocate_for(
        self,
        locator: KeepLocator,
        size: int,
        allocate: Callable[[int], Allocation] | None = None,
    ) -> Allocation:
        """Return memory for a block being fetched whose first bytes have arrived.

        Blocks if the fetch has lost its reservation to another fetch meanwhile.

        Args:
            locator: The block's locator.
            size: The size of the block, in bytes.
            allocate: Allocates the memory; None: the cache's own `allocate`.

        Raises:
            KeepReadError: Other fetches take too long, or the fetch has ended meanwhile.
        """
        with self._lock:
            running = self._fetches.get(locator.md5sum)
            if running is not None:
                if running not in self._in_flight:
                    self._reserve(running)
                if self._in_flight.receive(running, size):
                    self._changed.notify_all()
        return (allocate or self.allocate)(size)

    def _found(self, md5sum: str, keep_for: float) -> memoryview | None:
        block = self._blocks.get(md5sum)
        if block is not None:
            self._hits += 1
            self._blocks.read(md5sum, keep_for)
            if not keep_for and self._waiting:
                self._changed.notify_all()
        return block

    def _join(self, mine: Fetch, keep_for: float) -> tuple[memoryview | None, Fetch]:
        """Return the cached block, or the fetch in progress: `mine` if there was none."""
        md5sum = mine.locator.md5sum
        with self._lock:
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
            with self._lock:
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
            with self._lock:
                self._fetches.pop(mine.locator.md5sum, None)  # None after a fork meanwhile
                self._in_flight.discard(mine)
                if mine.block is not None:
                    self._keep(mine.locator.md5sum, mine.block, keep_for)
                if not self._is_free(0):
                    self._make_room(0)
                if self._waiting:
                    self._changed.notify_all()
            mine.end()
        return mine.block

    def _forget(self, mine: Fetch) -> None:
        """End a fetch after an exception that `_fetch` did not handle."""
        with self._lock:
            if self._fetches.get(mine.locator.md5sum) is mine:
                del self._fetches[mine.locator.md5sum]
            self._in_flight.discard(mine)
            self._changed.notify_all()
        mine.end()

    def _keep(self, md5sum: str, block: memoryview, keep_for: float) -> None:
        """Cache a block if it fits: its locator's size may have been too low."""
        size = len(block)
        if not self._is_free(size):
            limit = self._in_flight.limit()
            if self._in_flight.size + size > limit:
                return
            fits = self._in_flight.size + self._blocks.currsize + size <= limit
            if not fits and self._in_flight.is_small(size) and self._blocks.patience():
                return  # a small block that didn't wait must not evict a large one being read
            self._make_room(size)
        self._blocks[md5sum] = block
        self._blocks.expect(md5sum, keep_for)

    def clear(self) -> None:
        """Evict every block; fetches in progress go on."""
        with self._lock:
            self._blocks.clear()

    def statistics(self) -> CacheStatistics:
        """Return a consistent snapshot of the state and counters."""
        with self._lock:
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
        """Reserve memory for a fetch; wait if there is none.

        The wait is for other fetches to end, and up to 5 s for sequential readers to finish
        their blocks. If such a block were evicted, it would be fetched again for each part
        that its reader reads, and would evict others in turn.
        """
        if not self._is_free(mine.size):
            self._waiting += 1
            try:
                self._wait_for_room(mine)
            finally:
                self._waiting -= 1
        self._in_flight.add(mine)

    def _is_free(self, size: int) -> bool:
        """Return whether `size` bytes fit without an eviction."""
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


def given_or_new(given: object) -> KeepBlockCache:
    """Return the given cache, or a new one if None is given.

    Raises:
        TypeError: `given` is another kind of cache.
    """
    if given is None:
        return KeepBlockCache()
    if isinstance(given, KeepBlockCache):
        return given
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    raise TypeError(f"block_cache is a {kind}: give a keepfs.keep.KeepBlockCache")


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _waited_too_long(locator: KeepLocator) -> KeepReadError:
    return KeepReadError(
        f"failed to read {locator.stripped()}: fetches of other blocks take too long",
        cause=Cause.TIMED_OUT,
    )
