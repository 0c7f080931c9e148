"""Eviction: loops, scans, changing working sets, and blocks with sequential readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keepfs.keep.caching.reuse import ReuseCache
from tests.fakes.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterable


class Counted:
    """A cache of so many blocks of one byte, each fetched when it isn't there.

    Args:
        blocks: It has room for.
    """

    def __init__(self, blocks: int) -> None:
        self.clock = FakeClock()
        self.cache = ReuseCache(blocks, self.clock)
        self.hits = self.misses = 0

    def visit(self, number: int) -> None:
        """Visit a block."""
        key = str(number)
        if key in self.cache:
            self.cache.read(key, 0)
            self.hits += 1
        else:
            self.cache[key] = memoryview(b"b")
            self.misses += 1

    def visit_all(self, numbers: Iterable[int], times: int = 1) -> float:
        """Visit blocks in turn, so many times; return which part of that were hits."""
        self.hits = self.misses = 0
        for number in list(numbers) * times:
            self.visit(number)
        return self.hits / (self.hits + self.misses)


@pytest.mark.parametrize("blocks", [4, 16, 64, 200])
def test_a_loop_slightly_larger_than_the_cache_mostly_hits(blocks: int) -> None:
    assert Counted(blocks).visit_all(range(blocks + 1), times=50) > 0.7


@pytest.mark.parametrize("blocks", [4, 16, 64, 200])
def test_a_loop_over_twice_the_cache_hits_at_a_third_or_more(blocks: int) -> None:
    assert Counted(blocks).visit_all(range(2 * blocks), times=50) > 1 / 3


def test_blocks_that_fit_are_not_evicted() -> None:
    counted = Counted(8)
    counted.visit_all(range(8))

    assert counted.visit_all(range(8), times=5) == 1


def test_a_scan_does_not_evict_blocks_that_are_reused() -> None:
    counted = Counted(8)
    counted.visit_all(range(7), times=3)

    counted.visit_all(range(100, 200))

    assert counted.visit_all(range(7)) == 1


def test_a_new_working_set_replaces_the_old_one() -> None:
    counted = Counted(8)
    counted.visit_all(range(7), times=100)

    counted.visit_all(range(100, 107), times=3)

    assert counted.visit_all(range(100, 107), times=10) == 1


def test_a_block_with_a_sequential_reader_stays_until_it_is_finished() -> None:
    counted = Counted(2)
    counted.visit_all([1, 2])
    counted.cache.read("2", 1.0)

    counted.visit(3)
    assert "2" in counted.cache

    counted.cache.read("2", 0)
    counted.cache.read("3", 1.0)
    counted.visit(4)
    assert "2" not in counted.cache


def test_sequential_reads_of_a_block_are_one_visit() -> None:
    counted = Counted(8)
    counted.visit(1)
    for _ in range(100):
        counted.cache.read("1", 1.0)
    counted.visit_all(range(2, 20))

    assert counted.cache.was_here("1") or "1" in counted.cache
    assert counted.cache.busy_size() == 1


def test_a_reader_that_pauses_for_a_second_no_longer_counts() -> None:
    counted = Counted(1)
    counted.visit(1)
    counted.cache.read("1", 1.0)
    before = counted.cache.patience()

    counted.clock.sleep(1.1)

    assert 0 < before <= 1
    assert counted.cache.patience() == 0
    assert counted.cache.busy_size() == 0


def test_if_all_blocks_have_readers_one_is_evicted_nevertheless() -> None:
    counted = Counted(2)
    for number in (1, 2):
        counted.visit(number)
        counted.cache.read(str(number), 1.0)

    counted.visit(3)

    assert len(counted.cache) == 2


def test_the_size_to_keep_a_block_is_the_sum_of_all_visited_since() -> None:
    counted = Counted(3)
    counted.visit_all(range(5))
    gone = next(number for number in range(5) if counted.cache.was_here(str(number)))

    assert counted.cache.size_to_keep(str(gone)) == 5 - gone


def test_an_empty_cache_has_nothing_to_evict() -> None:
    with pytest.raises(KeyError):
        Counted(1).cache.popitem()


def test_the_number_of_recorded_evicted_blocks_is_limited() -> None:
    counted = Counted(1)
    counted.visit_all(range(5000))

    assert not counted.cache.was_here("0")
    assert counted.cache.was_here("4998")


def test_a_cached_block_can_be_replaced() -> None:
    cache = Counted(2).cache
    cache["1"] = memoryview(b"a")
    cache["1"] = memoryview(b"b")

    assert bytes(cache["1"]) == b"b"
    assert len(cache) == 1
