"""Eviction: drop the block with the longest expected reuse distance.

The *reuse distance* of a block is the number of bytes of blocks visited between
two visits to it. The expected distance is the larger of the last distance and the
bytes visited since the last visit. So a block visited once is evicted before one
that is visited repeatedly. A loop over more blocks than fit keeps a part of them
cached, whereas LRU would keep none. (The order of Jiang and Zhang, "LIRS",
SIGMETRICS 2002.)

For one thread at a time: the cache's lock guards it.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cachetools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Blocks compared for an eviction: all if there are no more, else a random sample,
#: so that the cost doesn't grow with the number of blocks.
_SAMPLE = 64
#: Evicted blocks whose visits are recorded: 256 GiB of full blocks.
_MOST_REMEMBERED = 4096


@dataclass(slots=True)
class _Visits:
    """The recorded visits of a block.

    Attributes:
        size: Its size, in bytes.
        last: Its last visit, as the total of bytes visited until then.
        distance: The reuse distance, in bytes; infinite after a single visit.
    """

    size: int
    last: int
    distance: float = float("inf")


class ReuseCache(cachetools.Cache[str, memoryview]):
    """Blocks by digest, bounded in bytes.

    A block that a sequential reader is using is evicted only if no other is left: it
    would be fetched again for each of its parts. An exception in the middle of a change, as
    of Ctrl-C, empties the cache: its tables would disagree.

    Args:
        maxsize: Most bytes.
        clock: Returns seconds, like `time.monotonic`.
    """

    def __init__(self, maxsize: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begin(maxsize)

    def _begin(self, maxsize: float) -> None:
        super().__init__(maxsize, getsizeof=len)
        #: Total of bytes visited.
        self._visited = 0
        self._here: dict[str, _Visits] = {}
        self._gone: OrderedDict[str, _Visits] = OrderedDict()
        # Blocks with a sequential reader, and the time until which it counts as active.
        self._kept_until: dict[str, float] = {}
        # A list of the keys, so that a sample costs no pass over all.
        self._keys: list[str] = []
        self._at: dict[str, int] = {}

    def __setitem__(self, key: str, block: memoryview) -> None:
        """Add a block, and count a visit.

        Raises:
            ValueError: The block is larger than the cache.
        """
        if len(block) > self.maxsize:
            raise ValueError("value too large")
        try:
            known = key in self
            super().__setitem__(key, block)
            if known:
                self._visit(key)
                return
            self._at[key] = len(self._keys)
            self._keys.append(key)
            gone = self._gone.pop(key, None)
            if gone is None:
                self._visited += len(block)
                self._here[key] = _Visits(len(block), self._visited)
            else:
                self._here[key] = gone
                self._visit(key)
        except BaseException:
            self._begin(self.maxsize)
            raise

    def __delitem__(self, key: str) -> None:
        """Evict a block; keep the record of its visits.

        Raises:
            KeyError: It is not cached.
        """
        if key not in self:
            raise KeyError(key)
        try:
            super().__delitem__(key)
            at, last = self._at.pop(key), self._keys.pop()
            if last != key:
                self._keys[at] = last
                self._at[last] = at
            self._kept_until.pop(key, None)
            self._gone[key] = self._here.pop(key)
            if len(self._gone) > _MOST_REMEMBERED:
                self._gone.popitem(last=False)
        except BaseException:
            self._begin(self.maxsize)
            raise

    def clear(self) -> None:
        """Evict every block."""
        for key in list(self):
            del self[key]

    def read(self, key: str, keep_for: float) -> None:
        """Record a read of a cached block whose reader goes on for `keep_for` seconds."""
        if key not in self._going_through():  # else it is part of the same visit
            self._visit(key)
        self.expect(key, keep_for)

    def expect(self, key: str, keep_for: float) -> None:
        """Keep a cached block for a sequential reader for `keep_for` seconds; 0: no longer."""
        if keep_for > 0:
            self._kept_until[key] = self._clock() + keep_for
        else:
            self._kept_until.pop(key, None)

    def was_here(self, key: str) -> bool:
        """Return whether an uncached block is among the 4,096 evicted last."""
        return key in self._gone

    def size_to_keep(self, key: str) -> int:
        """Return the cache size, in bytes, that would have kept an evicted block."""
        gone = self._gone[key]
        visits = (*self._here.values(), *self._gone.values())
        return sum(each.size for each in visits if each.last >= gone.last)

    def patience(self) -> float:
        """Return the seconds until the first sequential reader no longer counts as active.

        0 if a block has no sequential reader, or if there are no blocks.
        """
        going = self._going_through()
        if len(going) < len(self._keys) or not going:
            return 0.0
        return max(0.001, min(going.values()) - self._clock())

    def busy_size(self) -> int:
        """Return the bytes of the blocks with a sequential reader."""
        return sum(self._here[key].size for key in self._going_through())

    def popitem(self) -> tuple[str, memoryview]:
        """Evict the block with the longest expected reuse distance, and return it.

        Raises:
            KeyError: The cache is empty.
        """
        if not self._keys:
            raise KeyError("the cache is empty")
        few = len(self._keys) <= _SAMPLE
        drawn = self._keys if few else random.sample(self._keys, _SAMPLE)
        going = self._going_through()
        free = [key for key in drawn if key not in going]
        if not free and len(going) < len(self._keys):
            free = [key for key in self._keys if key not in going]
        key = self._latest(free or self._keys)
        block = self[key]
        del self[key]
        return key, block

    def _going_through(self) -> dict[str, float]:
        """Return the blocks with a sequential reader, after removing expired ones."""
        now = self._clock()
        for key in [key for key, until in self._kept_until.items() if until <= now]:
            del self._kept_until[key]
        return self._kept_until

    def _latest(self, keys: Iterable[str]) -> str:
        def expected(key: str) -> tuple[float, int]:
            visits = self._here[key]
            # Of blocks with equal distances, evict the one visited last.
            return max(visits.distance, self._visited - visits.last), visits.last

        return max(keys, key=expected)

    def _visit(self, key: str) -> None:
        visits = self._here[key]
        visits.distance = self._visited - visits.last
        self._visited += visits.size
        visits.last = self._visited
