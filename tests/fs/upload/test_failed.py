"""Files whose store has failed: each has its own back-off, and none holds up the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing

from keepfs.fs.upload.failed import FailedFiles
from keepfs.keep import KeepWriteError
from keepfs.keep.retry import Backoff

if TYPE_CHECKING:
    import pytest

BACKOFF = Backoff(first=4.0, factor=2.0, cap=60.0)


class File:
    """A file that fails, hangs or is stored, as told."""

    def __init__(self, failed: FailedFiles, path: str) -> None:
        self.path = path
        self.has_unstored_changes = True
        self.is_being_changed = False
        self.is_storing = False
        self.error: Exception | None = None
        self.hangs = False
        self.end = trio.Event()
        self.changes_meanwhile = 0
        self.tries: list[float] = []
        self._failed = failed
        failed.add(self)

    async def attempt_store(self) -> None:
        self.tries.append(trio.current_time())
        if self.hangs:
            self.is_storing = True
            await self.end.wait()
            self.is_storing = False
        if self.error is not None:
            if not isinstance(self.error, ZeroDivisionError):
                self._failed.add(self)
            raise self.error
        self.changes_meanwhile -= 1
        self.has_unstored_changes = self.changes_meanwhile >= 0


async def run(failed: FailedFiles, seconds: float) -> None:
    """Retry for a while, on the test's clock."""
    with trio.move_on_after(seconds):
        await failed.retry()


