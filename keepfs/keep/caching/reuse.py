"""Which block to throw out: the one that is expected to be wanted again the latest.

The *reuse distance* of a block is how many bytes of blocks were visited
between two visits to it. The longer of the last one and of what has been
visited since says when to expect the next visit. So a block seen once goes
before one that comes again and again, and a loop over more than the cache
holds keeps what fits of it, where "the least recently used first" would keep
nothing. (Jiang and Zhang, "LIRS", SIGMETRICS 2002, order blocks likewise.)

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

#: Blocks that are compared when one has to go: all, where there are no more.
#: Else a sample, so that very many small blocks cost no more.
_SAMPLE = 64
#: Blocks remembered though they were thrown out: 256 GiB of whole ones.
_MOST_REMEMBERED = 4096


@dataclass(slots=True)
class _Visits:
    """What is remembered of a block.

    Attributes:
        size: Bytes.
        last: When it was visited last, on the clock of bytes.
        distance: The reuse distance; infinite after a single visit.
    """

    size: int
    last: int
    distance: float = float("inf")


class ReuseCache(cachetools.Cache[str, memoryview]):
    """Blocks by their digest, bounded in bytes.

    A block that somebody is going through, in order, is thrown out only when
    nothing else is left: it would be fetched again for each of its parts.

    Args:
        maxsize: Bytes.
        clock: Seconds, as of `time.monotonic`.
    """

    def __init__(self, maxsize: int, clock: Callable[[], float]) -> None:
        super().__init__(maxsize, getsizeof=len)
        self._clock = clock
        #: Bytes visited so far.
        self._visited = 0
        self._here: dict[str, _Visits] = {}
        self._gone: OrderedDict[str, _Visits] = OrderedDict()
        # Blocks that somebody is going through, and until when that is believed.
        self._kept_until: dict[str, float] = {}
        # The keys once more, so that a sample is drawn without going through all.
        self._keys: list[str] = []
        self._at: dict[str, int] = {}

    def __setitem__(self, key: str, block: memoryview) -> None:
        """Put a block in, as visited now."""
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

    def __delitem__(self, key: str) -> None:
        """Throw a block out; that it was here is remembered."""
        super().__delitem__(key)
        at, last = self._at.pop(key), self._keys.pop()
        if last != key:
            self._keys[at] = last
            self._at[last] = at
        self._kept_until.pop(key, None)
        self._gone[key] = self._here.pop(key)
        if len(self._gone) > _MOST_REMEMBERED:
            self._gone.popitem(last=False)

    def clear(self) -> None:
        """Throw everything out."""
        for key in list(self):
            del self[key]

    def read(self, key: str, keep_for: float) -> None:
        """Note that a block that is here is read, and will be read on for some seconds."""
        if key not in self._going_through():  # else it is the same visit still
            self._visit(key)
        self.expect(key, keep_for)

    def expect(self, key: str, keep_for: float) -> None:
        """Note that somebody is about to go through a block that is here; 0: not any more."""
        if keep_for > 0:
            self._kept_until[key] = self._clock() + keep_for
        else:
            self._kept_until.pop(key, None)

    def was_here(self, key: str) -> bool:
        """Tell whether a block that isn't here was thrown out not too long ago."""
        return key in self._gone

    def size_to_keep(self, key: str) -> int:
        """Return how many bytes would have kept a block that was thrown out, others included."""
        gone = self._gone[key]
        visits = (*self._here.values(), *self._gone.values())
        return sum(each.size for each in visits if each.last >= gone.last)

    def patience(self) -> float:
        """Return the seconds until somebody who goes through a block may have left it.

        0 if there is a block that nobody goes through, or none at all.
        """
        going = self._going_through()
        if len(going) < len(self._keys) or not going:
            return 0.0
        return max(0.001, min(going.values()) - self._clock())

    def busy_size(self) -> int:
        """Return the bytes of the blocks that somebody is going through."""
        return sum(self._here[key].size for key in self._going_through())

    def popitem(self) -> tuple[str, memoryview]:
        """Throw out the block that is expected to be wanted again the latest; return it.

        Raises:
            KeyError: There is none.
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
        """Return what somebody goes through, those who have left taken out."""
        now = self._clock()
        for key in [key for key, until in self._kept_until.items() if until <= now]:
            del self._kept_until[key]
        return self._kept_until

    def _latest(self, keys: Iterable[str]) -> str:
        def expected(key: str) -> tuple[float, int]:
            visits = self._here[key]
            # Of blocks that come equally seldom, the one visited last will be last.
            return max(visits.distance, self._visited - visits.last), visits.last

        return max(keys, key=expected)

    def _visit(self, key: str) -> None:
        visits = self._here[key]
        visits.distance = self._visited - visits.last
        self._visited += visits.size
        visits.last = self._visited
