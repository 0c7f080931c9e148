"""Staging: how much all slots may hold, and which of them makes room."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from keepfs.fs.bridge import open_blocks
from keepfs.fs.upload.slot import Slot
from keepfs.fs.upload.staged import zeros
from keepfs.fs.upload.staging import Staging
from keepfs.keep import MAX_BLOCK_SIZE, Cause, KeepWriteError
from tests.fakes.slots import staged
from tests.fakes.store import DictStore, FailingStore, GatedStore
from tests.fakes.threads import PATIENCE

BLOCK = 16
DOWN = KeepWriteError("no service takes it", cause=Cause.UNREACHABLE)


async def test_a_writer_waits_until_there_is_room() -> None:
    store = GatedStore(DictStore())
    async with open_blocks(store, copies=2) as blocks, trio.open_nursery() as nursery:
        staging = Staging(blocks, maxsize=2 * BLOCK, block_size=BLOCK)
        first, second = [await staged(staging, bytes(BLOCK)) for _ in range(2)]
        third = Slot(staging, 0)
        store.shut("put_block")

        nursery.start_soon(third.write, 0, memoryview(b"more"))
        await trio.testing.wait_all_tasks_blocked()
        length_while_waiting, sizes = third.length, staging.currsize
        store.open("put_block")

    assert length_while_waiting == 0
    assert sizes == 2 * BLOCK
    assert first.is_stored
    assert not second.is_stored
    assert third.length == 4
    assert staging.currsize == 2 * BLOCK


async def test_a_writer_with_all_the_memory_changes_its_own_bytes() -> None:
    store = GatedStore(DictStore())
    async with open_blocks(store, copies=2) as blocks:
        staging = Staging(blocks, maxsize=2 * BLOCK, block_size=BLOCK)
        slot, other = [await staged(staging, bytes(BLOCK)) for _ in range(2)]
        store.shut("put_block")  # a writer that waited for room would wait for ever
        with trio.fail_after(PATIENCE):
            await slot.write(0, memoryview(b"again"))
        are_storing = slot.is_storing, other.is_storing
        store.open("put_block")

    assert are_storing == (False, False)
    assert staging.currsize == 2 * BLOCK


async def test_each_staged_slot_counts_with_its_overhead_once() -> None:
    async with open_blocks(DictStore(), copies=2) as blocks:
        staging = Staging(blocks, block_size=BLOCK, overhead=100)
        slot = await staged(staging, b"x")
        sizes = [staging.currsize]
        await slot.write(0, memoryview(b"again"))
        sizes.append(staging.currsize)
        other = await staged(staging, b"y")
        sizes.append(staging.currsize)
        await slot.store()
        sizes.append(staging.currsize)
        other.drop()
        sizes.append(staging.currsize)

    assert sizes == [116, 116, 232, 116, 0]


async def test_a_writer_waits_for_room_for_the_overhead_of_its_slot() -> None:
    store = GatedStore(DictStore())
    async with open_blocks(store, copies=2) as blocks, trio.open_nursery() as nursery:
        staging = Staging(blocks, maxsize=2 * BLOCK + 199, block_size=BLOCK, overhead=100)
        first, second = await staged(staging, b"first"), Slot(staging, 0)
        store.shut("put_block")
        nursery.start_soon(second.write, 0, memoryview(b"second"))
        await trio.testing.wait_all_tasks_blocked()
        length_while_waiting, size_while_waiting = second.length, staging.currsize
        store.open("put_block")

    assert (length_while_waiting, size_while_waiting) == (0, BLOCK + 100)
    assert first.is_stored
    assert second.length == 6


async def test_whole_blocks_are_sent_before_growing_ones() -> None:
    async with open_blocks(DictStore(), copies=2) as blocks:
        staging = Staging(blocks, maxsize=2 * BLOCK, block_size=BLOCK)
        growing = await staged(staging, b"a few")
        whole = await staged(staging, bytes(BLOCK))

        await staged(staging, bytes(BLOCK))

        assert whole.is_stored
        assert not growing.is_stored


async def test_during_a_slow_store_another_slot_is_stored(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = GatedStore(DictStore())
    async with open_blocks(store, copies=2) as blocks, trio.open_nursery() as nursery:
        staging = Staging(blocks, maxsize=3 * BLOCK, block_size=BLOCK)
        slots = [await staged(staging, bytes(BLOCK)) for _ in range(3)]
        store.shut("put_block")
        nursery.start_soon(Slot(staging, 0).write, 0, memoryview(b"more"))
        seen = []
        for _ in range(3):
            await trio.sleep(4.0)
            seen.append([slot.is_storing for slot in slots])
        store.open("put_block")

    assert seen == [[True, False, False], [True, True, False], [True, True, True]]
    del autojump_clock


async def test_while_stores_progress_no_further_slot_is_stored() -> None:
    store = GatedStore(DictStore())
    async with open_blocks(store, copies=2) as blocks, trio.open_nursery() as nursery:
        staging = Staging(blocks, maxsize=3 * BLOCK, block_size=BLOCK)
        first, second, small = [await staged(staging, bytes(it)) for it in (BLOCK, BLOCK, 1)]
        staging.maxsize = BLOCK
        store.shut("put_block")
        nursery.start_soon(Slot(staging, 0).write, 0, memoryview(b"more"))
        await trio.testing.wait_all_tasks_blocked()
        small.drop()
        await trio.testing.wait_all_tasks_blocked()
        seen = first.is_storing, second.is_storing
        store.open("put_block")

    assert seen == (True, False)


async def test_a_single_slot_may_be_larger_than_the_bound() -> None:
    async with open_blocks(DictStore(), copies=2) as blocks:
        staging = Staging(blocks, maxsize=4, block_size=BLOCK)

        slot = await staged(staging, bytes(BLOCK))

        assert staging.currsize == BLOCK
        assert slot.is_full


async def test_a_write_without_room_reports_the_failed_stores() -> None:
    store = FailingStore(DictStore())
    store.fail_always("put_block", DOWN)
    async with open_blocks(store, copies=2) as blocks:
        staging = Staging(blocks, maxsize=BLOCK, block_size=BLOCK)
        await staged(staging, b"held")

        with pytest.raises(KeepWriteError, match="no service takes it"):
            await staged(staging, bytes(BLOCK))

        assert staging.currsize == BLOCK


async def test_dropped_bytes_that_are_being_sent_make_others_wait_for_room() -> None:
    store = GatedStore(DictStore())
    async with open_blocks(store, copies=2) as blocks, trio.open_nursery() as nursery:
        staging = Staging(blocks, maxsize=BLOCK, block_size=BLOCK)
        slot = await staged(staging, bytes(BLOCK))
        store.shut("put_block")
        slot.start_storing()
        slot.drop()
        other = Slot(staging, 0)

        nursery.start_soon(other.write, 0, memoryview(b"other"))
        await trio.testing.wait_all_tasks_blocked()
        length_while_waiting = other.length
        store.open("put_block")

    assert length_while_waiting == 0
    assert other.length == 5


def test_all_zeros_share_one_buffer() -> None:
    whole, few = zeros(MAX_BLOCK_SIZE), zeros(3)

    assert bytes(few) == bytes(3)
    assert len(whole) == MAX_BLOCK_SIZE
    assert few.obj is zeros(MAX_BLOCK_SIZE).obj
