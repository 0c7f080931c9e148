"""The journal of unstored files: kept up to date beside the mount, and left with what is lost."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio

from keepfs.fs.bridge import open_blocks
from keepfs.fs.nodes import Metadata, RenameMode, directory_mode, file_mode
from keepfs.fs.upload import failed_journal
from keepfs.fs.upload.catalog import Catalog
from keepfs.fs.upload.directory import UploadDirectory
from keepfs.fs.upload.failed import FailedFiles
from keepfs.fs.upload.failed_journal import FailedJournal
from keepfs.fs.upload.file import UploadFile
from keepfs.fs.upload.noting import FailureNotes
from keepfs.fs.upload.staging import Staging
from keepfs.fs.upload.unsaved import About
from tests.fakes.store import DictStore
from tests.messages.provoking import assert_shows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import pytest
    from trio.testing import MockClock

    from keepfs.fs.bridge import AsyncBlocks

T = TypeVar("T")


class Blocks:
    """Runs disk work at once.

    Attributes:
        updates: How much work came.
        error: What it fails with, if it does.
    """

    def __init__(self) -> None:
        self.updates = 0
        self.error: OSError | None = None

    async def run(self, work: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        self.updates += 1
        if self.error is not None:
            raise self.error
        return work()


class Bench:
    """Files whose store has failed, and the notes of them.

    Attributes:
        failed: The files.
        blocks: Runs the writes.
        notes: What writes.
    """

    def __init__(self, blocks: AsyncBlocks, state: Path) -> None:
        self.failed = FailedFiles()
        staging = Staging(blocks, failed=self.failed)
        owner = Metadata(directory_mode(0o755), 1, 2, 3)
        self.upload = UploadDirectory.mounted(owner, staging, lambda *_: None, Catalog())
        self.state = state
        self.notes = FailureNotes(FailedJournal(state), self.failed)
        self.blocks = Blocks()

    def fail(self, name: str) -> UploadFile:
        """Make a file whose store has failed."""
        file = self.upload.create(name, Metadata(file_mode(0o644), 1, 2))
        assert isinstance(file, UploadFile)
        self.failed.add(file)
        return file

    async def run(self) -> None:
        """Keep the journal up to date until cancelled."""
        await self.notes.run(cast("Any", self.blocks))

    def noted(self) -> list[str]:
        """Return the paths in the journal."""
        return sorted(each.path for each in failed_journal.read(self.state))


@contextlib.asynccontextmanager
async def open_bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_blocks(DictStore(), copies=1) as blocks:
        bench = Bench(blocks, tmp_path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.run)
            yield bench
            nursery.cancel_scope.cancel()


async def test_the_journal_has_files_from_their_failure_until_their_store(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_bench(tmp_path) as bench:
        one, two = bench.fail("one"), bench.fail("two")
        await trio.sleep(1)
        both = bench.noted()
        bench.failed.discard(one)
        await trio.sleep(1)
        rest = bench.noted()
        bench.failed.discard(two)
        await trio.sleep(1)

        assert both == ["one", "two"]
        assert rest == ["two"]
        assert bench.noted() == []
        assert not (tmp_path / "unsaved.jsonl").exists()
    del autojump_clock


async def test_a_file_that_fails_again_or_is_renamed_has_one_entry(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_bench(tmp_path) as bench:
        file = bench.fail("one")
        await trio.sleep(1)
        bench.failed.add(file)
        await trio.sleep(1)
        again = bench.noted()
        bench.upload.rename("one", bench.upload, "new", RenameMode.REPLACE)
        await trio.sleep(1)

        assert again == ["one"]
        assert bench.noted() == ["new"]
        bench.failed.discard(file)
        await trio.sleep(1)
        assert bench.noted() == []
    del autojump_clock


async def test_a_file_that_was_never_noted_is_not_noted_as_stored(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_bench(tmp_path) as bench:
        bench.failed.discard(bench.fail("short"))
        await trio.sleep(1)

        assert bench.blocks.updates == 0
    del autojump_clock


async def test_many_changes_are_one_write(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_bench(tmp_path) as bench:
        for number in range(1000):
            bench.fail(str(number))
            if number % 100 == 0:
                await trio.sleep(0.001)
        await trio.sleep(1)

        assert bench.blocks.updates == 1
        assert len(bench.noted()) == 1000
    del autojump_clock


async def test_a_failing_disk_is_reported_once_and_retried(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "keepfs.fs.upload.noting")
    async with open_bench(tmp_path) as bench:
        (tmp_path / "unsaved.jsonl.new").mkdir()  # in the way
        bench.fail("one")
        await trio.sleep(12)
        tries, warnings = bench.blocks.updates, len(caplog.messages)
        (tmp_path / "unsaved.jsonl.new").rmdir()
        await trio.sleep(6)
        noted = bench.noted()
        after = bench.blocks.updates
        await trio.sleep(60)

        assert 2 <= tries <= 4
        assert warnings == 1
        assert "can't record which files are unsaved" in caplog.text
        assert noted == ["one"]
        assert bench.blocks.updates == after  # it is over
        bench.blocks.error = OSError("again")
        bench.fail("two")
        await trio.sleep(12)
        assert len(caplog.messages) == 2
    del autojump_clock


async def test_at_the_end_the_journal_has_only_lost_files(tmp_path: Path) -> None:
    async with open_blocks(DictStore(), copies=1) as blocks:
        bench = Bench(blocks, tmp_path)
        lost = bench.fail("lost")
        bench.fail("spilled")
        FailedJournal(tmp_path).update({7: About("spilled", 1)})

        bench.notes.end([lost])
        noted = bench.noted()
        bench.notes.end([])

        assert noted == ["lost"]
        assert bench.noted() == []


async def test_a_failing_disk_at_the_end_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_blocks(DictStore(), copies=1) as blocks:
        bench = Bench(blocks, tmp_path)
        lost = bench.fail("lost")
        (tmp_path / "unsaved.jsonl.new").mkdir()

        bench.notes.end([lost])

    assert "can't record which files are lost" in caplog.text
    assert_shows(caplog.text, "unsaved-not-noted")
