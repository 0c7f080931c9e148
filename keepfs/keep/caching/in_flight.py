"""Fetches under way, and the bytes of a cache's budget that are set aside for them.

A fetch sets its bytes aside before it asks anybody, so that no more requests are
open than there is memory for. While no byte of the block has come it holds no
memory: after a while it loses its bytes to a fetch that waits, and sets them aside
anew when the block begins to come. Small blocks have bytes of their own, and while
all large ones stall in mid-block there is room for one more.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from keepfs.keep.errors import fresh_copy
from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.locator import KeepLocator

#: Bytes of a small block: what a service sends in some 10 ms over 1 Gbit/s. Of a
#: small cache, a 64th.
_SMALL = 1024 * 1024
_SMALL_SHARE = 64
#: Small blocks that are fetched beyond the budget; 16 MiB, of the 60 MiB that keepfs
#: may take beside it.
_MOST_SMALL = 16
#: Seconds after which a fetch that has received nothing loses its bytes. Guessed:
#: a service that is well answers sooner, and a reader waits that long without complaint.
SILENT = 2.0
#: Seconds without a byte given back after which there is room for one more block, since
#: those that hold the budget stall. Guessed: 64 MiB in that time are 20 MB/s.
STUCK = 3.0


class Fetch:
    """One fetch under way, and who waits for it.

    Args:
        locator: The block's name.
        effort: How persistent it is: its rounds after the first.
        claims: Whether it calls `allocate_for` when the block begins to come,
            and has no memory for it before.
        deadline: When its caller gives up, on the monotonic clock; None for never.
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
        """Wake everybody: there is a block now, a failure, or neither if it never ran."""
        self.done.set()
        self._answered.set()

    def wait_for_size(self, timeout: float) -> int | None:
        """Wait until the block is known to be there, and return its size.

        Returns:
            None if `timeout` seconds brought no answer, or the fetch never ran.

        Raises:
            Exception: A copy of what the fetch raised.
        """
        if not self._answered.wait(max(0.0, timeout)):
            return None
        if self.failure is not None:
            raise fresh_copy(self.failure)
        return self._announced if self.block is None else len(self.block)


class Reservations:
    """The bytes that are set aside for fetches. Not for threads: the cache's lock guards it.

    Invariant: `size` is at most `limit()`, but for one fetch larger than all of it, and
    for small blocks, which together take at most `_MOST_SMALL` times the largest of them more.

    Args:
        budget: Bytes.
        clock: Seconds.
    """

    def __init__(self, budget: int, clock: Callable[[], float]) -> None:
        self._budget = budget
        self._clock = clock
        self._block = min(MAX_BLOCK_SIZE, budget)
        self._small = min(_SMALL, budget // _SMALL_SHARE)
        # When each fetch set its bytes aside; None once its block is being received.
        self._held: dict[Fetch, float | None] = {}
        # Of these, who came when the others were stuck; and when the others last gave bytes back.
        self._late: set[Fetch] = set()
        self._moved_at = clock()
        #: Bytes set aside.
        self.size = 0

    def __contains__(self, fetch: Fetch) -> bool:
        return fetch in self._held

    def add(self, fetch: Fetch) -> None:
        """Set a fetch's bytes aside, once."""
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
        """Give a fetch's bytes back, if it has any."""
        if fetch in self._held:
            if fetch in self._late:
                self._late.remove(fetch)
            else:
                self._moved_at = self._clock()
            del self._held[fetch]
            self.size -= fetch.size

    def receive(self, fetch: Fetch, size: int) -> bool:
        """Note that a fetch has memory now, for a block of so many bytes; it keeps its bytes.

        Returns:
            Whether it gave some back, needing less.
        """
        if fetch not in self._held:
            return False
        self._held[fetch] = None
        excess = max(0, fetch.size - size)
        self.size -= excess
        fetch.size -= excess
        return excess > 0

    def limit(self) -> int:
        """Return how many bytes may be set aside or cached now.

        That is the budget, and one block more while those who hold it are stuck.
        """
        return self._budget + (self._block if self._is_stuck() else 0)

    def _is_stuck(self) -> bool:
        """Tell whether those who leave no room for a block have given nothing back for long."""
        held = self.size - sum(each.size for each in self._late)
        return held > self._budget - self._block and self._clock() >= self._moved_at + STUCK

    def fits(self, size: int) -> bool:
        """Tell whether so many bytes can be set aside beside the others."""
        return self.size == 0 or self.size + size <= self.limit()

    def is_small(self, size: int) -> bool:
        """Tell whether a block of so many bytes is a small one."""
        return size <= self._small

    def fits_beyond(self, size: int) -> bool:
        """Tell whether a block is small, and few enough small ones are being fetched."""
        if not self.is_small(size):
            return False
        taken = sum(each.size for each in self._held if self.is_small(each.size))
        return taken + size <= _MOST_SMALL * self._small

    def take_back(self, size: int) -> float | None:
        """Make so many bytes fit at the cost of fetches that have been silent for long.

        Returns:
            Seconds after which to try again; None if there is no use in it.
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
