"""The room of the disk cache: the order of evictions, a quota, and a disk full of other files."""

from __future__ import annotations

import errno
import itertools
import os
import time
from typing import TYPE_CHECKING

from keepfs.keep.caching.disk.block_file import file_size
from keepfs.keep.caching.disk.block_folder import BlockFolder, CachedFile
from keepfs.keep.caching.disk.disk_cache import DiskCache
from keepfs.keep.caching.disk.room import Room, expected_wait
from tests.fakes.clock import FakeClock
from tests.keep.caching.disk.test_block_folder import block_of

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SIZE = 20_000
HOUR = 3600 * 10**9


def names_in_order(*files: CachedFile, now: int = 1000) -> str:
    """Return the names in the order of their eviction."""
    order = sorted(files, key=lambda it: expected_wait(it, now), reverse=True)
    return "".join(each.md5sum for each in order)


def test_a_block_that_is_read_again_and_again_is_evicted_last() -> None:
    once_long_ago, once = CachedFile("a", 1, 100, 0), CachedFile("b", 1, 990, 0)
    often, seldom = CachedFile("c", 1, 980, 900), CachedFile("d", 1, 900, 100)

    assert names_in_order(often, once, seldom, once_long_ago) == "abdc"


def test_a_block_that_is_no_longer_read_is_evicted_as_if_read_once() -> None:
    once, former, still = (
        *(CachedFile("a", 1, 900, 0), CachedFile("b", 1, 700, 550)),
        CachedFile("c", 1, 700, 549),
    )

    assert names_in_order(once, former, still) == "bac"


def test_a_visit_in_the_future_counts_as_the_longest_ago() -> None:
    future, often = CachedFile("a", 1, 2000, 1900), CachedFile("b", 1, 950, 800)

    assert names_in_order(often, CachedFile("c", 1, 100, 0), future) == "acb"


def test_data_that_was_read_often_a_month_ago_makes_room_for_new_data(tmp_path: Path) -> None:
    budget = 100 * file_size(SIZE)
    cache = DiskCache(tmp_path, budget, least_free=0)
    month_ago = time.time_ns() - 30 * 24 * HOUR
    for number in range(95):
        name, block = block_of(SIZE, number)
        cache.add(name, block, timeout=10)
        cache.flush()
        os.utime(tmp_path / "blocks-2" / name[:3] / name, ns=(month_ago, month_ago - HOUR))
    cache.close()
    new = [block_of(SIZE, number) for number in range(1000, 1050)]

    hits = 0
    for _ in range(2):  # each by a process of its own, as far as the cache knows
        cache = DiskCache(tmp_path, budget, least_free=0)
        hits = 0
        for name, block in new:
            if cache.read(name) is None:
                cache.add(name, block, timeout=10)
                cache.flush()
            else:
                hits += 1
        cache.close()

    assert hits == len(new)


def test_a_quota_is_not_kept_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = 100 * SIZE
    folder = BlockFolder
    add = folder.add

    def limited(self: BlockFolder, md5sum: str, block: bytes) -> int:
        used = sum(each.length for each in self.files())
        if used + len(block) > quota:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return add(self, md5sum, block)

    monkeypatch.setattr(BlockFolder, "add", limited)
    cache = DiskCache(tmp_path, 2 * quota, least_free=0)
    name = ""
    for number in range(300):
        name, block = block_of(SIZE, number)
        cache.add(name, block, timeout=10)
        cache.flush()

    counted = cache.statistics()
    assert (counted.added, counted.skipped) == (300, 0)
    assert 0.8 * quota < counted.currsize < 0.91 * quota
    assert cache.has(name)
    cache.close()


def test_a_disk_full_of_other_files_is_not_listed_for_each_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, listed = FakeClock(), itertools.count()
    sample = BlockFolder.sample

    def observed(self: BlockFolder, least: int) -> tuple[list[CachedFile], float]:
        next(listed)
        return sample(self, least)

    monkeypatch.setattr(BlockFolder, "sample", observed)
    folder = BlockFolder(tmp_path)
    room = Room(tmp_path, 10**9, 2**60, clock)

    assert not any(room.make(folder, SIZE) for _ in range(20))
    assert next(listed) == 1
    clock.advance(11)
    assert not room.make(folder, SIZE)
    assert next(listed) == 3  # one more, and the two counts here
    folder.close()


def test_the_budget_counts_what_small_files_take_of_the_disk(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 100 * 4096, least_free=0)
    for number in range(300):
        name, block = block_of(20, number)
        cache.add(name, block, timeout=10)
        cache.flush()

    files = [each.stat() for each in (tmp_path / "blocks-2").rglob("?" * 32)]
    assert 50 < len(files) <= 101
    assert sum(512 * each.st_blocks for each in files) <= 101 * 4096
    assert cache.statistics().currsize >= 4096 * len(files)
    cache.close()
