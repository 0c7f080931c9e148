"""Parts of blocks from a disk that is fast, slow, or hangs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from keepfs.fs.disk_reads import (
    HANGING,
    LONGEST_PAUSE,
    MOST_POLLS,
    MOST_WAITING,
    POLL_TIME,
    SUSPICIOUS,
    DiskReads,
)
from keepfs.keep.locator import KeepLocator

if TYPE_CHECKING:
    from collections.abc import Callable

LOCATOR = KeepLocator("acbd18db4cc2f85cedef654fccc4a4d8+3")
FOO = memoryview(b"foo")
#: The arguments of a read.
PART = LOCATOR, 0, 3, 3


class Disk:
    """The parts of a disk cache.

    Attributes:
        turns: Looks after which a part is in memory, since the read of it was begun.
        granted: Whether the services have accepted the locator.
        is_large: Whether parts are too large to be begun in the event loop.
        begun: Parts that were begun in the event loop.
        in_threads: Parts that were read in threads.
        hangs: While set, a read in a thread waits for `goes_on`.
        is_hanging: Set when one does.
        goes_on: Ends it.
    """

    def __init__(self, turns: int = 3) -> None:
        self.turns = turns
        self.is_large, self.granted = False, True
        self.begun = self.in_threads = 0
        self.hangs = False
        self.is_hanging, self.goes_on = threading.Event(), threading.Event()
        self._looks = 0

    def begin_part(self, locator: KeepLocator, begin: int, end: int, size: int) -> bool:
        """Count it."""
        assert (locator, begin, end, size) == PART
        self.begun += not self.is_large
        self._looks = 0
        return not self.is_large

    def part_nowait(
        self, locator: KeepLocator, begin: int, end: int, size: int
    ) -> memoryview | None:
        """Return the part after some looks."""
        assert (locator, begin, end, size) == PART
        self._looks += 1
        return FOO if self._looks >= self.turns else None

    def get_part(self, locator: KeepLocator, begin: int, end: int, size: int) -> memoryview | None:
        """Return the part, after a hang."""
        assert (locator, begin, end, size) == PART
        self.in_threads += 1
        if self.hangs:
            self.is_hanging.set()
            assert self.goes_on.wait(60)
        return FOO

    def is_granted(self, locator: KeepLocator) -> bool:
        """Return what the test lets it."""
        assert locator == LOCATOR
        return self.granted

    def is_open(self, locator: KeepLocator) -> bool:
        """Never called."""
        raise NotImplementedError

    def read_on(self, locator: KeepLocator, begin: int) -> bool:
        """Never called."""
        raise NotImplementedError


class Clock:
    """Goes on by a tenth of the time of a poll at each look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the seconds."""
        self.now += POLL_TIME / 10
        return self.now


def reads_of(poll_time: float | None = POLL_TIME, most_threads: int = 8) -> DiskReads:
    return DiskReads(trio.CapacityLimiter(most_threads), poll_time, Clock())


async def test_a_fast_disk_needs_no_thread() -> None:
    disk, reads = Disk(), reads_of()

    for _ in range(5):
        assert await reads.get_part(disk, *PART) == FOO

    assert (disk.begun, disk.in_threads) == (5, 0)


async def test_a_large_part_is_read_in_a_thread() -> None:
    disk, reads = Disk(), reads_of()
    disk.is_large = True

    assert await reads.get_part(disk, *PART) == FOO

    assert (disk.begun, disk.in_threads) == (0, 1)


async def test_a_slow_disk_is_left_to_threads_more_and_more_often() -> None:
    disk, reads = Disk(turns=1000), reads_of()

    for _ in range(1000):
        assert await reads.get_part(disk, *PART) == FOO
    begun = disk.begun
    disk.turns = 1  # now it is fast
    for _ in range(LONGEST_PAUSE + 1):
        await reads.get_part(disk, *PART)
    before = disk.in_threads
    for _ in range(10):
        await reads.get_part(disk, *PART)

    # The pauses are 1, 3, 7, ... 255 reads.
    assert begun == 10
    assert disk.in_threads == before


async def test_nothing_is_begun_in_the_event_loop_while_a_read_hangs() -> None:
    disk, clock = Disk(turns=1), Clock()
    reads = DiskReads(trio.CapacityLimiter(8), POLL_TIME, clock)
    disk.is_large = disk.hangs = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads.get_part, disk, *PART)
        await trio.to_thread.run_sync(disk.is_hanging.wait)
        disk.is_large = disk.hangs = False
        assert await reads.get_part(disk, *PART) == FOO
        at_first = disk.begun, disk.in_threads
        clock.now += SUSPICIOUS
        for _ in range(5):
            assert await reads.get_part(disk, *PART) == FOO
        during = disk.begun, disk.in_threads
        disk.goes_on.set()

    assert at_first == (1, 1)
    assert during == (1, 6)
    assert await reads.get_part(disk, *PART) == FOO
    assert (disk.begun, disk.in_threads) == (2, 6)


async def test_the_page_cache_is_not_asked_while_a_read_hangs() -> None:
    disk, clock = Disk(turns=1), Clock()
    reads = DiskReads(trio.CapacityLimiter(8), POLL_TIME, clock)
    assert reads.part_nowait(disk, *PART) == FOO
    disk.is_large = disk.hangs = True
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as caller:
            nursery.start_soon(reads.get_part, disk, *PART)
            await trio.to_thread.run_sync(disk.is_hanging.wait)
            at_first = reads.part_nowait(disk, *PART)
            clock.now += HANGING
            during = reads.part_nowait(disk, *PART)
            caller.cancel()
        disk.goes_on.set()

    assert at_first == FOO
    assert during is None
    assert reads.part_nowait(disk, *PART) == FOO


async def test_a_slow_service_does_not_count_as_a_slow_disk() -> None:
    disk, clock = Disk(turns=1), Clock()
    reads = DiskReads(trio.CapacityLimiter(8), POLL_TIME, clock)
    disk.granted, disk.hangs, disk.is_large = False, True, True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads.get_part, disk, *PART)
        await trio.to_thread.run_sync(disk.is_hanging.wait)
        clock.now += HANGING
        disk.granted, disk.is_large = True, False
        assert await reads.get_part(disk, *PART) == FOO
        assert reads.part_nowait(disk, *PART) == FOO
        disk.goes_on.set()

    assert (disk.begun, disk.in_threads) == (1, 1)


async def test_no_read_waits_for_a_slow_service_that_others_ask() -> None:
    disk = Disk(turns=1)
    reads = reads_of(most_threads=1)
    disk.granted, disk.hangs, disk.is_large = False, True, True
    async with trio.open_nursery() as nursery:
        for _ in range(MOST_WAITING):
            nursery.start_soon(reads.get_part, disk, *PART)
        await trio.to_thread.run_sync(disk.is_hanging.wait)
        await trio.testing.wait_all_tasks_blocked()
        disk.granted, disk.hangs = True, False
        with trio.move_on_after(20) as limit:
            assert reads.part_nowait(disk, *PART) == FOO
            assert await reads.get_part(disk, *PART) == FOO
        disk.goes_on.set()

    assert not limit.cancelled_caught


async def test_the_page_cache_is_not_asked_while_many_reads_wait() -> None:
    disk = Disk(turns=1)
    reads = reads_of(most_threads=1)
    disk.is_large = disk.hangs = True
    async with trio.open_nursery() as nursery:
        for _ in range(MOST_WAITING - 1):
            nursery.start_soon(reads.get_part, disk, *PART)
        await trio.testing.wait_all_tasks_blocked()
        before = reads.part_nowait(disk, *PART)
        nursery.start_soon(reads.get_part, disk, *PART)
        await trio.testing.wait_all_tasks_blocked()
        during = reads.part_nowait(disk, *PART)
        disk.hangs = False
        disk.goes_on.set()

    assert before == FOO
    assert during is None
    assert reads.part_nowait(disk, *PART) == FOO


async def test_the_event_loop_looks_for_some_parts_only() -> None:
    disk = Disk(turns=10**9)
    reads = DiskReads(trio.CapacityLimiter(8), 10.0, lambda: 0.0)
    async with trio.open_nursery() as nursery:
        for _ in range(MOST_POLLS):
            nursery.start_soon(reads.get_part, disk, *PART)
        while disk.begun < MOST_POLLS:
            await trio.lowlevel.checkpoint()
        assert (disk.begun, disk.in_threads) == (MOST_POLLS, 0)

        assert await reads.get_part(disk, *PART) == FOO

        assert (disk.begun, disk.in_threads) == (MOST_POLLS, 1)
        nursery.cancel_scope.cancel()
    disk.turns = 1
    assert await reads.get_part(disk, *PART) == FOO  # the cancelled ones don't count
    assert (disk.begun, disk.in_threads) == (MOST_POLLS + 1, 1)


@pytest.mark.parametrize(("processors", "begun"), [({0}, 0), ({0, 1}, 1)])
async def test_with_one_processor_all_parts_are_read_in_threads(
    monkeypatch: pytest.MonkeyPatch, processors: set[int], begun: int
) -> None:
    affinity: Callable[[int], set[int]] = lambda _: processors  # noqa: E731 - typed
    monkeypatch.setattr("os.sched_getaffinity", affinity)
    disk, reads = Disk(), reads_of(None)

    assert await reads.get_part(disk, *PART) == FOO

    assert disk.begun == begun
