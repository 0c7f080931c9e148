"""A file of upload/ whose blocks are refused or lost: new signatures, and what is recorded."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from keepfs.fs.bridge import open_blocks
from keepfs.fs.nodes import Metadata, directory_mode, file_mode
from keepfs.fs.upload.catalog import Catalog
from keepfs.fs.upload.directory import UploadDirectory
from keepfs.fs.upload.file import UploadFile
from keepfs.fs.upload.renewal import Relabelled
from keepfs.fs.upload.staging import Staging
from keepfs.fs.upload.stored import StoredBytes, StoredRange
from keepfs.keep import Cause, KeepLocator, KeepReadError
from tests.fakes.store import DictStore, FailingStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NUMBER = 17
BLOCK = 8
CONTENT = b"01234567"
DENIED = KeepReadError("the signature has ended", cause=Cause.DENIED)
#: Fresh signatures; the bytes of a block decide nothing here.
SIGNED = "+A" + 40 * "a" + "@ffffffff"


@dataclass
class RecordingRenewal:
    """Gives new signatures to one file, or none, and records what it is called with.

    Attributes:
        file: Gets the signatures.
        has_new: Whether there are any.
        refusals: The refused locators, and the number of their file.
        missed: The numbers of files with a lost block, and the reasons.
    """

    file: UploadFile | None = None
    has_new: bool = True
    refusals: list[tuple[str, int | None]] = field(default_factory=list)
    missed: list[tuple[int | None, str]] = field(default_factory=list)

    def retained(self, number: int | None) -> str:
        """Return a uuid for the file of the test."""
        return "zzzzz-4zz18-000000000000000" if number == NUMBER else ""

    async def refused(self, locator: KeepLocator, number: int | None) -> bool:
        """Sign all blocks of the file, if that is possible."""
        self.refusals.append((str(locator), number))
        if self.has_new and self.file is not None:
            self.file.take_locators(Relabelled(signed))
        return self.has_new

    def missing(self, number: int | None, reason: str) -> None:
        """Record it."""
        self.missed.append((number, reason))

    def lost(self, number: int | None) -> str:
        """Return the first reason recorded for the file."""
        return next((reason for it, reason in self.missed if it == number), "")


def signed(locator: KeepLocator) -> KeepLocator:
    """Return the locator with a signature."""
    return KeepLocator(locator.stripped() + SIGNED)


@dataclass
class Case:
    """A stored file of one block, which is not cached.

    Attributes:
        file: The file.
        memory: Its store.
        failing: In front of it.
        renewal: What the file uses.
    """

    file: UploadFile
    memory: DictStore
    failing: FailingStore
    renewal: RecordingRenewal


@contextlib.asynccontextmanager
async def open_case(*, has_new: bool = True) -> AsyncIterator[Case]:
    """Store a file."""
    memory = DictStore()
    failing = FailingStore(memory)
    async with open_blocks(failing, copies=2) as blocks:
        staging = Staging(blocks, 100 * BLOCK, BLOCK)
        renewal = RecordingRenewal(has_new=has_new)
        staging.renewal = renewal
        file = UploadFile(Metadata(file_mode(0o644), 7, 8), staging, lambda *_: None)
        file.number = NUMBER
        renewal.file = file
        file.opened()
        await file.write(0, CONTENT)
        await file.store()
        memory.forget_cached()
        yield Case(file, memory, failing, renewal)


async def test_a_refused_read_is_repeated_with_new_signatures() -> None:
    async with open_case() as case:
        old = case.file.xattrs()["user.keep.locator"].split(",")[0]
        case.failing.fail_next("get_block", DENIED)

        content = bytes(await case.file.read(0, BLOCK))

        assert content == CONTENT
        assert case.renewal.refusals == [(old, NUMBER)]
        assert all(SIGNED in it for it in case.file.xattrs()["user.keep.locator"].split(","))


async def test_a_refused_read_fails_if_there_are_no_new_signatures() -> None:
    async with open_case(has_new=False) as case:
        case.failing.fail_next("get_block", DENIED)

        with pytest.raises(KeepReadError) as caught:
            await case.file.read(0, BLOCK)

        assert caught.value.cause is Cause.DENIED
        assert len(case.renewal.refusals) == 1


async def test_a_read_that_is_refused_twice_fails() -> None:
    async with open_case() as case:
        case.failing.fail_next("get_block", DENIED, DENIED)

        with pytest.raises(KeepReadError) as caught:
            await case.file.read(0, BLOCK)

        assert caught.value.cause is Cause.DENIED
        assert len(case.renewal.refusals) == 1


async def test_a_read_that_fails_otherwise_fetches_no_signatures() -> None:
    async with open_case() as case:
        case.failing.fail_next("get_block", KeepReadError("no service", cause=Cause.UNREACHABLE))

        with pytest.raises(KeepReadError) as caught:
            await case.file.read(0, BLOCK)

        assert caught.value.cause is Cause.UNREACHABLE
        assert case.renewal.refusals == []
        assert case.renewal.missed == []


async def test_a_block_in_no_service_makes_the_file_lost() -> None:
    async with open_case() as case:
        case.memory.blocks.clear()

        with pytest.raises(KeepReadError, match="a block is lost: ") as caught:
            await case.file.read(0, BLOCK)

        assert caught.value.cause is Cause.OTHER
        assert [number for number, _ in case.renewal.missed] == [NUMBER]
        assert "not found" in case.renewal.missed[0][1]
        xattrs = case.file.xattrs()
        assert xattrs["user.keep.state"] == "lost"
        assert xattrs["user.keep.error"] == case.renewal.missed[0][1]
        assert "user.keep.locator" in xattrs


async def test_a_stored_file_shows_what_retains_it() -> None:
    async with open_case() as case:
        assert case.file.xattrs()["user.keep.retained"] == "zzzzz-4zz18-000000000000000"


async def test_a_file_that_is_stored_anew_has_its_new_blocks_without_the_old_signatures() -> None:
    async with open_case() as case:
        await case.file.write(BLOCK, b"more")
        await case.file.store()
        case.file.take_locators(Relabelled(signed))
        await case.file.write(0, b"changed!")
        await case.file.store()

        first, second = case.file.xattrs()["user.keep.locator"].split(",")

        assert SIGNED not in first
        assert SIGNED in second


async def test_a_change_of_a_slot_with_parts_of_blocks_is_repeated_with_new_signatures() -> None:
    async with open_case() as case:
        staging = Staging(case.file._staging.blocks, 100 * BLOCK, BLOCK)  # noqa: SLF001 - its blocks
        staging.renewal = case.renewal
        blocks = [case.memory.put_block(each, 1) for each in (b"abc", CONTENT)]
        version = StoredBytes([StoredRange(blocks[0], 1, 2), StoredRange(blocks[1], 4, 3)])
        with contextlib.closing(Catalog()) as catalog:
            owner = Metadata(directory_mode(0o755), 0, 0)
            upload = UploadDirectory.mounted(owner, staging, lambda *_: None, catalog)
            upload.add_stored({"file": (Metadata(file_mode(0o644), 0, 0), version)})
            file = upload.entry_nowait("file")
            assert isinstance(file, UploadFile)
            case.renewal.file = file
            file.opened()
            case.memory.forget_cached()
            case.failing.fail_next("get_block", DENIED)

            await file.write(0, b"X")
            await file.store()

            assert bytes(await file.read(0, 9)) == b"Xc456"
            assert [locator for locator, _ in case.renewal.refusals] == [
                str(each.locator) for each in blocks
            ]
