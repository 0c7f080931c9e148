"""Supervised tasks: an unexpected exception is logged, and the task restarted."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from keepfs.fs.supervision import supervised
from keepfs.keep.retry import Backoff
from tests.messages.provoking import assert_shows


class Failing:
    """A task that fails so many times, then returns."""

    def __init__(self, failures: int, lasts: float = 0.0) -> None:
        self.left = failures
        self.starts: list[float] = []
        self._lasts = lasts

    async def run(self) -> None:
        self.starts.append(trio.current_time())
        await trio.sleep(self._lasts)
        if self.left:
            self.left -= 1
            raise ZeroDivisionError("a bug")


async def test_a_failing_task_is_restarted_after_growing_waits_and_logged(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    task = Failing(4)

    await supervised("the task", task.run, backoff=Backoff(first=1.0, factor=2.0, cap=60.0))

    waits = [after - before for before, after in zip(task.starts, task.starts[1:], strict=False)]
    assert [wait <= nominal for wait, nominal in zip(waits, (1, 2, 4, 8), strict=True)] == [
        True
    ] * 4
    assert waits[3] >= 4.0
    assert [record.exc_info is not None for record in caplog.records] == [True] * 4
    assert "the task failed; restarting it in" in caplog.text
    assert_shows(caplog.text, "task-restarted")
    del autojump_clock


async def test_an_exception_group_is_a_failure_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    task = Failing(1)

    async def group() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.run)

    await supervised("the task", group)

    assert len(task.starts) == 2
    del autojump_clock


async def test_after_most_failures_in_a_row_the_exception_is_raised(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Failing(100)
    with pytest.raises(ZeroDivisionError):
        await supervised("the task", failing.run, most=3)
    steady = Failing(10, lasts=100.0)
    await supervised("the task", steady.run, most=3)

    assert len(failing.starts) == 3
    assert_shows(caplog.text, "task-given-up")
    assert len(steady.starts) == 11
    del autojump_clock


async def test_cancellation_ends_it() -> None:
    with trio.move_on_after(0.01) as scope:
        await supervised("the task", trio.sleep_forever)

    assert scope.cancelled_caught
