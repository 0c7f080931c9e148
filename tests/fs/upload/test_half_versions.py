"""Half of a new version is neither stored over the good one nor lost, whatever fails."""

from __future__ import annotations

import contextlib
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from keepfs.fs.bridge import AsyncBlocks, open_blocks
from keepfs.fs.nodes import Changes, Metadata, directory_mode, file_mode
from keepfs.fs.upload import unsaved
from keepfs.fs.upload.catalog import Catalog
from keepfs.fs.upload.directory import UploadDirectory
from keepfs.fs.upload.drain import Drain
from keepfs.fs.upload.failed import FailedFiles
from keepfs.fs.upload.file import UploadFile
from keepfs.fs.upload.recovery import Spills
from keepfs.fs.upload.staging import Staging
from keepfs.keep import Cause, KeepWriteError
from tests.fakes.store import DictStore, FailingStore, GatedStore
from tests.fakes.threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

#: Seconds of patience with a retry or a store: none of these tests needs more.
SHORT = 0.01
FULL = KeepWriteError("the disk is full", cause=Cause.FULL)


class World:
    """A mount's files over a store that fails or hangs as told."""

    def __init__(
        self, blocks: AsyncBlocks, gated: GatedStore, state: Path, catalog: Catalog
    ) -> None:
        self.blocks, self.gated, self.state, self.catalog = blocks, gated, state, catalog
        self.staging = Staging(blocks, 10**6, 64, FailedFiles(patience=SHORT))
        owner = Metadata(directory_mode(0o755), 0, 0)
        self.upload = UploadDirectory.mounted(owner, self.staging, lambda *_: None, catalog)
        self.spills = Spills(blocks, state, catalog)
        self.drain = Drain(
            self.upload,
            self.spills,
            blocks,
            lambda: self.gated.open("put_block"),
            timeout=1.0,
            patience=SHORT,
        )

    async def stored(self, name: str, content: bytes) -> UploadFile:
        """Make a file with a stored version."""
        file = self.upload.create(name, Metadata(file_mode(0o644), 0, 0))
        assert isinstance(file, UploadFile)
        await self.rewrite(file, content)
        await file.store()
        file.closed()
        return file

    async def rewrite(self, file: UploadFile, content: bytes) -> None:
        """Open a file and give it new content."""
        file.opened()
        await file.truncate(0)
        await file.write(0, content)


@contextlib.asynccontextmanager
async def open_world(tmp_path: Path, failing: FailingStore) -> AsyncIterator[World]:
    with closing(Catalog(tmp_path / "catalog")) as catalog:
        gated = GatedStore(failing)
        async with open_blocks(gated, copies=1) as blocks:
            yield World(blocks, gated, tmp_path, catalog)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what threads do, which tell nobody."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.001)


def content_of(memory: DictStore, file: UploadFile) -> bytes:
    """Return the version that the catalog has."""
    assert file.place is not None
    return b"".join(memory.blocks[it.locator.md5sum] for it in file.place.version().ranges)


async def test_a_retry_that_hung_does_not_store_later_writes(
    tmp_path: Path,
) -> None:
    memory = DictStore()
    failing = FailingStore(memory)
    async with open_world(tmp_path, failing) as world, trio.open_nursery() as nursery:
        file = await world.stored("file", b"v1")
        await world.rewrite(file, b"v2 whole")
        failing.fail_next("put_block", FULL)
        with pytest.raises(KeepWriteError):
            await file.store()
        file.closed()
        world.gated.shut("put_block")
        nursery.start_soon(world.staging.failed.retry)
        world.staging.failed.retry_now()
        await until(lambda: file.is_storing)
        await world.rewrite(file, b"v3 ha")
        await trio.sleep(0.05)  # the retry's patience passes

        world.gated.open("put_block")
        await until(lambda: not file.is_storing and content_of(memory, file) != b"v1")
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()

        assert content_of(memory, file) == b"v2 whole"
        assert file.is_being_changed


async def test_the_drain_spills_later_writes_beside_the_stored_version(
    tmp_path: Path,
) -> None:
    memory = DictStore()
    failing = FailingStore(memory)
    async with open_world(tmp_path, failing) as world, trio.open_nursery() as nursery:
        file = await world.stored("file", b"v1")
        await world.rewrite(file, b"v2 whole")
        world.gated.shut("put_block")
        file.begin_store()
        file.closed()
        nursery.start_soon(world.drain.store)
        await until(lambda: file.is_storing)
        await world.rewrite(file, b"v3 ha")
        failing.fail_always("put_block", FULL)

        await until(lambda: world.drain.has_begun)
        world.drain.hurry()
        count, lost = await world.drain.finish()

        assert (count, lost) == (1, [])
        assert content_of(memory, file) == b"v1"
        (record,), _ = unsaved.find_records(tmp_path)
        assert record.about.is_partial


async def test_unsaved_files_are_spilled_after_a_task_was_cancelled(
    tmp_path: Path,
) -> None:
    failing = FailingStore(DictStore())
    with (
        closing(Catalog(tmp_path / "catalog")) as catalog,
        contextlib.suppress(BaseExceptionGroup),
    ):
        async with open_blocks(failing, copies=1) as blocks:
            world = World(blocks, GatedStore(failing), tmp_path, catalog)
            file = await world.stored("file", b"v1")
            failing.fail_always("put_block", FULL)
            await world.rewrite(file, b"v2")
            with pytest.raises(KeepWriteError):
                await file.store()
            file.closed()
            try:
                blocks._nursery.cancel_scope.cancel()  # noqa: SLF001 - as a bug in a task would
                await trio.lowlevel.checkpoint()
            finally:
                with trio.CancelScope(shield=True):
                    count, lost = await world.drain.finish()

    assert (count, lost) == (1, [])
    (record,), _ = unsaved.find_records(tmp_path)
    assert record.pieces()[0].staged == b"v2"


async def test_an_unreadable_catalog_does_not_prevent_a_spill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = FailingStore(DictStore())
    async with open_world(tmp_path, failing) as world:
        whole, half = [await world.stored(name, b"v1") for name in ("whole", "half")]
        failing.fail_always("put_block", FULL)
        for file in (whole, half):
            await world.rewrite(file, b"v2")
            with pytest.raises(KeepWriteError):
                await file.store()
        whole.closed()
        await half.write(0, b"v3")

        def broken(*_: object) -> None:
            raise OSError(5, "a page can't be read") from sqlite3.DatabaseError()

        monkeypatch.setattr(world.catalog, "child", broken)
        world.drain.hurry()
        await world.drain.store()
        count, lost = await world.drain.finish()

        assert (count, lost) == (2, [])
        assert len(unsaved.find_records(tmp_path)[0]) == 2


async def test_a_cut_by_name_that_cannot_be_recorded_is_stored_or_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = DictStore()
    async with open_world(tmp_path, FailingStore(memory)) as world:
        file = await world.stored("file", b"content")

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(world.catalog, "set_metadata", refuse)
            with pytest.raises(OSError, match="No space left"):
                await file.change(Changes(size=3))
            patch.undo()
            await until(lambda: not file.is_storing)

        assert content_of(memory, file) == b"con" or file in world.staging.failed
