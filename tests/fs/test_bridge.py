"""The bridge to the threads: who waits for what, and who doesn't."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from keepfs.fs.bridge import AsyncBlocks, BlocksStatistics, open_blocks
from keepfs.keep import KeepLocator, KeepReadError, KeepWriteError, NotFoundError
from tests.fakes.store import DictStore, FailingStore, GatedStore
from tests.fakes.threads import wait_until

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from keepfs.fs.future import Future
    from keepfs.keep import Receipt


def stored(store: DictStore, *blocks: bytes) -> list[KeepLocator]:
    """Put blocks into a store, as others would; return their locators."""
    return [store.put_block(block, 1).locator for block in blocks]


def gets(store: DictStore) -> int:
    """Count the reads that reached a store."""
    return sum(call == "get_block" for call, _ in store.calls)


async def test_a_block_is_cached_after_its_first_read() -> None:
    store = DictStore()
    (locator,) = stored(store, b"a block")
    async with open_blocks(store, copies=1) as blocks:
        before = store.cached_block(locator)

        assert bytes(await blocks.get(locator)) == b"a block"
        assert before is None
        assert bytes(store.cached_block(locator) or b"") == b"a block"
        assert bytes(await blocks.get(locator)) == b"a block"
        assert gets(store) == 1


async def test_a_block_is_stored_with_the_wanted_copies() -> None:
    store = DictStore()
    async with open_blocks(store, copies=3) as blocks:
        receipt = await blocks.put(b"a block", 7).wait()

    assert receipt.copies == 3
    assert store.blocks[receipt.locator.md5sum] == b"a block"


async def test_a_block_may_be_stored_with_zeros_behind_it() -> None:
    store = DictStore()
    async with open_blocks(store, copies=1) as blocks:
        await blocks.put(bytearray(b"abc"), 5).wait()

    assert list(store.blocks.values()) == [b"abc\0\0"]


async def test_size_and_free_space_are_requested() -> None:
    store = DictStore(capacity=10)
    (locator,) = stored(store, b"abc")
    async with open_blocks(store, copies=1) as blocks:
        assert await blocks.head(locator).wait() == 3
        assert await blocks.free_space() == (10, 7)
        with pytest.raises(NotFoundError):
            await blocks.head(KeepLocator("0" * 32 + "+3")).wait()


async def test_a_flood_of_reads_never_delays_a_lookup_or_statfs() -> None:
    memory = DictStore()
    store = GatedStore(memory)
    locators = stored(memory, *(bytes([i]) for i in range(4)))
    store.shut("get_block")
    async with (
        open_blocks(store, copies=1, max_reads=2) as blocks,
        trio.open_nursery() as nursery,
    ):
        for locator in locators:
            nursery.start_soon(blocks.get, locator)
        await trio.testing.wait_all_tasks_blocked()

        size = await blocks.head(locators[0]).wait()
        space = await blocks.free_space()
        store.open("get_block")

    assert size == 1
    assert space == memory.free_space()


async def test_a_flood_of_reads_never_delays_a_write() -> None:
    memory = DictStore()
    store = GatedStore(memory)
    locators = stored(memory, *(bytes([i]) for i in range(10)))
    store.shut("get_block")
    async with (
        open_blocks(store, copies=1, max_reads=2) as blocks,
        trio.open_nursery() as nursery,
    ):
        for locator in locators:
            nursery.start_soon(blocks.get, locator)
        await trio.testing.wait_all_tasks_blocked()

        receipt = await blocks.put(b"written", 7).wait()
        reading = blocks.statistics()
        store.open("get_block")

    assert receipt.locator.size == 7
    assert reading == BlocksStatistics(reads=10, lookups=0, writes=0)


async def test_writes_wait_for_each_other_beyond_the_limit() -> None:
    store = GatedStore(DictStore())
    store.shut("put_block")
    async with open_blocks(store, copies=1, max_writes=2) as blocks:
        calls = [blocks.put(bytes([i]), 1) for i in range(5)]
        await trio.testing.wait_all_tasks_blocked()
        store.wait_for_callers("put_block", 2)
        sending, statistics = store.waiting("put_block"), blocks.statistics()
        store.open("put_block")
        for call in calls:
            await call.wait()

        assert sending == 2
        assert statistics.writes == 5
        assert blocks.statistics() == BlocksStatistics(0, 0, 0)


async def test_readers_of_one_block_share_one_read() -> None:
    memory = DictStore()
    store = GatedStore(memory)
    (locator,) = stored(memory, b"a block")
    store.shut("get_block")
    found = []
    async with open_blocks(store, copies=1) as blocks, trio.open_nursery() as nursery:

        async def read() -> None:
            found.append(bytes(await blocks.get(locator)))

        for _ in range(20):
            nursery.start_soon(read)
        blocks.fetch_ahead(locator)
        await trio.testing.wait_all_tasks_blocked()
        store.open("get_block")

    assert found == [b"a block"] * 20
    assert gets(memory) == 1


async def test_readers_of_one_block_get_copies_of_its_failure() -> None:
    failing = FailingStore(DictStore())
    store = GatedStore(failing)
    failing.fail_next("get_block", KeepReadError("broken"))
    store.shut("get_block")
    errors: list[KeepReadError] = []
    async with open_blocks(store, copies=1) as blocks, trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(KeepReadError, match="broken") as caught:
                await blocks.get(KeepLocator("0" * 32 + "+3"))
            errors.append(caught.value)

        for _ in range(3):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        store.open("get_block")

    assert len({id(error) for error in errors}) == 3


async def test_a_failed_read_is_not_kept() -> None:
    memory = DictStore()
    store = FailingStore(memory)
    (locator,) = stored(memory, b"a block")
    store.fail_next("get_block", KeepReadError("broken"))
    async with open_blocks(store, copies=1) as blocks:
        with pytest.raises(KeepReadError):
            await blocks.get(locator)

        assert bytes(await blocks.get(locator)) == b"a block"


async def test_cancellation_leaves_the_read_running() -> None:
    memory = DictStore()
    store = GatedStore(memory)
    (locator,) = stored(memory, b"a block")
    store.shut("get_block")
    async with open_blocks(store, copies=1) as blocks, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            scope.cancel()
            await blocks.get(locator)

        nursery.start_soon(blocks.get, locator)
        await trio.testing.wait_all_tasks_blocked()
        store.open("get_block")

    assert scope.cancelled_caught
    assert gets(memory) == 1


async def test_cancellation_leaves_the_write_running() -> None:
    memory = DictStore()
    store = GatedStore(memory)
    store.shut("put_block")
    async with open_blocks(store, copies=1) as blocks:
        call = blocks.put(b"abc", 3)
        with trio.CancelScope() as scope:
            scope.cancel()
            await call.wait()
        store.open("put_block")

        assert (await call.wait()).locator.size == 3


async def test_a_read_ahead_does_not_wait_and_fails_at_the_read() -> None:
    memory = DictStore()
    store = FailingStore(memory)
    (locator,) = stored(memory, b"a block")
    async with open_blocks(store, copies=1) as blocks:
        blocks.fetch_ahead(locator)
        await blocks.get(locator)
        blocks.fetch_ahead(locator)  # is there
        store.fail_always("get_block", KeepReadError("broken"))
        memory.forget_cached()
        blocks.fetch_ahead(locator)

        with pytest.raises(KeepReadError, match="broken"):
            await blocks.get(locator)

    assert gets(memory) == 1


async def test_the_callback_of_a_write_runs_before_its_waiters() -> None:
    order = []
    async with open_blocks(DictStore(), copies=1) as blocks:
        call = blocks.put(b"abc", 3, lambda call: order.append(call.result))
        order.append(await call.wait())

    assert order[0] is order[1] is not None


async def test_at_the_end_reads_are_dropped_and_writes_waited_for() -> None:
    memory = DictStore()
    store = GatedStore(memory)
    store.shut("get_block")
    store.shut("put_block")
    calls: list[Future[Receipt]] = []

    async def use() -> None:
        async with open_blocks(store, copies=1) as blocks:
            blocks.fetch_ahead(KeepLocator("0" * 32 + "+3"))
            calls.append(blocks.put(b"abc", 3))
            await trio.testing.wait_all_tasks_blocked()
            store.wait_for_callers("get_block")
            store.wait_for_callers("put_block")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use)
        await trio.testing.wait_all_tasks_blocked(cushion=0.01)
        waits = len(nursery.child_tasks)
        store.open("put_block")
    reads = store.waiting("get_block")
    store.open("get_block")

    assert (waits, reads) == (1, 1)
    assert calls[0].result is not None
    assert list(memory.blocks.values()) == [b"abc"]


class Watched(bytearray):
    """Bytes that can be watched."""


class CarelessStore(DictStore):
    """A store whose failures have the block in their frames."""

    def put_block(
        self, block: Buffer, copies: int, *, locator: KeepLocator | None = None
    ) -> Receipt:
        held = memoryview(block)
        try:
            held[len(held)]
        except IndexError as error:
            raise KeepWriteError(f"not with {copies} copies") from error
        return super().put_block(block, copies, locator=locator)


class BuggyStore(DictStore):
    """A store that fails unexpectedly."""

    def put_block(
        self, block: Buffer, copies: int, *, locator: KeepLocator | None = None
    ) -> Receipt:
        del locator
        held = memoryview(block)
        raise ZeroDivisionError(f"{len(held)} / {copies}")


@pytest.mark.parametrize("store", [CarelessStore(), BuggyStore()], ids=["careless", "buggy"])
async def test_failures_hold_no_reference_to_a_block(store: DictStore) -> None:
    async def write(blocks: AsyncBlocks) -> tuple[object, weakref.ref[Watched]]:
        block = Watched(b"watched")
        call = blocks.put(block, len(block))
        with pytest.raises((KeepWriteError, ZeroDivisionError)):
            await call.wait()
        return call, weakref.ref(block)

    async with open_blocks(store, copies=1) as blocks:
        call, watch = await write(blocks)
        wait_until(lambda: gc.collect() >= 0 and watch() is None)  # the thread has let go

        assert call is not None


async def test_work_that_spills_runs_once_if_it_fails() -> None:
    runs = []

    def fail() -> None:
        runs.append(1)
        raise RuntimeError("a thread of the work failed")

    async with open_blocks(DictStore(), copies=1) as blocks:
        with pytest.raises(RuntimeError, match="of the work"):
            await blocks.spill(fail)

    assert len(runs) == 1
