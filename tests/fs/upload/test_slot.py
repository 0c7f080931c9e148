"""A slot: the bytes it holds while it is written, cut, sent, stored and dropped."""

from __future__ import annotations

import gc
import weakref

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from keepfs.fs.bridge import open_blocks
from keepfs.fs.upload.slot import Slot, store_slots
from keepfs.fs.upload.staging import Staging
from keepfs.fs.upload.stored import StoredBytes, StoredRange
from keepfs.fs.upload.unsaved import Piece
from keepfs.keep import Cause, KeepLocator, KeepReadError, KeepWriteError, Receipt
from tests.fakes.loops import Loop, Task
from tests.fakes.slots import staged
from tests.fakes.store import DictStore, FailingStore, GatedStore
from tests.fakes.threads import wait_until

BLOCK = 16
DOWN = KeepWriteError("no service takes it", cause=Cause.UNREACHABLE)
contents = st.binary(min_size=1, max_size=BLOCK)
lengths = st.integers(0, BLOCK)


class SlotModel(RuleBasedStateMachine):
    """Whatever is done to a slot while it is sent or can't be, it holds what plain bytes would."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = DictStore()
        self.failing = FailingStore(self.memory)
        self.store = GatedStore(self.failing)
        self.loop = Loop(self.store)
        self.staging = Staging(self.loop.blocks, block_size=BLOCK)
        self.slot = Slot(self.staging, 0)
        self.expected = b""
        self.is_shut = False
        self.is_down = False
        self.under_way: list[Task[StoredBytes | None]] = []

    @rule(begin=lengths, content=contents, waits=st.booleans())
    def write(self, begin: int, content: bytes, *, waits: bool) -> None:
        content = content[: BLOCK - begin]
        if waits or not self.loop.call(self.slot.write_nowait, begin, memoryview(content)):
            self.loop.wait(self.slot.write, begin, memoryview(content))
        before = self.expected.ljust(begin, b"\0")
        self.expected = before[:begin] + content + before[begin + len(content) :]

    @rule(length=lengths)
    def cut(self, length: int) -> None:
        length = min(length, len(self.expected))
        self.loop.wait(self.slot.cut, length)
        self.expected = self.expected[:length]

    @rule(length=lengths)
    def extend(self, length: int) -> None:
        self.loop.call(self.slot.extend, length)
        self.expected = self.expected.ljust(length, b"\0")

    @rule()
    def begin_to_store(self) -> None:
        self.under_way.append(self.loop.start(self.slot.store))
        if not self.is_shut:
            self.join()

    @precondition(lambda self: not self.is_shut and not self.is_down)
    @rule()
    def store_all(self) -> None:
        stored = self.loop.wait(self.slot.store)

        assert stored is not None
        [block] = stored.ranges
        assert block.is_whole
        assert block.locator == KeepLocator.of_block(self.expected)
        assert self.memory.blocks[block.locator.md5sum] == self.expected
        assert self.slot.is_stored
        assert self.slot.failure is None
        assert self.staging.currsize == 0

    @precondition(lambda self: not self.is_shut and self.is_down)
    @rule()
    def fail_to_store(self) -> None:
        if self.slot.is_stored:
            return
        with pytest.raises(KeepWriteError):
            self.loop.wait(self.slot.store)

        assert isinstance(self.slot.failure, KeepWriteError)

    @rule()
    def shut_the_gate(self) -> None:
        self.store.shut("put_block")
        self.is_shut = True

    @rule()
    def open_the_gate(self) -> None:
        self.store.open("put_block")
        self.is_shut = False
        self.join()

    def join(self) -> None:
        """Wait for the end of what was begun; some of it may have failed."""
        for task in self.under_way:
            task.wait()
        self.under_way.clear()

    @rule()
    def break_the_store(self) -> None:
        self.failing.fail_always("put_block", DOWN)
        self.is_down = True

    @rule()
    def heal_the_store(self) -> None:
        self.failing.heal()
        self.is_down = False

    @rule()
    def forget_what_was_read(self) -> None:
        self.memory.forget_cached()

    @invariant()
    def the_bytes_are_as_expected(self) -> None:
        assert self.slot.length == len(self.expected)
        assert bytes(self.loop.wait(self.slot.read, 0, self.slot.length)) == self.expected

    @invariant()
    def memory_is_counted(self) -> None:
        assert 0 <= self.staging.currsize <= 2 * BLOCK

    def teardown(self) -> None:
        self.heal_the_store()
        self.open_the_gate()
        self.store_all()
        self.loop.close()


TestSlotModel = SlotModel.TestCase
TestSlotModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


async def test_bytes_written_during_a_store_are_sent_again() -> None:
    memory = DictStore()
    store = GatedStore(memory)
    async with open_blocks(store, copies=2) as blocks, trio.open_nursery() as nursery:
        staging = Staging(blocks, block_size=BLOCK)
        slot = await staged(staging, b"old bytes")
        store.shut("put_block")
        nursery.start_soon(slot.store)
        await trio.testing.wait_all_tasks_blocked()

        await slot.write(0, memoryview(b"new"))
        size_of_both = staging.currsize
        nursery.start_soon(slot.store)
        store.open("put_block")

    assert size_of_both == 2 * BLOCK
    assert set(memory.blocks.values()) == {b"old bytes", b"new bytes"}
    assert slot.is_stored
    assert staging.currsize == 0


async def test_a_store_can_succeed_after_a_failed_one() -> None:
    memory = DictStore()
    failing = FailingStore(memory)
    store = GatedStore(failing)
    async with open_blocks(store, copies=2) as blocks, trio.open_nursery() as nursery:
        slot = await staged(Staging(blocks, block_size=BLOCK), b"old")
        store.shut("put_block")
        failing.fail_next("put_block", DOWN)
        slot.start_storing()
        await slot.write(0, memoryview(b"new"))

        nursery.start_soon(slot.store)
        await trio.testing.wait_all_tasks_blocked()
        store.open("put_block")

    assert list(memory.blocks.values()) == [b"new"]
    assert slot.failure is None


async def test_zeros_behind_the_bytes_are_sent_with_them() -> None:
    memory = DictStore()
    store = FailingStore(memory)
    store.fail_next("put_block", DOWN)
    async with open_blocks(store, copies=2) as blocks:
        staging = Staging(blocks, block_size=BLOCK)
        slot = await staged(staging, b"x")
        slot.extend(BLOCK)
        with pytest.raises(KeepWriteError):
            await slot.store()
        size_after_failure = staging.currsize

        await slot.store()

    assert size_after_failure == BLOCK
    assert list(memory.blocks.values()) == [b"x".ljust(BLOCK, b"\0")]


async def test_a_stored_slot_that_grew_is_read_back_and_stored_with_zeros() -> None:
    memory = DictStore()
    async with open_blocks(memory, copies=2) as blocks:
        staging = Staging(blocks, block_size=BLOCK)
        slot = await staged(staging, b"abc")
        await slot.store()
        slot.extend(6)

        stored = await slot.store()

    assert stored is not None
    assert memory.blocks[stored.ranges[0].locator.md5sum] == b"abc\0\0\0"
    assert staging.currsize == 0


async def test_an_unreadable_block_cannot_be_changed_and_stays() -> None:
    store = FailingStore(DictStore())
    async with open_blocks(store, copies=2) as blocks:
        staging = Staging(blocks, block_size=BLOCK)
        slot = await staged(staging, b"abc")
        await slot.store()
        store.fail_next("get_block", KeepReadError("gone"), KeepReadError("gone"))

        with pytest.raises(KeepReadError):
            await slot.write(1, memoryview(b"x"))
        with pytest.raises(KeepReadError):
            await slot.cut(1)

        assert slot.is_stored
        assert slot.length == 3
        assert bytes(await slot.read(0, 3)) == b"abc"


async def test_a_dropped_slot_is_not_stored_and_counts_until_it_was_sent() -> None:
    memory = DictStore()
    store = GatedStore(memory)
    async with open_blocks(store, copies=2) as blocks, trio.open_nursery() as nursery:
        staging = Staging(blocks, block_size=BLOCK)
        slot = await staged(staging, b"being sent")
        store.shut("put_block")
        nursery.start_soon(slot.store)
        await trio.testing.wait_all_tasks_blocked()

        slot.drop()
        nursery.start_soon(slot.store)
        await trio.testing.wait_all_tasks_blocked()
        size_while_sent = staging.currsize
        store.open("put_block")

    assert size_while_sent == BLOCK
    assert staging.currsize == 0
    assert await slot.store() is None
    assert list(memory.blocks.values()) == [b"being sent"]


async def test_a_write_that_waited_while_its_bytes_were_stored_changes_the_stored_ones() -> None:
    store = GatedStore(DictStore())
    async with open_blocks(store, copies=2) as blocks, trio.open_nursery() as nursery:
        staging = Staging(blocks, maxsize=2 * BLOCK, block_size=BLOCK)
        slot = await staged(staging, b"before")
        other = await staged(staging, b"other")
        staging.maxsize = BLOCK
        store.shut("put_block")
        slot.start_storing()
        written = trio.Event()

        async def write() -> None:
            await slot.write(0, memoryview(b"after".ljust(BLOCK, b"!")))
            written.set()

        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        waited = not other.is_stored
        store.open("put_block")
        await other.store()
        await slot.store()
        await written.wait()
        content = bytes(await slot.read(0, BLOCK))

    assert waited
    assert content == b"after".ljust(BLOCK, b"!")


async def test_a_write_that_waited_while_its_slot_was_changed_changes_the_new_bytes() -> None:
    store = GatedStore(DictStore())
    async with open_blocks(store, copies=2) as blocks, trio.open_nursery() as nursery:
        staging = Staging(blocks, maxsize=BLOCK, block_size=BLOCK)
        old, new = [await blocks.put(it, BLOCK).wait() for it in (b"a" * BLOCK, b"b" * BLOCK)]
        slot, other = Slot(staging, BLOCK), await staged(staging, bytes(BLOCK))
        slot.restore(Piece(BLOCK, StoredBytes.of_blocks([old])))
        store.shut("put_block")
        nursery.start_soon(slot.write, 0, memoryview(b"X"))
        await trio.testing.wait_all_tasks_blocked()
        slot.restore(Piece(BLOCK, StoredBytes.of_blocks([new])))
        store.open("put_block")

    assert other.is_stored
    assert bytes(await slot.read(0, BLOCK)) == b"X" + b"b" * (BLOCK - 1)


async def test_failures_hold_no_reference_to_bytes_of_a_dropped_slot() -> None:
    class Bytes(bytearray):
        """Bytes that can be watched."""

    store = FailingStore(DictStore())
    store.fail_always("put_block", DOWN)
    async with open_blocks(store, copies=2) as blocks:
        block = Bytes(b"watched")
        watch = weakref.ref(block)
        call = blocks.put(block, len(block))
        with pytest.raises(KeepWriteError):
            await call.wait()
        del block
        wait_until(lambda: gc.collect() >= 0 and watch() is None)  # the thread has let go

        assert call.failure is not None


async def test_equal_holes_are_sent_once_and_bytes_of_their_length_beside_them() -> None:
    memory = DictStore()
    async with open_blocks(memory, copies=2) as blocks:
        staging = Staging(blocks, block_size=BLOCK)
        slots = [Slot(staging, 0) for _ in range(4)]
        for slot, length in zip(slots, (BLOCK, 5, BLOCK, BLOCK), strict=True):
            slot.extend(length)
        slots.append(await staged(staging, b"a" * BLOCK))

        stored = await store_slots(slots)

    assert [it and it.size for it in stored] == [BLOCK, 5, BLOCK, BLOCK, BLOCK]
    assert all(slot.is_stored for slot in slots)
    assert [call for call, _ in memory.calls] == ["put_block"] * 3
    assert sorted(memory.blocks.values()) == [bytes(5), bytes(BLOCK), b"a" * BLOCK]


async def test_a_slot_that_fills_the_staging_area_is_changed_in_place() -> None:
    memory = DictStore()
    async with open_blocks(memory, copies=2) as blocks:
        staging = Staging(blocks, maxsize=BLOCK, block_size=BLOCK)
        slot = await staged(staging, bytes(BLOCK))

        await slot.write(3, memoryview(b"x"))

        assert bytes(await slot.read(2, 5)) == b"\0x\0"
    assert memory.calls == []


async def test_zeros_are_read_where_nothing_is_written() -> None:
    async with open_blocks(DictStore(), copies=2) as blocks:
        slot = Slot(Staging(blocks, block_size=BLOCK), 0)
        slot.extend(BLOCK)

        assert bytes(await slot.read(2, 5)) == bytes(3)


async def test_a_slot_that_grows_while_it_is_sent_is_sent_again() -> None:
    store = GatedStore(DictStore())
    stored: list[StoredBytes | None] = []
    async with open_blocks(store, copies=2) as blocks, trio.open_nursery() as nursery:
        slot = await staged(Staging(blocks, block_size=BLOCK), b"abc")
        store.shut("put_block")
        slot.start_storing()
        slot.extend(5)

        async def store_it() -> None:
            stored.append(await slot.store())

        nursery.start_soon(store_it)
        await trio.testing.wait_all_tasks_blocked()
        store.open("put_block")

    assert [it and it.size for it in stored] == [5]


async def test_a_stored_slots_piece_is_its_block() -> None:
    async with open_blocks(DictStore(), copies=2) as blocks:
        slot = await staged(Staging(blocks, block_size=BLOCK), b"abc")
        stored = await slot.store()

    assert stored is not None
    assert slot.piece() == Piece(3, stored)


async def test_a_change_fetches_each_block_of_a_slot_once() -> None:
    store = DictStore()
    first, second = [store.put_block(it, 1) for it in (b"0123456789", b"abcdefghij")]
    stored = StoredBytes(
        StoredRange(block, begin, 3) for begin in (0, 4) for block in (first, second)
    )
    async with open_blocks(store, copies=1) as blocks:
        slot = Slot(Staging(blocks, block_size=BLOCK), stored.size, stored)
        store.forget_cached()
        store.calls.clear()

        await slot.write(1, memoryview(b"X"))

        assert bytes(await slot.read(0, 12)) == b"0X2abc456efg"
        assert [call for call, _ in store.calls] == ["get_block"] * 2


async def test_a_block_of_another_size_than_its_locator_says_is_no_content() -> None:
    store = DictStore()
    receipt = store.put_block(b"0123", 1)
    longer = Receipt(KeepLocator(f"{receipt.locator.md5sum}+8"), 0, ())
    stored = StoredBytes([StoredRange(longer, 2, 4)])
    async with open_blocks(store, copies=1) as blocks:
        slot = Slot(Staging(blocks, block_size=BLOCK), 4, stored)

        with pytest.raises(KeepReadError, match="has another size") as caught:
            await slot.write(0, memoryview(b"X"))

        assert caught.value.cause is Cause.CORRUPT
        assert slot.stored == stored
