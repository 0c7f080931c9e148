"""The drain: what is stored and what is spilled at the end of a mount, and by when."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing

from keepfs.fs.upload.drain import Drain
from keepfs.fs.upload.unsaved import GRACE
from keepfs.keep import Cause, KeepWriteError
from keepfs.keep.threads import NoThreadError
from tests.messages.provoking import assert_shows

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

DOWN = KeepWriteError("refused", cause=Cause.DENIED)
UNREACHABLE = KeepWriteError("nobody is there", cause=Cause.UNREACHABLE)
TIMEOUT = 60.0


class File:
    """A file that is stored after a while, or fails, or hangs.

    Attributes:
        seconds: What a store takes.
        error: What it raises then.
        began: When each store began.
    """

    def __init__(self, path: str, *, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.path = path
        self.seconds = seconds
        self.error = error
        self.changes = 1
        self.failure: Exception | None = None
        self.has_unstored_changes = True
        self.is_being_changed = self.is_overwriting = self.is_storing = False
        self.began: list[float] = []

    @property
    def is_half_written(self) -> bool:
        return self.is_being_changed and self.is_overwriting

    async def attempt_store(self) -> None:
        if not self.is_storing:
            self.began.append(trio.current_time())
        self.is_storing = True
        await trio.sleep(self.began[-1] + self.seconds - trio.current_time())
        self.is_storing = False
        if self.error is not None:
            self.failure = self.error
            raise self.error
        self.has_unstored_changes = False


class Spills:
    """Notes what is spilled, and when.

    Attributes:
        done: For each file, when it was spilled and whether as a partial one.
        refuses: Files that the disk doesn't take.
        hangs: Files whose spill never ends.
    """

    def __init__(self) -> None:
        self.done: dict[str, tuple[float, bool]] = {}
        self.refuses: set[str] = set()
        self.hangs: set[str] = set()

    async def settle(self) -> None:
        await trio.lowlevel.checkpoint()

    async def spill(self, file: File) -> bool:
        if file.path in self.hangs:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if file.path in self.refuses:
            return False
        self.done.setdefault(file.path, (trio.current_time(), file.is_half_written))
        return True


class Blocks:
    """Runs work at once.

    Attributes:
        hangs: Whether work never ends.
        refuses: Whether there is no thread for work.
        abandoned: Whether stores were.
    """

    def __init__(self) -> None:
        self.hangs = self.refuses = False
        self.abandoned = False

    async def run_alone(self, work: Callable[[], None]) -> None:
        if self.refuses:
            raise NoThreadError("can't start new thread")
        if self.hangs:
            await trio.sleep_forever()
        work()

    def abandon_writes(self) -> None:
        self.abandoned = True


class Bench:
    """A drain of some files.

    Attributes:
        closings: When the client was closed.
    """

    def __init__(self, clock: MockClock, *files: File) -> None:
        self._clock = clock
        self._files = list(files)
        self.spills = Spills()
        self.blocks = Blocks()
        self.closings: list[float] = []
        self.drain = Drain(
            cast("Any", self),
            cast("Any", self.spills),
            cast("Any", self.blocks),
            lambda: self.closings.append(trio.current_time()),
            TIMEOUT,
        )

    def now(self) -> float:
        """Return the seconds since the test began."""
        return self._clock.current_time()

    def files(self) -> list[File]:
        return self._files

    def add(self, file: File) -> None:
        self._files.append(file)

    def spilled(self) -> list[str]:
        return sorted(self.spills.done)


async def test_only_unstored_files_are_stored(autojump_clock: MockClock) -> None:
    stored, new = File("stored"), File("new")
    stored.has_unstored_changes = False
    bench = Bench(autojump_clock, stored, new)

    await bench.drain.store()
    result = await bench.drain.finish()

    assert (stored.began, new.began) == ([], [0.0])
    assert bench.spilled() == []
    assert result == (0, [])
    assert bench.closings == []  # as nothing hangs
    assert bench.blocks.abandoned


async def test_earlier_failures_are_spilled_at_once_and_stored_too(
    autojump_clock: MockClock,
) -> None:
    failed = File("failed", seconds=4.0)
    failed.failure = DOWN
    bench = Bench(autojump_clock, failed, File("new"))

    await bench.drain.store()

    assert bench.spills.done == {"failed": (0.0, False)}
    assert not failed.has_unstored_changes


async def test_a_slow_store_is_spilled_and_continues(
    autojump_clock: MockClock,
) -> None:
    slow = File("slow", seconds=30.0)
    bench = Bench(autojump_clock, slow)

    await bench.drain.store()

    assert bench.spills.done == {"slow": (5.0, False)}
    assert not slow.has_unstored_changes
    assert len(slow.began) == 1


async def test_stores_that_hang_free_their_places(autojump_clock: MockClock) -> None:
    hanging = [File(f"hangs {number}", seconds=1e9) for number in range(20)]
    bench = Bench(autojump_clock, *hanging, File("good"))

    await bench.drain.store()

    assert [file.began for file in hanging[:9]] == [[0.0]] * 8 + [[5.0]]
    assert bench.files()[-1].began == [10.0]
    assert not bench.files()[-1].has_unstored_changes
    assert bench.spilled() == sorted(file.path for file in hanging)
    assert bench.now() == TIMEOUT


async def test_no_more_than_eight_are_stored_at_once(autojump_clock: MockClock) -> None:
    bench = Bench(autojump_clock, *(File(f"file {number}", seconds=1.0) for number in range(20)))

    await bench.drain.store()

    began = [file.began[0] for file in bench.files()]
    assert began == [0.0] * 8 + [1.0] * 8 + [2.0] * 4


async def test_a_failed_store_frees_its_place(autojump_clock: MockClock) -> None:
    bad = [File(f"bad {number}", error=DOWN) for number in range(10)]
    odd = [File(f"odd {number}", error=ZeroDivisionError("a bug")) for number in range(10)]
    bench = Bench(autojump_clock, *bad, *odd, File("good"))

    await bench.drain.store()

    assert not bench.files()[-1].has_unstored_changes
    assert all(len(file.began) == 1 for file in bench.files())


async def test_without_a_reachable_service_no_further_file_is_tried(
    autojump_clock: MockClock,
) -> None:
    first = [File(f"file {number}", seconds=1.0, error=UNREACHABLE) for number in range(8)]
    bench = Bench(autojump_clock, *first, *(File(f"late {number}") for number in range(20)))

    await bench.drain.store()

    assert bench.now() == 1.0
    assert all(not file.began for file in bench.files()[8:])


async def test_the_deadline_counts_from_the_beginning_of_the_drain(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(autojump_clock, File("hangs", seconds=1e9))
    had_begun = bench.drain.has_begun
    bench.drain.begin()
    await trio.sleep(20.0)
    bench.drain.begin()

    await bench.drain.store()

    assert (had_begun, bench.drain.has_begun) == (False, True)
    assert bench.now() == TIMEOUT


async def test_hurry_ends_the_stores(autojump_clock: MockClock) -> None:
    bench = Bench(autojump_clock, File("hangs", seconds=1e9))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.drain.store)
        await trio.sleep(7.0)
        bench.drain.hurry()

    assert bench.now() == 7.0
    await bench.drain.store()
    assert bench.now() == 7.0


async def test_after_hurry_everything_is_spilled(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(autojump_clock, File("slow", seconds=3.0))
    bench.drain.hurry()

    await bench.drain.store()
    count, lost = await bench.drain.finish()

    assert bench.now() < 3.0
    assert bench.spilled() == ["slow"]
    assert (count, lost) == (1, [])


async def test_a_file_is_tried_twice_only_if_it_was_changed_in_between(
    autojump_clock: MockClock,
) -> None:
    same, changed = File("same", error=DOWN), File("changed", error=DOWN)
    bench = Bench(autojump_clock, same, changed)
    await bench.drain.store()
    changed.changes += 1
    bench.add(File("new"))

    await bench.drain.store()

    assert [len(file.began) for file in bench.files()] == [1, 2, 1]


async def test_two_drains_do_not_run_at_once(autojump_clock: MockClock) -> None:
    bench = Bench(autojump_clock, File("one", seconds=3.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.drain.store)
        await trio.testing.wait_all_tasks_blocked()
        bench.add(File("two"))
        nursery.start_soon(bench.drain.store)

    assert [file.began for file in bench.files()] == [[0.0], [3.0]]


@pytest.mark.parametrize("is_overwriting", [True, False])
@pytest.mark.parametrize("is_being_changed", [True, False])
async def test_a_half_written_version_does_not_replace_a_stored_one(
    autojump_clock: MockClock, *, is_being_changed: bool, is_overwriting: bool
) -> None:
    file = File("file")
    file.is_being_changed, file.is_overwriting = is_being_changed, is_overwriting
    bench = Bench(autojump_clock, file)
    is_half = is_being_changed and is_overwriting

    await bench.drain.store()
    count, lost = await bench.drain.finish()

    assert bool(file.began) == (not is_half)
    assert bench.spills.done == ({"file": (0.0, True)} if is_half else {})
    assert (count, lost) == (int(is_half), [])


# --- the end ------------------------------------------------------------------


async def test_hung_requests_are_ended_by_closing_the_client(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(autojump_clock, File("hangs", seconds=1e9), File("bad", error=DOWN))

    await bench.drain.store()
    count, lost = await bench.drain.finish()

    assert bench.closings == [TIMEOUT]
    assert bench.spilled() == ["bad", "hangs"]
    assert (count, lost) == (2, [])
    assert bench.blocks.abandoned


async def test_files_are_spilled_if_no_thread_can_close_the_client(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    bench = Bench(autojump_clock, File("hangs", seconds=1e9))
    bench.blocks.refuses = True

    await bench.drain.store()
    await bench.drain.finish()

    assert bench.spilled() == ["hangs"]
    assert_shows(caplog.text, "client-not-closed")


async def test_files_that_the_disk_refuses_are_reported_as_lost(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.ERROR, "keepfs.fs.upload.drain")
    refused, kept = File("refused", error=DOWN), File("kept", error=DOWN)
    bench = Bench(autojump_clock, refused, kept)
    bench.spills.refuses = {"refused"}

    await bench.drain.store()
    caplog.clear()
    count, lost = await bench.drain.finish()

    assert (count, [file.path for file in lost]) == (2, ["refused"])
    assert caplog.messages == ["LOST, as neither Keep nor the disk took it: refused [lost-at-end]"]
    assert_shows(caplog.text, "lost-at-end")


async def test_a_file_stored_at_the_last_moment_is_not_lost(autojump_clock: MockClock) -> None:
    file = File("file", seconds=TIMEOUT + 3.0)
    bench = Bench(autojump_clock, file)
    bench.spills.refuses = {"file"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.attempt_store)
        await bench.drain.store()
        bench.spills.hangs = {"file"}
        count, lost = await bench.drain.finish()

    assert (count, lost) == (0, [])


async def test_a_hung_disk_and_client_delay_the_end_by_the_grace_at_most(
    autojump_clock: MockClock,
) -> None:
    bench = Bench(autojump_clock, File("hangs", seconds=1e9), File("fine", seconds=1e9))
    bench.spills.hangs = {"hangs"}
    bench.blocks.hangs = True

    await bench.drain.store()
    began = bench.now()
    count, lost = await bench.drain.finish()

    assert bench.now() == began + GRACE
    assert "fine" in bench.spilled()
    assert (count, [file.path for file in lost]) == (2, ["hangs"])
    assert bench.blocks.abandoned
