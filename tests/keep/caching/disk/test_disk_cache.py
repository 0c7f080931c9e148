"""The disk tier: budget, free space, and a disk that fails."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from keepfs.keep.caching.disk import room as room_module
from keepfs.keep.caching.disk.block_folder import BlockFolder, CachedFile
from keepfs.keep.caching.disk.disk_cache import DiskCache
from keepfs.keep.threads import Thread
from tests.fakes.threads import Running, wait_for
from tests.keep.caching.disk.test_block_folder import block_of
from tests.soak import disk_cache

SIZE = 100_000


def fill(cache: DiskCache, count: int, first: int = 0) -> list[str]:
    names = []
    for number in range(first, first + count):
        md5sum, block = block_of(SIZE, number)
        cache.add(md5sum, block, timeout=10)
        names.append(md5sum)
    cache.flush()
    return names


def bytes_in(directory: Path) -> int:
    return sum(it.stat().st_size for it in directory.rglob("*") if it.is_file())


def test_the_budget_is_kept_by_two_processes_together(tmp_path: Path) -> None:
    budget = 12 * SIZE
    one, two = DiskCache(tmp_path, budget, least_free=0), DiskCache(tmp_path, budget, least_free=0)

    for first in range(0, 40, 4):
        fill(one, 2, first)
        fill(two, 2, first + 2)
        # Each lists again after writing a tenth of the budget.
        assert bytes_in(tmp_path) <= budget + 2 * SIZE

    assert one.statistics().evictions + two.statistics().evictions >= 28
    one.close()
    two.close()


def test_a_large_cache_is_evicted_by_samples_within_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[int] = []
    sample = BlockFolder.sample

    def observed(self: BlockFolder, least: int) -> tuple[list[CachedFile], float]:
        found = sample(self, least)
        listed.append(len(found[0]))
        return found

    monkeypatch.setattr(room_module, "_SAMPLE", 50)
    monkeypatch.setattr(BlockFolder, "sample", observed)
    cache = DiskCache(tmp_path, 200 * 4096, least_free=0)
    names = []
    for number in range(600):
        md5sum, block = block_of(1200, number)
        cache.add(md5sum, block, timeout=10)
        cache.flush()
        names.append(md5sum)

    assert max(listed) <= 60  # never the whole cache
    there = sum(cache.has(name) for name in names)
    assert 100 < there < 300  # the sample estimates the total
    assert cache.has(names[-1])
    assert cache.statistics().evictions == 600 - there
    cache.close()


def test_the_disk_is_not_filled(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10 * SIZE, least_free=2**60)

    fill(cache, 3)

    assert bytes_in(tmp_path) == 0
    assert cache.statistics().skipped == 3
    cache.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
def test_an_automatic_budget_does_not_shrink_as_the_cache_grows(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "disk", tmp_path], check=True)
    try:
        (tmp_path / "others").write_bytes(bytes(56 * 2**20))  # 8 MiB are left, the cache gets 2
        cache = DiskCache(tmp_path, least_free=0)
        before = cache.statistics().maxsize

        fill(cache, 30)

        found = cache.statistics()
        assert abs(found.maxsize - before) < 0.03 * before  # its directories take some pages
        assert 0.85 * before < bytes_in(tmp_path / "blocks-2") <= found.maxsize
        other = DiskCache(tmp_path, least_free=0)  # counts what is there, when it writes
        fill(other, 1, 30)
        assert abs(other.statistics().maxsize - before) < 0.03 * before
        cache.close()
        other.close()
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_removed_directory_is_made_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 100 * SIZE, least_free=0)
    (name,) = fill(cache, 1)
    shutil.rmtree(tmp_path / "cache")
    assert cache.read(name) is None

    (name,) = fill(cache, 1)

    assert cache.read(name) == block_of(SIZE)[1]
    cache.close()


def test_a_relative_directory_stays_where_it_is_after_chdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    cache = DiskCache(Path("cache"), 100 * SIZE, least_free=0)
    (first,) = fill(cache, 1)

    monkeypatch.chdir(tmp_path / "elsewhere")
    fill(cache, 1, 1)

    assert cache.has(first)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    cache.close()


def test_a_link_in_place_of_the_directory_is_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cache = DiskCache(tmp_path / "cache", 100 * SIZE, least_free=0)
    fill(cache, 1)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").symlink_to(elsewhere)

    with caplog.at_level(logging.WARNING):
        fill(cache, 3)

    assert list(elsewhere.iterdir()) == []
    assert len(caplog.records) == 1
    assert cache.statistics().problem
    assert cache.statistics().skipped == 3
    cache.close()


@pytest.mark.slow
def test_killed_writers_and_damaged_files_never_make_a_wrong_byte(tmp_path: Path) -> None:
    outcome = disk_cache.soak(tmp_path, kills=5, damages=50, seed=1)

    assert outcome.kills >= 5
    assert outcome.damaged >= 50
    assert outcome.reads > 0


def test_no_read_waits_while_the_thread_that_writes_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path, 10 * SIZE, least_free=0)
    md5sum, block = block_of(SIZE, 1)
    starting, goes_on = threading.Event(), threading.Event()
    start = Thread.start

    def slow_start(thread: Thread) -> None:
        if thread.name == "disk cache":
            starting.set()
            wait_for(goes_on)
        start(thread)

    monkeypatch.setattr(Thread, "start", slow_start)
    adding = Running(lambda: cache.add(md5sum, block, timeout=10))
    wait_for(starting)
    reading = Running(lambda: cache.read_part_nowait(md5sum, 0, 1, SIZE))
    try:
        assert reading.result() is None
        assert cache.statistics().hits == 0
    finally:
        goes_on.set()
    adding.result()
    cache.flush()
    assert cache.has(md5sum)
    cache.close()
