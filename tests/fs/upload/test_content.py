"""What a file consists of: used slots, stored blocks and holes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from keepfs.fs.bridge import open_blocks
from keepfs.fs.upload.content import Content
from keepfs.fs.upload.slot import Slot
from keepfs.fs.upload.staging import Staging
from keepfs.fs.upload.unsaved import Piece
from tests.fakes.store import DictStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keepfs.keep import Receipt

BLOCK = 8


@contextlib.asynccontextmanager
async def open_staging() -> AsyncIterator[Staging]:
    async with open_blocks(DictStore(), copies=1) as blocks:
        yield Staging(blocks, block_size=BLOCK)


async def stored(staging: Staging, *contents: bytes) -> tuple[Receipt, ...]:
    return tuple([await staging.blocks.put(each, len(each)).wait() for each in contents])


async def test_ranges_are_cut_at_the_borders_of_slots() -> None:
    async with open_staging() as staging:
        content = Content(staging)

        assert list(content.ranges(6, 19)) == [(0, 6, 8), (1, 0, 8), (2, 0, 3)]
        assert list(content.ranges(8, 16)) == [(1, 0, 8)]
        assert list(content.ranges(5, 5)) == []


async def test_an_empty_file_has_one_slot_of_no_bytes() -> None:
    async with open_staging() as staging:
        content = Content(staging)

        assert content.count == 1
        assert content.pieces() == [Piece(0)]


async def test_bytes_are_in_a_used_slot_or_a_stored_block_or_a_hole() -> None:
    async with open_staging() as staging:
        first, short = await stored(staging, b"a" * BLOCK, b"abc")
        content = Content(staging, 11, (first, short))
        content.extend(3 * BLOCK)
        await content.slot(0).write(0, memoryview(b"X"))

        assert [content.locator_at(number) for number in range(3)] == [None, short.locator, None]
        assert [content.may_have_bytes(number) for number in range(3)] == [True, True, False]
        pieces = content.pieces()
        assert [piece.length for piece in pieces] == [BLOCK] * 3
        assert [piece.receipt for piece in pieces] == [None, short, None]
        assert bytes(pieces[0].staged or b"") == b"X" + b"a" * (BLOCK - 1)
        # The block that is shorter than its slot, and the last slot, may need to be stored.
        assert list(content.slots_to_store()) == [0, 1, 2]
        assert "Slot STAGED" in repr(content)
        assert "Slot SHORT" in repr(content)


async def test_a_version_whose_store_began_before_a_cut_is_not_the_base() -> None:
    async with open_staging() as staging:
        receipts = await stored(staging, b"a" * BLOCK, b"b" * BLOCK)
        content = Content(staging, 2 * BLOCK)
        cuts = content.cuts
        content.cut(BLOCK)

        content.take_version(receipts, cuts)
        assert (content.receipts, content.base) == (receipts, ())

        content.take_version(receipts[:1], content.cuts)
        assert (content.receipts, content.base) == (receipts[:1], receipts[:1])


async def test_a_cut_drops_the_slots_beyond_and_keeps_the_blocks_before() -> None:
    async with open_staging() as staging:
        receipts = await stored(staging, b"a" * BLOCK, b"b" * BLOCK, b"c" * BLOCK)
        content = Content(staging, 3 * BLOCK, receipts)
        beyond = content.slot(2)
        await beyond.write(0, memoryview(b"staged"))

        content.cut(BLOCK)

        assert content.base == receipts[:1]
        assert content.used == {}
        assert await beyond.store() is None
        assert staging.currsize == 0
        assert content.pieces() == [Piece(BLOCK, receipts[0])]


async def test_a_spill_record_becomes_content_or_leaves_nothing_staged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_staging() as staging:
        (receipt,) = await stored(staging, b"a" * BLOCK)
        pieces = [Piece(BLOCK, receipt), Piece(BLOCK), Piece(5, None, b"12345")]

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
            if piece.receipt is None:
                raise MemoryError

        monkeypatch.setattr(Slot, "restore", restore_without_memory)
        with pytest.raises(MemoryError):
            Content.restored(staging, pieces)
        assert staging.currsize == 0
