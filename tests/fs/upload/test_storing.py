"""A file and the task that stores it: who waits for it, and what it records."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from keepfs.fs.bridge import open_blocks
from keepfs.fs.nodes import Metadata, file_mode
from keepfs.fs.upload.failed import FailedFiles
from keepfs.fs.upload.passage import PassageEvent
from keepfs.fs.upload.storing import State, StoringFile
from keepfs.keep import KeepWriteError
from tests.fakes.store import DictStore
from tests.messages.provoking import assert_shows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keepfs.fs.bridge import AsyncBlocks

DOWN = KeepWriteError("no service takes it")


class File(StoringFile):
    """A file whose attempts wait at a gate and end as told.

    Attributes:
        attempts: The changes that each attempt had to cover.
        errors: What the next attempts raise; None for a success, as when there are no more.
        ends: How many attempts have ended.
        gate: Attempts wait while it is not set.
    """

    def __init__(self, blocks: AsyncBlocks) -> None:
        super().__init__(Metadata(file_mode(0o644), 1, 2), blocks, FailedFiles())
        self.failed, self.blocks = self._failed, blocks
        self.attempts: list[int] = []
        self.errors: list[Exception | None] = []
        self.ends = 0
        self.gate = trio.Event()
        self.gate.set()

    @property
    def path(self) -> str:
        return "the file"

    @property
    def size(self) -> int:
        return 0

    def opened(self) -> None:
        self._openings += 1

    def change_content(self) -> None:
        """Change it, as a write does."""
        self._passage.note(PassageEvent.CHANGE)

    def remove(self) -> None:
        """Take its name."""
        self.links = 0

    async def _store_once(self, changes: int) -> None:
        self.attempts.append(changes)
        gate = self.gate
        await gate.wait()
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        self._passage.note(PassageEvent.RECORD)

    def _is_sending(self) -> bool:
        return False

    def _attempt_ended(self) -> None:
        self.ends += 1

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        raise NotImplementedError

    def shut(self) -> None:
        """Let attempts that begin from now on wait."""
        self.gate = trio.Event()


@contextlib.asynccontextmanager
async def open_file(openings: int = 0) -> AsyncIterator[File]:
    async with open_blocks(DictStore(), copies=1) as blocks:
        file = File(blocks)
        for _ in range(openings):
            file.opened()
        yield file


async def settle() -> None:
    """Let all tasks go as far as they can."""
    await trio.testing.wait_all_tasks_blocked()


class Waiter:
    """A request that waits for a store, and what it learned."""

    def __init__(self, file: File, nursery: trio.Nursery) -> None:
        self._file = file
        self.scope = trio.CancelScope()
        self.result: object = "waiting"
        nursery.start_soon(self._wait)

    async def _wait(self) -> None:
        with self.scope:
            try:
                await self._file.store()
                self.result = "stored"
            except Exception as error:  # noqa: BLE001 - for the test
                self.result = error


async def test_callers_that_need_the_same_changes_share_an_attempt() -> None:
    async with open_file() as file, trio.open_nursery() as nursery:
        file.shut()
        waiters = [Waiter(file, nursery) for _ in range(3)]
        await settle()
        state, results = file.state, {waiter.result for waiter in waiters}
        file.gate.set()
        await settle()

        assert (state, results) == (State.STORING, {"waiting"})
        assert [waiter.result for waiter in waiters] == ["stored"] * 3
        assert file.attempts == [1]
        assert file.ends == 1
        assert not file.has_untried_changes
        assert not file.has_unstored_changes
        assert not file.is_storing


async def test_a_failure_reaches_all_waiters_and_queues_the_file() -> None:
    async with open_file() as file, trio.open_nursery() as nursery:
        file.errors = [DOWN]
        file.shut()
        waiters = [Waiter(file, nursery) for _ in range(2)]
        await settle()
        file.gate.set()
        await settle()

        results = [waiter.result for waiter in waiters]
        assert [str(result) for result in results] == [str(DOWN)] * 2
        assert results[0] is not results[1]
        assert file.attempts == [1]
        assert file in file.failed
        assert not file.has_untried_changes
        assert file.has_unstored_changes
        assert file.error == "no service takes it"
        state = file.state
        assert state is State.FAILED


async def test_a_later_success_takes_the_file_out_of_the_queue() -> None:
    async with open_file() as file:
        file.errors = [DOWN]
        with pytest.raises(KeepWriteError):
            await file.store()

        await file.store()

        assert file not in file.failed
        assert file.failure is None
        assert file.state is State.STORED


async def test_a_success_of_older_changes_leaves_the_file_in_the_queue() -> None:
    async with open_file(openings=1) as file, trio.open_nursery() as nursery:
        file.errors = [DOWN]
        with pytest.raises(KeepWriteError):
            await file.store()
        file.shut()
        waiter = Waiter(file, nursery)
        await settle()
        file.change_content()
        file.gate.set()
        await settle()

        assert waiter.result == "stored"
        assert file.attempts == [1, 1]
        assert file in file.failed
        assert file.has_unstored_changes
        assert file.state is State.DIRTY


async def test_a_cancelled_waiter_does_not_end_the_attempt() -> None:
    async with open_file() as file, trio.open_nursery() as nursery:
        file.shut()
        waiter = Waiter(file, nursery)
        await settle()
        waiter.scope.cancel()
        await settle()
        is_storing = file.is_storing
        file.gate.set()
        await settle()

        assert is_storing
        assert waiter.result == "waiting"
        assert file.state is State.STORED


async def test_a_store_of_later_changes_waits_for_another_attempt() -> None:
    async with open_file(openings=1) as file, trio.open_nursery() as nursery:
        file.shut()
        first = Waiter(file, nursery)
        await settle()
        file.change_content()
        second = Waiter(file, nursery)
        await settle()
        gate = file.gate
        file.shut()
        gate.set()
        await settle()
        results = first.result, second.result
        file.gate.set()
        await settle()

        assert results == ("stored", "waiting")
        assert second.result == "stored"
        assert file.attempts == [1, 2]


async def test_a_store_of_later_changes_ignores_an_older_failure() -> None:
    async with open_file(openings=1) as file, trio.open_nursery() as nursery:
        file.errors = [DOWN]
        file.shut()
        first = Waiter(file, nursery)
        await settle()
        file.change_content()
        second = Waiter(file, nursery)
        await settle()
        file.gate.set()
        await settle()

        assert isinstance(first.result, KeepWriteError)
        assert second.result == "stored"
        assert file.attempts == [1, 2]
        assert file.state is State.STORED
        assert file not in file.failed


@pytest.mark.parametrize("openings", [0, 1])
async def test_changes_made_meanwhile_are_stored_next_unless_a_close_will_follow(
    openings: int,
) -> None:
    async with open_file(openings) as file:
        file.shut()
        file.begin_store()
        await settle()
        file.change_content()
        file.gate.set()
        await settle()

        assert file.attempts == ([1] if openings else [1, 2])
        assert file.has_untried_changes == bool(openings)
        assert file.is_being_changed == bool(openings)
        assert file.state is (State.DIRTY if openings else State.STORED)
        file.change_content()
        assert file.has_untried_changes
        assert file.is_being_changed == bool(openings)


async def test_requested_changes_are_stored_without_a_waiter() -> None:
    async with open_file(openings=1) as file:
        file.shut()
        file.begin_store()
        await settle()
        file.change_content()
        file.begin_store()
        file.gate.set()
        await settle()

        assert file.attempts == [1, 2]
        assert file.state is State.STORED


async def test_half_of_later_changes_is_not_stored_with_the_earlier_ones() -> None:
    async with open_file(openings=1) as file:
        file.shut()
        file.begin_store()
        await settle()
        file.begin_store()
        file.change_content()
        file.gate.set()
        await settle()

        assert file.attempts == [1]


async def test_a_failing_file_is_not_retried_without_a_pause() -> None:
    async with open_file() as file:
        file.errors = [DOWN] * 5
        file.begin_store()
        await settle()

        assert file.attempts == [1]
        assert file in file.failed


async def test_a_task_that_cannot_be_started_leaves_the_file_to_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(*_: object) -> None:
        raise MemoryError

    async with open_file() as file:
        with monkeypatch.context() as patch:
            patch.setattr(file.blocks, "start", start)
            with pytest.raises(MemoryError):
                file.begin_store()

        assert not file.is_storing
        assert file.has_untried_changes
        await file.store()
        assert file.state is State.STORED


async def test_the_repr_names_the_state() -> None:
    async with open_file(openings=1) as file:
        seen = [repr(file)]
        file.shut()
        file.begin_store()
        await settle()
        seen.append(repr(file))
        file.change_content()
        seen.append(repr(file))
        file.gate.set()
        await settle()
        seen.append(repr(file))

    assert seen == [
        "<File 'the file' UNTRIED, 0 of 1 changes stored, 1 openings>",
        "<File 'the file' STORING, 0 of 1 changes stored, 1 openings>",
        "<File 'the file' BEHIND, 0 of 2 changes stored, 1 openings>",
        "<File 'the file' UNTRIED, 1 of 2 changes stored, 1 openings>",
    ]


async def test_a_removed_file_is_neither_stored_nor_queued() -> None:
    async with open_file() as file, trio.open_nursery() as nursery:
        file.errors = [DOWN]
        file.shut()
        waiter = Waiter(file, nursery)
        await settle()
        file.change_content()
        file.remove()
        file.gate.set()
        await settle()
        await file.store()

        assert isinstance(waiter.result, KeepWriteError)
        assert file.attempts == [1]
        assert file not in file.failed
        assert not file.has_untried_changes
        assert not file.has_unstored_changes


async def test_a_failure_is_logged_if_no_waiter_reports_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "keepfs.fs.upload.storing")
    async with open_file() as file:
        file.errors = [DOWN, DOWN]
        with pytest.raises(KeepWriteError):
            await file.store()
        logged_with_a_waiter = list(caplog.messages)
        file.begin_store()
        await settle()

    assert logged_with_a_waiter == []
    assert caplog.messages == ["not stored: the file: no service takes it [not-stored]"]
    assert_shows(caplog.text, "not-stored")


async def test_an_unexpected_failure_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_file() as file:
        file.errors = [ZeroDivisionError("a bug")]
        with pytest.raises(ZeroDivisionError, match="a bug"):
            await file.store()

        assert file.error == "ZeroDivisionError: a bug"
        assert file in file.failed
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "the file" in record.getMessage()


async def test_an_error_without_a_text_is_named_by_its_type() -> None:
    async with open_file() as file:
        for error, text in (
            (OSError(), "OSError: "),
            (OSError(28, "No space left"), "[Errno 28] No space left"),
            (KeyError("x"), "KeyError: 'x'"),
        ):
            file.errors = [error]
            with pytest.raises(type(error)):
                await file.store()
            assert file.error == text


async def test_the_end_of_the_mount_cancels_attempts_and_waiters() -> None:
    async with trio.open_nursery() as nursery, open_file() as file:
        file.shut()
        waiter = Waiter(file, nursery)
        await settle()

    assert isinstance(waiter.result, KeepWriteError)
    assert str(waiter.result) == "the mount has ended"
    assert not file.is_storing
    assert file.has_unstored_changes