async def test_a_file_that_fails_does_not_prevent_other_retries(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failed = FailedFiles(backoff=BACKOFF)
    bad, odd, good = (File(failed, name) for name in ("bad", "odd", "good"))
    bad.error, odd.error = KeepWriteError("never"), ZeroDivisionError("a bug")

    await run(failed, 100.0)

    assert not good.has_unstored_changes
    assert len(good.tries) == 1
    assert failed.files() == [bad, odd]
    assert 3 <= len(bad.tries) <= 7
    assert 3 <= len(odd.tries) <= 50
    del autojump_clock


async def test_the_back_off_of_a_file_grows(autojump_clock: trio.testing.MockClock) -> None:
    failed = FailedFiles(backoff=BACKOFF)
    bad = File(failed, "bad")
    bad.error = KeepWriteError("never")

    await run(failed, 1000.0)

    waits = [after - before for before, after in zip(bad.tries, bad.tries[1:], strict=False)]
    assert all(4.0 <= wait <= 60.0 for wait in waits)
    assert max(waits) > 30.0
    del autojump_clock


async def test_retries_that_hang_free_their_places(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failed = FailedFiles(backoff=BACKOFF)
    hanging = [File(failed, f"hangs {number}") for number in range(8)]
    for each in hanging:
        each.hangs = True
    good = [File(failed, f"good {number}") for number in range(8)]

    await run(failed, 300.0)

    assert all(not each.has_unstored_changes for each in good)
    assert all(len(each.tries) <= 2 for each in hanging)
    del autojump_clock


async def test_the_number_of_hung_retries_is_limited(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failed = FailedFiles(backoff=BACKOFF)
    files = [File(failed, f"hangs {number}") for number in range(30)]
    for each in files:
        each.hangs = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(failed.retry)
        await trio.sleep(1000.0)
        tried = [each for each in files if each.tries]
        tried[0].end.set()
        await trio.sleep(1000.0)
        tried_then = [each for each in files if each.tries]
        nursery.cancel_scope.cancel()

    assert len(tried) == 16
    assert len(tried_then) == 17
    assert tried[0] not in failed
    del autojump_clock


async def test_a_retry_made_early_is_not_made_again_when_due(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failed = FailedFiles(backoff=BACKOFF)
    bad = File(failed, "bad")
    bad.error = KeepWriteError("never")
    failed.retry_now()

    await run(failed, 9.0)

    first, second = bad.tries
    assert second - first >= 4.0
    del autojump_clock


async def test_a_file_that_is_changed_while_it_is_stored_is_retried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failed = FailedFiles(backoff=BACKOFF)
    file = File(failed, "file")
    file.changes_meanwhile = 2

    await run(failed, 100.0)

    assert len(file.tries) == 3
    assert file not in failed
    del autojump_clock


async def test_a_user_may_retry_all_while_retries_hang(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failed = FailedFiles(backoff=BACKOFF)
    for number in range(30):
        File(failed, f"hangs {number}").hangs = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(failed.retry)
        await trio.sleep(600.0)
        late = File(failed, "late")
        failed.retry_now()
        await trio.sleep(300.0)
        nursery.cancel_scope.cancel()

    assert not late.has_unstored_changes
    del autojump_clock


async def test_a_file_that_is_being_changed_or_stored_is_left_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failed = FailedFiles(backoff=BACKOFF)
    changing, storing = File(failed, "changing"), File(failed, "storing")
    changing.is_being_changed = storing.is_storing = True

    await run(failed, 100.0)
    before = changing.tries + storing.tries
    changing.is_being_changed = storing.is_storing = False
    await run(failed, 100.0)

    assert before == []
    assert failed.files() == []
    del autojump_clock


async def test_files_of_earlier_mounts_are_tried_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failed = FailedFiles(backoff=BACKOFF)
    file = File(failed, "file")
    failed.add(file, at_once=True)

    await run(failed, 0.1)

    assert not file.has_unstored_changes
    del autojump_clock


async def test_on_change_is_called_for_each_change_and_new_path() -> None:
    changed: list[str] = []
    failed = FailedFiles(lambda file: changed.append(file.path))
    one, two = File(failed, "one"), File(failed, "two")

    failed.moved(one, is_directory=False)
    failed.moved(object(), is_directory=True)
    failed.discard(two)
    failed.discard(two)

    assert changed == ["one", "two", "one", "one", "two", "two"]
    assert len(failed) == 1
    assert one in failed


async def test_each_retry_is_logged_with_path_and_outcome(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    failed = FailedFiles(backoff=BACKOFF)
    bad = File(failed, "bad")
    bad.error = KeepWriteError("no service")

    await run(failed, 5.0)
    bad.error = None
    await run(failed, 10.0)

    assert caplog.messages == ["still not stored: bad: no service", "stored after a failure: bad"]
    del autojump_clock


async def test_the_first_retry_comes_after_the_first_wait_and_a_users_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failed = FailedFiles(backoff=BACKOFF)
    bad = File(failed, "bad")
    bad.error = KeepWriteError("never")
    begin = trio.current_time()

    await run(failed, 4.5)
    assert 2.0 <= bad.tries[0] - begin <= 4.0
    failed.retry_now()
    now = trio.current_time()
    await run(failed, 0.5)

    assert bad.tries[1:] == [now]
    del autojump_clock


async def test_a_file_removed_while_it_waits_or_fails_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failed = FailedFiles(backoff=BACKOFF)
    waits, fails, good = (File(failed, name) for name in ("waits", "fails", "good"))
    failed.discard(waits)
    fails.hangs, fails.error = True, ZeroDivisionError("a bug")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, failed, 30.0)
        await trio.sleep(5.0)
        failed.discard(fails)
        fails.end.set()

    assert (len(waits.tries), len(fails.tries), len(good.tries)) == (0, 1, 1)
    assert failed.files() == []
    del autojump_clock


async def test_a_file_whose_change_begins_just_before_its_retry_waits_for_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Changing(File):
        looks = 0

        @property
        def is_being_changed(self) -> bool:
            self.looks += 1
            return self.looks == 2  # it was due at the first look

        @is_being_changed.setter
        def is_being_changed(self, _value: bool) -> None:
            """Set by the constructor only."""

    failed = FailedFiles(backoff=BACKOFF)
    file = Changing(failed, "changing")
    begin = trio.current_time()

    await run(failed, 60.0)

    [tried] = file.tries
    assert 6.0 <= tried - begin <= 8.0
    assert failed.files() == []
    del autojump_clock
