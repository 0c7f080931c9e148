"""A forked child: its reads wait for no thread and no lock that only the parent has."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import KeepBlockCache, KeepLocator
from keepfs.keep.background import Background
from keepfs.keep.caching.disk.disk_cache import DiskCache
from keepfs.keep.caching.disk.fetch_locks import FetchLocks
from keepfs.keep.caching.disk.hang_watch import HANGS_AFTER, HangWatch
from keepfs.keep.caching.grants import Grants
from tests.fakes.clock import FakeClock
from tests.fakes.threads import PATIENCE, Running, wait_for, wait_until
from tests.keep.caching.disk.test_block_folder import block_of

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 1000


def in_child(call: Callable[[], None]) -> None:
    """Run a call in a forked child; fail if it raises, or waits for longer than `PATIENCE`."""
    child = os.fork()
    if not child:
        signal.alarm(int(PATIENCE))
        try:
            call()
        except BaseException:  # noqa: BLE001 - the child must not go on with the tests
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskCache]:
    opened = DiskCache(tmp_path, 10**8, least_free=0)
    yield opened
    opened.close()


def held_in_a_thread(
    lock: contextlib.AbstractContextManager[object],
) -> tuple[Running[None], threading.Event]:
    """Hold a lock in another thread until the event is set."""
    has, ends = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            has.set()
            wait_for(ends)

    running = Running(hold)
    wait_for(has)
    return running, ends


def test_a_child_writes_its_blocks_to_the_disk(disk: DiskCache) -> None:
    first, second = block_of(SIZE, 1), block_of(SIZE, 2)
    disk.add(*first, timeout=10)
    disk.flush()

    def child() -> None:
        disk.add(*second, timeout=10)
        disk.flush(10)
        assert disk.has(second[0])
        disk.close()

    in_child(child)

    assert disk.read(second[0]) == second[1]


def test_a_block_that_waits_to_be_written_is_written_by_the_parent_only(
    disk: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, goes_on = threading.Event(), threading.Event()
    write_one = DiskCache._write_one  # noqa: SLF001 - held back

    def held_back(*arguments: object) -> None:
        writing.set()
        wait_for(goes_on)
        write_one(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DiskCache, "_write_one", held_back)
    blocks = [block_of(SIZE, number) for number in range(2)]
    claims = []
    for md5sum, block in blocks:
        with disk.claimed(md5sum, 0.0) as claim:
            disk.add(md5sum, block, claim=claim)
        claims.append(claim)
    wait_for(writing)

    def child() -> None:
        disk.flush(10)
        assert not any(disk.has(md5sum) for md5sum, _ in blocks)
        with disk.claimed(blocks[0][0], 0.0) as claim:
            assert claim.has_waited  # the parent still has its lock

    in_child(child)
    goes_on.set()
    disk.flush()

    assert all(disk.has(md5sum) for md5sum, _ in blocks)


def test_the_locks_of_blocks_are_not_those_of_the_parent(tmp_path: Path) -> None:
    root = os.open(tmp_path, os.O_RDONLY)
    locks = FetchLocks(root)
    os.close(root)
    mine, childs = "1" * 32, "2" * 32
    assert locks.try_lock(mine)
    has, ends = os.pipe(), os.pipe()

    def child() -> None:
        assert locks.try_lock(mine) is False
        assert locks.try_lock(childs)
        os.write(has[1], b".")
        os.read(ends[0], 1)

    running = Running(lambda: in_child(child))
    wait_until(lambda: running.is_over() or bool(select.select([has[0]], [], [], 0)[0]))
    try:
        assert locks.try_lock(childs) is False
    finally:
        os.write(ends[1], b".")
    running.result()
    assert locks.try_lock(childs)
    locks.close()
    for each in (*has, *ends):
        os.close(each)


def test_a_read_in_progress_at_the_fork_is_no_hang_of_the_child() -> None:
    clock = FakeClock()
    watch = HangWatch(print, clock)
    has_begun, ends = threading.Event(), threading.Event()

    def read() -> None:
        with watch.reading():
            has_begun.set()
            wait_for(ends)

    running = Running(read)
    wait_for(has_begun)
    clock.advance(HANGS_AFTER + 1)

    def child() -> None:
        assert not watch.hangs()

    try:
        in_child(child)
        assert watch.hangs()
    finally:
        ends.set()
    running.result()


def test_a_child_fetches_a_block_that_the_parent_was_fetching() -> None:
    cache = KeepBlockCache(2 * SIZE)
    cached, wanted = (block_of(SIZE, number)[1] for number in range(2))
    cached_name, name = KeepLocator.of_block(cached), KeepLocator.of_block(wanted)
    cache.get_or_fetch(cached_name, lambda: cached)
    fetching, goes_on = threading.Event(), threading.Event()

    def slow() -> bytes:
        fetching.set()
        wait_for(goes_on)
        return wanted

    running = Running(lambda: bytes(cache.get_or_fetch(name, slow)))
    wait_for(fetching)
    begun = cache.begin(name, lambda: b"", lambda _: None)
    assert not isinstance(begun, memoryview)

    def child() -> None:
        assert begun.wait_for_size(0) is None
        assert begun.done.is_set()
        assert bytes(cache.get_nowait(cached_name.md5sum) or b"") == cached
        assert cache.statistics().in_flight == 0
        assert cache.get_or_fetch(name, lambda: wanted, timeout=0) == wanted

    in_child(child)
    goes_on.set()

    assert running.result() == wanted


def test_no_lock_that_a_thread_of_the_parent_held_stops_a_child(disk: DiskCache) -> None:
    cache, grants, background = KeepBlockCache(disk=disk), Grants(10), Background(1)
    md5sum, block = block_of(SIZE)
    disk.add(md5sum, block, timeout=10)
    disk.flush()
    assert disk.read_part(md5sum, 0, 1, SIZE) is not None
    folder = disk.folder()
    assert folder is not None
    name = KeepLocator.of_block(block)
    cache.get_or_fetch(name, lambda: block)
    goes_on = threading.Event()
    background.spawn(lambda: wait_for(goes_on))
    held = [
        held_in_a_thread(lock)
        for lock in (
            cache._lock,  # noqa: SLF001 - a thread may hold any of them at a fork
            disk._lock,  # noqa: SLF001
            disk._queue._changed,  # noqa: SLF001
            disk._queue._starting,  # noqa: SLF001
            folder._open._lock,  # noqa: SLF001
            folder.locks._guard,  # noqa: SLF001
            grants._lock,  # noqa: SLF001
        )
    ]

    def child() -> None:
        assert not grants.allows(name)
        assert cache.get_nowait(md5sum) is None  # it may have been changing
        assert cache.get_or_fetch(name, lambda: block) == block
        assert disk.read_part(md5sum, 0, 1, SIZE) is not None
        with disk.claimed("0" * 32, 0.0) as claim:
            assert not claim.has_waited
        disk.add(*block_of(SIZE, 1), timeout=10)
        disk.flush(10)
        assert disk.statistics().added == 2
        background.spawn(lambda: None)  # those of the parent don't count
        background.wait_until_idle(PATIENCE)

    try:
        in_child(child)
    finally:
        goes_on.set()
        for running, ends in held:
            ends.set()
            running.result()
    assert bytes(cache.get_nowait(md5sum) or b"") == block
    background.close()
