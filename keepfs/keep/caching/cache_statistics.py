"""CacheStatistics: the state and counters of a cache in memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """The state and counters of the cache.

    Attributes:
        maxsize: Most bytes, blocks being fetched included.
        currsize: Bytes of the cached blocks.
        in_flight: Bytes reserved for blocks being fetched.
        blocks: The number of cached blocks.
        hits: Calls answered from memory.
        misses: Calls that fetched a block.
        joined: Calls that waited for another call's fetch.
        refetched: Those of `misses` whose block had been evicted.
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
        """The fraction of misses that a larger cache would have avoided; 0.0 without misses."""
        return self.refetched / self.misses if self.misses else 0.0
