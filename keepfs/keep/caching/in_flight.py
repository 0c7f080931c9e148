"""Fetches in progress, and their reservations of bytes in a cache's budget.

A fetch reserves its bytes before it sends a request, so that the open requests never
need more memory than there is. Until the first byte of the block arrives it holds no
memory: after 2 s a waiting fetch may take its reservation, and it reserves again when
the block arrives. Small blocks have a separate budget. While all fetches of large
blocks stall, one more block may be reserved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.keep.errors import fresh_copy
from keepfs.keep.locator import MAX_BLOCK_SIZE
from keepfs.keep.threads import LazyEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.locator import KeepLocator

#: Largest small block, in bytes: a service sends it in about 10 ms over 1 Gbit/s. For a
#: small cache it is a 64th of the budget.
_SMALL = 1024 * 1024
_SMALL_SHARE = 64
#: Most small blocks that are fetched beyond the budget: 16 MiB, of the 60 MiB that keepfs
#: may take in addition to it.
_MOST_SMALL = 16
#: Seconds after which a fetch that has received nothing may lose its reservation. Guessed:
#: a healthy service answers sooner, and a reader can wait that long.
SILENT = 2.0
#: Seconds without a released byte after which one more block may be reserved, since the
#: fetches that hold the budget stall. Guessed: 64 MiB in that time are 20 MB/s.
STUCK = 3.0


class Fetch:
    """One fetch in progress, and its result.

    Args:
        locator: The block's locator.
        effort: How persistent the fetch is: its rounds after the first.
        claims: Whether the fetch calls `allocate_for` when the first bytes arrive, and has
            no memory for the block before.
        deadline: The caller's deadline, on the monotonic clock, in seconds; or None.
    """

    def __init__(
        self,
        locator: KeepLocator,
        effort: int = 0,
        *,
        claims: bool = False,
        deadline: float | None = None,
    ) -> None:
        self.locator = locator
        self.effort = effort
        self.claims = claims
        self.deadline = deadline
        self.size = MAX_BLOCK_SIZE if locator.size is None else locator.size
        self.done = LazyEvent()
        self.block: memoryview | None = None
        self.failure: Exception | None = None
        self._answered = LazyEvent()
        self._announced: int | None = None

    def announce(self, size: int) -> None:
        """Set the block's size, and wake the callers of `wait_for_size`."""
        self._announced = size
        self._answered.set()

    def end(self) -> None:
        """Wake all callers: `block` or `failure` is set, or neither if it never ran."""
        self.done.set()
        self._answered.set()

    def abandon(self) -> None:
        """End it in a forked child, where nothing fetches it; no thread waits for it there."""
        self.done, self._answered = LazyEvent(), LazyEvent()
        self.end()

    def wait_for_size(self, timeout: float) -> int | None:
        """Wait until a service has confirmed the block, and return its size.

        Returns:
            None if there is no answer after `timeout` seconds, or the fetch never ran.

        Raises:
            Exception: The fetch failed; a copy of its exception.
        """
        if not self._answered.wait(max(0.0, timeout)):
            return None
        if self.failure is not None:
            raise fresh_copy(self.failure)
        return self._announced if self.block is None else len(self.block)


class Reservations:
    """The bytes reserved for fetches. Not thread-safe: the cache's lock guards it.

    Invariant: `size` is at most `limit()`, except for a single fetch larger than that, and
    for small blocks, which may exceed it by `_MOST_SMALL` times the size of a small block.

    Args:
        budget: The size of the cache, in bytes.
        clock: Returns seconds.
    """

    def __init__(self, budget: int, clock: Callable[[], float]) -> None:
        self._budget = budget
        self._clock = clock
        self._block = min(MAX_BLOCK_SIZE, budget)
        self._small = min(_SMALL, budget // _SMALL_SHARE)
        # The time of each fetch's reservation; None once its block is being received.
        self._held: dict[Fetch, float | None] = {}
        # The fetches added while others were stuck; and when the others last released bytes.
        self._late: set[Fetch] = set()
        self._moved_at = clock()
        #: Bytes reserved.
        self.size = 0

    def __contains__(self, fetch: Fetch) -> bool:
        return fetch in self._held

    def add(self, fetch: Fetch) -> None:
        """Reserve a fetch's bytes, unless they are reserved."""
        if fetch in self._held:
            return
        now = self._clock()
        if not self._held:
            self._moved_at = now
        elif self.size + fetch.size > self._budget and self._is_stuck():
            self._late.add(fetch)
        self._held[fetch] = now
        self.size += fetch.size

    def discard(self, fetch: Fetch) -> None:
        """Release a fetch's reservation, if it has one."""
        if fetch in self._held:
            if fetch in self._late:
                self._late.remove(fetch)
            else:
                self._moved_at = self._clock()
            del self._held[fetch]
        # Added up: an interrupted change of the size must not last.
        self.size = sum(each.size for each in self._held)

    def receive(self, fetch: Fetch, size: int) -> bool:
        """Record that a fetch has memory for a block of `size` bytes; it keeps its reservation.

        Returns:
            Whether it released some bytes because the block is smaller.
        """
        if fetch not in self._held:
            return False
        self._held[fetch] = None
        excess = max(0, fetch.size - size)
        self.size -= excess
        fetch.size -= excess
        return excess > 0

    def limit(self) -> int:
        """Return the bytes that may be reserved or cached now.

        That is the budget, plus one block while the fetches that hold it are stuck.
        """
        return self._budget + (self._block if self._is_stuck() else 0)

    def _is_stuck(self) -> bool:
        """Return whether fetches leave no room for a block and released nothing for 3 s."""
        held = self.size
        if self._late:
            held -= sum(each.size for each in self._late)
        return held > self._budget - self._block and self._clock() >= self._moved_at + STUCK

    def fits(self, size: int) -> bool:
        """Return whether `size` bytes can be reserved in addition."""
        return self.size == 0 or self.size + size <= self.limit()

    def is_small(self, size: int) -> bool:
        """Return whether a block of `size` bytes is a small one."""
        return size <= self._small

    def fits_beyond(self, size: int) -> bool:
        """Return whether a block is small and fits the separate budget of small blocks."""
        if not self.is_small(size):
            return False
        taken = sum(each.size for each in self._held if self.is_small(each.size))
        return taken + size <= _MOST_SMALL * self._small

    def take_back(self, size: int) -> float | None:
        """Release reservations of fetches silent for 2 s, until `size` bytes fit.

        Returns:
            0 if they fit; else the seconds after which to retry; None if a retry is useless.
        """
        waits = [it for it in (self._moved_at + STUCK - self._clock(),) if it > 0]
        for fetch, since in list(self._held.items()):  # the longest first
            if self.fits(size):
                return 0.0
            if since is None or not fetch.claims:
                continue
            left = since + SILENT - self._clock()
            if left > 0:
                waits.append(left)
            else:
                self.discard(fetch)
        return 0.0 if self.fits(size) else min(waits, default=None)
