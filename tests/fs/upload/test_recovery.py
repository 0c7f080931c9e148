"""Spill records: what is written of unstored files, and what the next mount makes of it."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing

from keepfs.fs.bridge import open_blocks
from keepfs.fs.nodes import Metadata, RenameMode, directory_mode, file_mode
from keepfs.fs.upload import unsaved
from keepfs.fs.upload.catalog import Catalog
from keepfs.fs.upload.directory import UploadDirectory
from keepfs.fs.upload.file import UploadFile
from keepfs.fs.upload.recovery import Spills
from keepfs.fs.upload.staging import Staging
from keepfs.fs.upload.stored import StoredBytes, StoredRange
from keepfs.fs.upload.storing import State
from keepfs.fs.upload.unsaved import About, Piece
from keepfs.keep import KeepLocator, KeepWriteError, Receipt
from tests.fakes.store import DictStore, FailingStore
from tests.fakes.threads import wait_until
from tests.messages.provoking import assert_shows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from keepfs.fs.bridge import AsyncBlocks

BLOCK = 8
DOWN = KeepWriteError("down")


class HeldBlocks:
    """Runs disk work when it is let go; for what happens while a record is written."""

    def __init__(self, blocks: AsyncBlocks) -> None:
        self._blocks = blocks
        self.gate = trio.Event()

    def start(
        self, task: Callable[..., Awaitable[None]], *arguments: object, is_awaited: bool = False
    ) -> None:
        self._blocks.start(task, *arguments, is_awaited=is_awaited)

    async def spill(self, work: Callable[[], Any]) -> Any:  # noqa: ANN401 - as the work
        await self.gate.wait()
        return await self._blocks.spill(work)


class Bench:
    """A state directory, a store that can fail, and one mount after another over them.

    Attributes:
        upload: The tree as it is mounted now.
        spills: Its spill records.
        staging: Its memory.
    """

    def __init__(self, blocks: AsyncBlocks, store: FailingStore, state: Path) -> None:
        self.blocks, self.store, self.state = blocks, store, state
        self.catalog = Catalog(state / "catalog")
        self.mount()

    def mount(self, maxsize: int = 100 * BLOCK) -> None:
        """Mount (again): nothing is in memory then, and nothing restored yet."""
        self.staging = Staging(self.blocks, maxsize, BLOCK)
        owner = Metadata(directory_mode(0o755), 1, 2, 3)
        self.upload = UploadDirectory.mounted(owner, self.staging, lambda *_: None, self.catalog)
        self.spills = Spills(self.blocks, self.state, self.catalog)

    async def restore(self) -> list[str]:
        """Restore, and return the names there are then."""
        await self.spills.restore(self.upload, self.staging)
        return list(self.upload.names())

    async def file(self, name: str, content: bytes) -> UploadFile:
        """Make a file that is not stored."""
        file = self.upload.create(name, Metadata(file_mode(0o640), 1, 2, 5, 6))
        assert isinstance(file, UploadFile)
        await file.write(0, content)
        return file

    async def stored(self, name: str, content: bytes) -> UploadFile:
        """Make a file that is stored."""
        file = await self.file(name, content)
        await file.store()
        return file

    def found(self, name: str) -> UploadFile:
        """Find a file."""
        file = self.upload.entry_nowait(name)
        assert isinstance(file, UploadFile)
        return file

    async def content(self, name: str) -> bytes:
        """Read a file."""
        return bytes(await self.found(name).read(0, 1000))

    def records(self) -> list[str]:
        """Return the names of the records there are."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(os.listdir(self.state / "unsaved"))
        return []

    def record(self, path: str, pieces: Sequence[Piece], **fields: Any) -> str:  # noqa: ANN401 - of About
        """Write a record as an earlier mount would have; return its name."""
        size = sum(each.length for each in pieces)
        return unsaved.spill(self.state, About(path, size, **fields), pieces).name


