"""What a file consists of: used slots, stored blocks and holes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from keepfs.fs.bridge import open_blocks
from keepfs.fs.upload.content import Content
from keepfs.fs.upload.slot import Slot
from keepfs.fs.upload.staging import Staging
from keepfs.fs.upload.stored import NOTHING, StoredBytes
from keepfs.fs.upload.unsaved import Piece
from tests.fakes.store import DictStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BLOCK = 8


@contextlib.asynccontextmanager
async def open_staging() -> AsyncIterator[Staging]:
    async with open_blocks(DictStore(), copies=1) as blocks:
        yield Staging(blocks, block_size=BLOCK)


async def stored(staging: Staging, *contents: bytes) -> StoredBytes:
    return StoredBytes.of_blocks(
        [await staging.blocks.put(each, len(each)).wait() for each in contents]
    )


async def test_spans_are_cut_at_the_borders_of_slots() -> None:
    async with open_staging() as staging:
        content = Content(staging)

        assert list(content.spans(6, 19)) == [(0, 6, 8), (1, 0, 8), (2, 0, 3)]
        assert list(content.spans(8, 16)) == [(1, 0, 8)]
        assert list(content.spans(5, 5)) == []


async def test_an_empty_file_has_one_slot_of_no_bytes() -> None:
    async with open_staging() as staging:
        content = Content(staging)

        assert content.count == 1
        assert content.pieces() == [Piece(0)]


async def test_bytes_are_in_a_used_slot_or_a_stored_block_or_a_hole() -> None:
    async with open_staging() as staging:
        version = await stored(staging, b"a" * BLOCK, b"abc")
        short = version.slice(BLOCK, 11)
        content = Content(staging, 11, version)
        content.extend(3 * BLOCK)
        await content.slot(0).write(0, memoryview(b"X"))

        assert [content.locator_of(number) for number in range(3)] == [
            None,
            short.ranges[0].locator,
            None,
        ]
        assert [content.locators(number) for number in range(3)] == [
            [],
            [short.ranges[0].locator],
            [],
        ]
        assert [content.may_have_bytes(number) for number in range(3)] == [True, True, False]
        pieces = content.pieces()
        assert [piece.length for piece in pieces] == [BLOCK] * 3
        assert [piece.stored for piece in pieces] == [NOTHING, short, NOTHING]
        assert bytes(pieces[0].staged or b"") == b"X" + b"a" * (BLOCK - 1)
        # The block that is shorter than its slot, and the last slot, may need to be stored.
        assert list(content.slots_to_store()) == [0, 1, 2]
        assert "Slot STAGED" in repr(content)
        assert "Slot SHORT" in repr(content)


async def test_a_version_whose_store_began_before_a_cut_is_not_the_base() -> None:
    async with open_staging() as staging:
        version = await stored(staging, b"a" * BLOCK, b"b" * BLOCK)
        first = version.slice(0, BLOCK)
        content = Content(staging, 2 * BLOCK)
        cuts = content.cuts
        content.cut(BLOCK)

        content.take_version(version, cuts)
        assert (content.version, content.base) == (version, NOTHING)

        content.take_version(first, content.cuts)
        assert (content.version, content.base) == (first, first)


async def test_a_cut_drops_the_slots_beyond_and_keeps_the_blocks_before() -> None:
    async with open_staging() as staging:
        version = await stored(staging, b"a" * BLOCK, b"b" * BLOCK, b"c" * BLOCK)
        content = Content(staging, 3 * BLOCK, version)
        beyond = content.slot(2)
        await beyond.write(0, memoryview(b"staged"))

        content.cut(BLOCK)

        assert content.base == version.slice(0, BLOCK)
        assert content.used == {}
        assert await beyond.store() is None
        assert staging.currsize == 0
        assert content.pieces() == [Piece(BLOCK, content.base)]


async def test_a_spill_record_becomes_content_or_leaves_nothing_staged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_staging() as staging:
        block = await stored(staging, b"a" * BLOCK)
        pieces = [Piece(BLOCK, block), Piece(BLOCK), Piece(5, staged=b"12345")]

        content = Content.restored(staging, pieces)

        assert (content.size, content.count) == (2 * BLOCK + 5, 3)
        assert list(content.used) == [0, 2]
        assert bytes(await content.slot(2).read(0, 5)) == b"12345"
        assert not content.is_at_rest
        content.drop()
        assert staging.currsize == 0

        restore = Slot.restore

        def restore_without_memory(slot: Slot, piece: Piece) -> None:
            restore(slot, piece)
            if not piece.stored:
                raise MemoryError

        monkeypatch.setattr(Slot, "restore", restore_without_memory)
        with pytest.raises(MemoryError):
            Content.restored(staging, pieces)
        assert staging.currsize == 0
