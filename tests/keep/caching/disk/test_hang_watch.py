"""A disk that hangs delays the reads in progress, and no further ones."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import KeepBlockCache, KeepClient, KeepLocator
from keepfs.keep.caching.disk import block_file
from keepfs.keep.caching.disk.accepted_names import AcceptedNames
from keepfs.keep.caching.disk.disk_cache import DiskCache
from keepfs.keep.caching.disk.hang_watch import HANGS_AFTER, HangWatch
from tests.fakes.clock import FakeClock
from tests.fakes.threads import Running, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCKS = [b"%d" % number * 100_000 for number in range(2)]


@contextlib.contextmanager
def read_of_another_thread(watch: HangWatch) -> Iterator[None]:
    """Have a read in progress during the body of `with`."""
    has_begun, ends = threading.Event(), threading.Event()

    def read() -> None:
        with watch.reading():
            has_begun.set()
            wait_for(ends)

    running = Running(read)
    wait_for(has_begun)
    try:
        yield
    finally:
        ends.set()
        running.result()


def test_each_read_that_takes_long_is_a_hang_and_reported_once() -> None:
    clock, reports = FakeClock(), list[str]()
    watch = HangWatch(reports.append, clock)
    answers = [watch.hangs()]
    for _ in range(2):
        with read_of_another_thread(watch):
            clock.advance(HANGS_AFTER)
            answers.append(watch.hangs())
            with read_of_another_thread(watch), watch.reading():
                clock.advance(1)
                answers += [watch.hangs(), watch.hangs()]
        answers.append(watch.hangs())

    assert answers == [False, *[False, True, True, False] * 2]
    assert reports == [f"a read of it takes more than {HANGS_AFTER:g} s"] * 2


def test_a_read_that_fails_is_over() -> None:
    clock = FakeClock()
    watch = HangWatch(print, clock)
    with contextlib.suppress(OSError), watch.reading():
        raise OSError
    clock.advance(2 * HANGS_AFTER)

    assert not Running(watch.hangs).result()


def leave_an_entry(watch: HangWatch) -> None:
    """Begin a read that has no end, as an interrupt at the wrong moment does."""
    abandoned.append(watch.reading())
    abandoned[-1].__enter__()


#: Contexts that aren't left.
abandoned: list[contextlib.AbstractContextManager[None]] = []


def test_an_interrupted_read_does_not_turn_the_disk_off() -> None:
    clock, reports = FakeClock(), list[str]()
    watch = HangWatch(reports.append, clock)
    leave_an_entry(watch)
    clock.advance(2 * HANGS_AFTER)

    assert not watch.hangs()  # for the thread itself, which is not reading
    with watch.reading():  # its next read takes the place
        assert not Running(watch.hangs).result()
    assert not Running(watch.hangs).result()
    assert reports == []


def test_a_read_ends_with_its_thread() -> None:
    clock, reports = FakeClock(), list[str]()
    watch = HangWatch(reports.append, clock)
    thread = threading.Thread(target=leave_an_entry, args=(watch,))
    thread.start()
    thread.join()
    clock.advance(2 * HANGS_AFTER)

    assert not watch.hangs()
    with read_of_another_thread(watch):
        clock.advance(HANGS_AFTER + 1)
        assert watch.hangs()  # an ended thread's entry doesn't hide a hang
    assert len(reports) == 1


@pytest.mark.parametrize("what", ["read_whole", "read_part"])
def test_while_the_disk_hangs_blocks_come_from_the_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    (tmp_path / "store").mkdir()
    disk = DiskCache(tmp_path / "cache", 10**8, least_free=0)
    cache = KeepBlockCache(disk=disk)
    hangs, goes_on = threading.Event(), threading.Event()
    original = getattr(block_file, what)

    def hang(*arguments: object) -> object:
        hangs.set()
        wait_for(goes_on)
        return original(*arguments)

    with KeepClient(local_store=tmp_path / "store", block_cache=cache) as client:
        first, second = (KeepLocator(client.put(block, 1)) for block in BLOCKS)
        for locator in (first, second):
            client.get_block(locator)
        disk.flush()
        cache.clear()
        folder, parts = disk.folder(), client.disk_parts
        assert folder is not None
        assert parts is not None
        clock = FakeClock()
        monkeypatch.setattr(folder, "watch", HangWatch(folder.watch._report, clock))  # noqa: SLF001
        monkeypatch.setattr(block_file, what, hang)
        size = len(BLOCKS[0])
        if what == "read_whole":
            hanging = Running(lambda: bytes(client.get_block(first)))
        else:
            hanging = Running(lambda: bytes(parts.get_part(first, 0, size, size) or b""))
        wait_for(hangs)
        clock.advance(HANGS_AFTER + 1)

        other = Running(lambda: (parts.get_part(second, 0, 1, size), client.get_block(second)))
        try:
            part, block = other.result()
        finally:
            goes_on.set()

        assert part is None
        assert bytes(block) == BLOCKS[1]
        assert hanging.result() == BLOCKS[0]
        assert disk.folder() is folder
    assert "can't be used, blocks come from the services: a read of it takes more" in caplog.text


def test_a_disk_that_takes_no_writes_delays_no_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, goes_on = threading.Event(), threading.Event()
    add = AcceptedNames.add

    def held_back(names: AcceptedNames, md5sum: str, record: bytes) -> None:
        writing.set()
        wait_for(goes_on)
        add(names, md5sum, record)

    cache = DiskCache(tmp_path, 10**8, least_free=0)
    locator, record = KeepLocator.of_block(BLOCKS[0]), bytes(20)
    cache.add(locator.md5sum, BLOCKS[0])
    cache.flush()
    monkeypatch.setattr(AcceptedNames, "add", held_back)
    Running(lambda: cache.note_accepted(locator.md5sum, record)).result()
    wait_for(writing)
    for _ in range(5):
        cache.note_accepted(locator.md5sum, record)

    assert cache.read(locator.md5sum) == BLOCKS[0]
    assert not cache.accepts(locator.md5sum, record)
    goes_on.set()
    cache.flush()
    assert cache.accepts(locator.md5sum, record)
    cache.note_refused(locator.md5sum, record)
    cache.close()
    assert not DiskCache(tmp_path, 10**8).accepts(locator.md5sum, record)
