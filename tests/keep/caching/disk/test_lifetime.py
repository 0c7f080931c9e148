"""Disk caches come and go in a process: descriptors, threads, and clients that share one."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import KeepBlockCache, KeepClient
from keepfs.keep.caching.disk.disk_cache import DiskCache
from tests.fakes.threads import Running, wait_for, wait_until
from tests.keep.caching.disk.test_block_folder import block_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keepfs.keep.caching.disk.block_folder import BlockFolder
    from keepfs.keep.caching.disk.room import Room

SIZE = 1000


#: A program that ends without closing its disk cache, whose disk is slow, or hangs.
PROGRAM = """
import sys, threading, time
from pathlib import Path
from keepfs.keep.caching.disk import block_queue
from keepfs.keep.caching.disk.disk_cache import DiskCache
from tests.keep.caching.disk.test_block_folder import block_of

write_one = DiskCache._write_one

def slow(*arguments):
    threading.main_thread().join()  # the program has ended
    if sys.argv[2] == "hangs":
        threading.Event().wait()
    time.sleep(0.2)
    write_one(*arguments)

DiskCache._write_one = slow
if sys.argv[2] == "hangs":
    block_queue._AT_EXIT = 0.1
cache = DiskCache(Path(sys.argv[1]), 10**8, least_free=0)
for number in range(2):
    cache.add(*block_of(1000, number), timeout=10)
"""


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """Turn the garbage collector off: in a large program it seldom looks at old objects."""
    wait_until(lambda: not writers())  # those of other tests
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def open_below(directory: Path) -> int:
    """Count this process's descriptors of files and directories below a directory."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith(os.fspath(directory))
        except OSError:
            continue
    return found


def writers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "disk cache"]


def client_of(tmp_path: Path, cache: KeepBlockCache | None = None) -> KeepClient:
    cache = cache or KeepBlockCache(10**7, disk_cache=True, disk_cache_dir=tmp_path / "cache")
    return KeepClient(local_store=tmp_path / "store", block_cache=cache)


def disk_of(client: KeepClient) -> DiskCache:
    disk = client.block_cache.disk
    assert disk is not None
    return disk


def test_clients_one_after_another_have_the_descriptors_and_thread_of_one(tmp_path: Path) -> None:
    taken = set()
    for number in range(30):
        with client_of(tmp_path) as client:
            locator = client.put(b"%d" % number, 1)
            client.get(locator)
        assert disk_of(client).has(locator[:32])
        taken.add(open_below(tmp_path / "cache"))
        assert len(writers()) <= 1

    assert len(taken) == 1


def test_a_cache_is_used_on_after_one_of_its_clients_was_closed(tmp_path: Path) -> None:
    cache = KeepBlockCache(10**7, disk_cache=True, disk_cache_dir=tmp_path / "cache")
    with client_of(tmp_path, cache) as one, client_of(tmp_path, cache) as two:
        one.close()
        client_of(tmp_path).close()
        locator = two.put(b"block", 1)
        two.get(locator)
        disk_of(two).flush()
        assert disk_of(two).read(locator[:32]) == b"block"
    with client_of(tmp_path, cache) as three:
        assert disk_of(three).read(locator[:32]) == b"block"


def test_other_directories_and_budgets_have_other_disk_caches(tmp_path: Path) -> None:
    def disk(budget: int, name: str = "cache") -> DiskCache | None:
        return KeepBlockCache(budget, disk_cache=True, disk_cache_dir=tmp_path / name).disk

    kept = disk(10**7)
    assert kept is disk(10**7)
    assert kept is not disk(10**6)
    assert kept is not disk(10**7, "other")
    assert kept is not None
    kept.close()
    assert kept is not disk(10**7)


def test_a_cache_that_nobody_uses_is_closed(tmp_path: Path) -> None:
    before = open_below(tmp_path)
    cache = DiskCache(tmp_path / "cache", 10**8, least_free=0)
    md5sum, block = block_of(SIZE)
    cache.add(md5sum, block, timeout=10)
    cache.flush()
    assert cache.read_part(md5sum, 0, 1, SIZE) is not None
    assert open_below(tmp_path) > before

    del cache

    # The thread has the last reference to the cache while it ends the write.
    wait_until(lambda: open_below(tmp_path) == before)
    wait_until(lambda: not writers())


def test_a_block_is_written_also_if_its_cache_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    md5sum, block = block_of(SIZE)
    writing, goes_on = threading.Event(), threading.Event()
    write_one = DiskCache._write_one  # noqa: SLF001 - held back

    def held_back(*arguments: object) -> None:
        writing.set()
        wait_for(goes_on)
        write_one(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DiskCache, "_write_one", held_back)
    cache = DiskCache(tmp_path / "cache", 10**8, least_free=0)
    cache.add(md5sum, block, timeout=10)
    wait_for(writing)
    del cache
    goes_on.set()
    wait_until(lambda: not writers())

    other = DiskCache(tmp_path / "cache", 10**8, least_free=0)
    assert other.read(md5sum) == block
    other.close()


def test_a_thread_that_has_ended_is_started_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 10**8, least_free=0)
    for number in range(2):
        md5sum, block = block_of(SIZE, number)
        cache.add(md5sum, block, timeout=10)
        cache.flush()
        assert cache.has(md5sum)
        wait_until(lambda: not writers())
    cache.close()


def test_a_block_is_skipped_if_two_wait_and_after_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path / "cache", 10**8, least_free=0)
    writing, goes_on = threading.Event(), threading.Event()
    reopened = DiskCache._reopened  # noqa: SLF001 - held back

    def held_back(disk: DiskCache) -> tuple[BlockFolder, Room]:
        writing.set()
        wait_for(goes_on)
        return reopened(disk)

    monkeypatch.setattr(DiskCache, "_reopened", held_back)
    blocks = [block_of(SIZE, number) for number in range(5)]
    cache.add(*blocks[0])
    wait_for(writing)
    for each in blocks[1:4]:
        cache.add(*each)
    closing = Running(cache.close)
    wait_until(lambda: cache.is_closed)
    cache.add(*blocks[4])
    goes_on.set()
    closing.result()

    after = DiskCache(tmp_path / "cache", 10**8, least_free=0)
    assert [after.has(md5sum) for md5sum, _ in blocks] == [True, True, True, False, False]
    assert cache.statistics().skipped == 2
    after.close()


@pytest.mark.parametrize(("disk", "written"), [("is slow", 2), ("hangs", 0)])
def test_a_program_that_ends_writes_its_blocks_unless_the_disk_hangs(
    tmp_path: Path, disk: str, written: int
) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, tmp_path, disk], check=True, timeout=60)

    cache = DiskCache(tmp_path, 10**8, least_free=0)
    assert sum(cache.has(block_of(SIZE, number)[0]) for number in range(2)) == written
    cache.close()