@contextlib.asynccontextmanager
async def open_bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = FailingStore(DictStore())
    async with open_blocks(store, copies=1) as blocks:
        bench = Bench(blocks, store, tmp_path / "state")
        with contextlib.closing(bench.catalog):
            yield bench


async def records_are(bench: Bench, count: int) -> None:
    """Wait until there are so many records."""
    await trio.to_thread.run_sync(wait_until, lambda: len(bench.records()) == count)


# --- spilling -----------------------------------------------------------------


async def test_spilled_files_are_restored_and_queued_by_the_next_mount(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.store.fail_always("put_block", DOWN)
        file = await bench.file("name", b"0123456789")
        with pytest.raises(KeepWriteError):
            await file.store()
        metadata = file.metadata
        assert await bench.spills.spill(file)
        (record,), _ = unsaved.find_records(bench.state)
        assert (record.about.error, record.about.version) == ("down", "")
        bench.mount()
        await bench.restore()
        found = bench.found("name")

        assert await bench.content("name") == b"0123456789"
        assert (found.metadata.mode, found.metadata.uid, found.metadata.gid) == (
            *(metadata.mode, metadata.uid, metadata.gid),
        )
        assert found.metadata.atime_ns == 5
        assert found.metadata.mtime_ns == metadata.mtime_ns
        assert found in bench.staging.failed
        assert not found.has_untried_changes
        assert await bench.spills.spill(found)  # it has its record already
        assert len(bench.records()) == 1

        bench.store.heal()
        await found.store()
        await records_are(bench, 0)
        bench.mount()
        assert await bench.restore() == ["name"]
        assert bench.found("name").state is State.STORED


async def test_a_file_is_spilled_again_only_if_it_was_changed_or_renamed(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        file = await bench.file("name", b"one")
        seen = []
        for name in ("name", "new"):
            bench.upload.rename(file.path, bench.upload, name, RenameMode.REPLACE)
            for _ in range(2):
                assert await bench.spills.spill(file)
                await records_are(bench, 1)
                seen += bench.records()
        await file.write(0, b"two")
        assert await bench.spills.spill(file)
        await records_are(bench, 1)
        (last,) = bench.records()

        assert seen[0] == seen[1]
        assert seen[2] == seen[3]
        assert len({seen[0], seen[2], last}) == 3
        (record,), _ = unsaved.find_records(bench.state)
        assert record.about.path == "new"
        assert record.about.replaces == (seen[2],)
        assert bytes(cast("bytes", record.pieces()[0].staged)) == b"two"


async def test_concurrent_spills_of_a_file_share_one_record(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        file = await bench.file("name", b"one")
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(bench.spills.spill, file)

        assert len(bench.records()) == 1


async def test_a_cancelled_waiter_does_not_end_a_spill(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        file = await bench.file("name", b"one")
        held = HeldBlocks(bench.blocks)
        spills = Spills(cast("AsyncBlocks", held), bench.state, bench.catalog)
        with trio.move_on_after(0):
            await spills.spill(file)
        held.gate.set()

        await records_are(bench, 1)


@pytest.mark.parametrize("is_removed", [True, False])
async def test_a_record_of_a_file_stored_or_removed_meanwhile_is_obsolete(
    tmp_path: Path, *, is_removed: bool
) -> None:
    async with open_bench(tmp_path) as bench:
        file = await bench.file("name", b"one")
        held = HeldBlocks(bench.blocks)
        spills = Spills(cast("AsyncBlocks", held), bench.state, bench.catalog)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spills.spill, file)
            await trio.testing.wait_all_tasks_blocked()
            if is_removed:
                bench.upload.unlink("name")
            else:
                await file.store()
            held.gate.set()
            held.gate = trio.Event()  # a crash comes before the record is deleted

        assert len(bench.records()) == 1
        assert bench.catalog.obsolete_spills() == set(bench.records())
        assert file.spilled is None
        held.gate.set()
        await records_are(bench, 0)


async def test_a_failing_disk_is_reported_and_retried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench(tmp_path) as bench:
        file = await bench.file("name", b"one")
        (bench.state / "unsaved").write_text("in the way")

        is_written = await bench.spills.spill(file)
        (bench.state / "unsaved").unlink()

        assert not is_written
        assert file.spilled is None
        assert "can't write name to the disk" in caplog.text
        assert_shows(caplog.text, "spill-failed")
        assert await bench.spills.spill(file)
        assert len(bench.records()) == 1


async def test_a_record_that_can_not_be_deleted_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench(tmp_path) as bench:
        file = await bench.file("name", b"one")
        assert await bench.spills.spill(file)
        log = bench.state / "catalog-wal"
        log.unlink()
        log.symlink_to(log)  # a sync of it fails

        await file.store()
        await trio.to_thread.run_sync(wait_until, lambda: "delete" in caplog.text)
        log.unlink()

        assert len(bench.records()) == 1
        assert_shows(caplog.text, "spill-record-left")


async def test_a_record_that_is_obsolete_is_deleted_and_not_restored(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        obsolete = bench.record("name", [Piece(3, staged=b"old")])
        with bench.catalog.change():
            bench.catalog.mark_obsolete(obsolete)

        assert await bench.restore() == []
        assert bench.records() == []
        assert bench.catalog.obsolete_spills() == set()


async def test_a_file_that_is_removed_or_stored_makes_its_record_obsolete_at_once(
    tmp_path: Path,
) -> None:
    async with open_bench(tmp_path) as bench:
        removed, replaced, stored = [await bench.file(name, b"x") for name in "abc"]
        await bench.file("other", b"y")
        held = HeldBlocks(bench.blocks)
        spills = Spills(cast("AsyncBlocks", held), bench.state, bench.catalog)
        held.gate.set()
        for file in (removed, replaced, stored):
            await spills.spill(file)
        names = set(bench.records())
        held.gate = trio.Event()  # a crash comes before anything is deleted

        bench.upload.unlink("a")
        bench.upload.rename("other", bench.upload, "b", RenameMode.REPLACE)
        await stored.store()

        assert len(names) == 3
        assert bench.catalog.obsolete_spills() == names
        held.gate.set()
        await records_are(bench, 0)


# --- restoring ----------------------------------------------------------------


async def test_a_half_written_version_is_restored_beside_the_stored_one(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        file = await bench.stored("name", b"good")
        file.opened()
        version = file.version
        await file.write(0, b"ha")
        assert await bench.spills.spill(file)
        (record,), _ = unsaved.find_records(bench.state)
        assert (record.about.version, record.about.is_partial) == (version, True)
        assert version
        bench.mount()

        assert await bench.restore() == ["name", "name~unsaved"]
        assert await bench.content("name") == b"good"
        assert await bench.content("name~unsaved") == b"haod"


async def test_a_half_written_version_gets_another_name_without_a_stored_one(
    tmp_path: Path,
) -> None:
    async with open_bench(tmp_path) as bench:
        bench.record("name", [Piece(3, staged=b"new")], is_partial=True)

        assert await bench.restore() == ["name~unsaved"]


async def test_an_unstored_version_replaces_the_one_that_it_was_made_from(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        await bench.stored("name", b"old")
        version = f"{bench.found('name').version}+Asigned@5f000000+Zhint"
        bench.record("name", [Piece(3, staged=b"new")], version=version)

        assert await bench.restore() == ["name"]
        assert await bench.content("name") == b"new"
        assert bench.found("name").has_unstored_changes


@pytest.mark.parametrize("version", ["", "37b51d194a7513e45b56f6524f2d51f2+3"])
async def test_an_unstored_version_of_another_base_is_restored_beside(
    tmp_path: Path, version: str
) -> None:
    async with open_bench(tmp_path) as bench:
        await bench.stored("name", b"old")
        for content in (b"new", b"NEW"):
            bench.record("name", [Piece(3, staged=content)], version=version)

        assert await bench.restore() == ["name", "name~unsaved", "name~unsaved-2"]
        assert await bench.content("name") == b"old"
        assert {await bench.content(f"name~unsaved{it}") for it in ("", "-2")} == {b"new", b"NEW"}


async def test_a_file_stored_before_a_crash_is_not_restored_twice(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        stored = await bench.stored("name", b"01234567abc\0\0")
        assert stored.place is not None
        first = stored.place.version_of(stored.number).slice(0, BLOCK)
        bench.record("name", [Piece(BLOCK, first), Piece(5, staged=b"abc")])
        bench.record("name", [Piece(BLOCK, staged=b"01234567"), Piece(5, staged=b"abc\0")])

        assert await bench.restore() == ["name"]
        assert bench.records() == []
        assert bench.found("name").state is State.STORED


async def test_a_short_block_padded_with_zeros_is_not_restored_as_zeros(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        short = await bench.blocks.put(b"abc", 3).wait()
        await bench.stored("name", bytes(5))
        bench.record("name", [Piece(5, StoredBytes.of_blocks([short]))])

        assert await bench.restore() == ["name", "name~unsaved"]
        assert await bench.content("name~unsaved") == b"abc\0\0"


async def test_files_are_restored_up_to_the_staging_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench(tmp_path) as bench:
        for name in "abc":
            bench.record(name, [Piece(6, staged=b"staged")])
            os.utime(max((bench.state / "unsaved").iterdir(), key=os.path.getmtime))
        bench.mount(maxsize=2 * BLOCK)

        assert len(await bench.restore()) == 2
        assert len(bench.records()) == 3
        assert "--staging-size is used up" in caplog.text
        assert_shows(caplog.text, "not-restored")
        for name in list(bench.upload.names()):
            await bench.found(name).store()
        await records_are(bench, 1)
        bench.mount(maxsize=4)
        assert len(await bench.restore()) == 3  # one alone may be larger


async def test_an_unusable_record_stays_and_the_others_are_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench(tmp_path) as bench:
        damaged = bench.record("damaged", [Piece(6, staged=b"staged")])
        (bench.state / "unsaved" / damaged / "bytes").write_bytes(b"STAGED")
        odd = bench.record("odd", [Piece(3, staged=b"odd"), Piece(3, staged=b"odd")])
        foreign = bench.record("foreign", [Piece(1, staged=b"x")])
        (bench.state / "unsaved" / foreign / "about.json").write_text("{}")
        bench.record("good", [Piece(4, staged=b"good")])

        assert await bench.restore() == ["good"]
        assert {damaged, odd, foreign} <= set(bench.records())
        for name in (damaged, odd, foreign):
            assert name in caplog.text


async def inner(bench: Bench) -> UploadFile:
    """Make a stored file in a directory."""
    directory = bench.upload.mkdir("c", Metadata(directory_mode(0o755), 1, 2))
    file = directory.create("inner", Metadata(file_mode(0o644), 1, 2))
    assert isinstance(file, UploadFile)
    await file.store()
    return file


async def test_missing_directories_are_created_unless_a_file_has_the_name(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        await bench.stored("file", b"x")
        bench.record("a/b/one", [Piece(3, staged=b"one")], uid=7, gid=8)
        bench.record("file/two", [Piece(3, staged=b"two")])
        other = await inner(bench)
        bench.record(f"{other.path}/three", [Piece(5, staged=b"three")])

        assert await bench.restore() == ["a", "c", "file", "three", "two"]
        files = {file.path: file for file in bench.upload.files()}
        assert set(files) == {"a/b/one", "c/inner", "file", "two", "three"}
        directory = bench.upload.entry_nowait("a")
        assert directory is not None
        assert (directory.metadata.uid, directory.metadata.gid) == (7, 8)


async def test_a_name_too_long_for_a_suffix_is_replaced(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        name = "x" * 255
        await bench.stored(name, b"old")
        bench.record(name, [Piece(3, staged=b"new")], mtime_ns=42)

        assert await bench.restore() == ["unsaved-42", name]
        assert await bench.content("unsaved-42") == b"new"


async def packed_file(bench: Bench, name: str, *places: tuple[bytes, int, int]) -> UploadFile:
    """Make a file of parts of blocks, as an import does."""
    ranges = []
    for block, begin, length in places:
        receipt = await bench.blocks.put(block, len(block)).wait()
        ranges.append(StoredRange(receipt, begin, length))
    metadata = Metadata(file_mode(0o640), 1, 2, 5, 6)
    bench.upload.add_stored({name: (metadata, StoredBytes(ranges))})
    return bench.found(name)


async def test_a_changed_packed_file_is_spilled_and_restored_with_its_parts(
    tmp_path: Path,
) -> None:
    async with open_bench(tmp_path) as bench:
        places = (b"0123456789", 4, 5), (b"abcdefghijklmnopqrstuvwxyz", 2, 21)
        file = await packed_file(bench, "name", *places)
        before = file.load().version
        file.opened()
        await file.write(BLOCK, b"X")
        bench.store.fail_always("put_block", DOWN)
        with pytest.raises(KeepWriteError):
            await file.store()
        assert await bench.spills.spill(file)
        bench.mount()
        bench.store.heal()

        assert await bench.restore() == ["name"]
        restored = bench.found("name")
        assert bench.staging.currsize == BLOCK
        await restored.store()

        assert await bench.content("name") == b"45678cdeXghijklmnopqrstuvw"
        after = restored.load().version
        assert after.slice(0, BLOCK) == before.slice(0, BLOCK)
        assert after.slice(2 * BLOCK, 99) == before.slice(2 * BLOCK, 99)
        assert after.slice(BLOCK, 2 * BLOCK).ranges[0].is_whole


async def test_a_record_of_one_part_of_a_block_does_not_replace_another(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        block = b"0123456789"
        first = await packed_file(bench, "name", (block, 0, 4))
        bench.record("name", [Piece(3, staged=b"new")], version=first.version)
        bench.upload.unlink("name")
        await packed_file(bench, "name", (block, 4, 4))

        assert await bench.restore() == ["name", "name~unsaved"]
        assert await bench.content("name") == b"4567"
        assert await bench.content("name~unsaved") == b"new"


async def test_a_packed_version_that_was_stored_before_the_crash_is_no_second_file(
    tmp_path: Path,
) -> None:
    async with open_bench(tmp_path) as bench:
        block = b"0123456789ABC"
        file = await packed_file(bench, "name", (block, 1, 10))
        stored = file.load().version
        pieces = [Piece(BLOCK, stored.slice(0, BLOCK)), Piece(2, stored.slice(BLOCK, 99))]
        bench.record("name", pieces)

        assert await bench.restore() == ["name"]
        assert bench.records() == []


async def test_a_hole_and_a_stored_block_are_restored_without_their_bytes(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        block = await bench.blocks.put(b"01234567", BLOCK).wait()
        assert block == Receipt(KeepLocator.of_block(b"01234567"), 1, ("dict:",))
        bench.record(
            "name",
            [Piece(BLOCK), Piece(BLOCK, StoredBytes.of_blocks([block])), Piece(2, staged=b"xy")],
        )

        await bench.restore()

        assert await bench.content("name") == bytes(8) + b"01234567xy"
        assert bench.staging.currsize == BLOCK  # of the last two bytes


async def test_restored_files_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "keepfs.fs.upload.recovery")
    async with open_bench(tmp_path) as bench:
        bench.record("name", [Piece(3, staged=b"new")])
        await bench.restore()

    assert caplog.messages == ["restored what was not stored: name"]
