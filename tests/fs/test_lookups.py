"""Lookups end within their bound, and only a definite no fails them."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from keepfs.fs.bridge import AsyncBlocks, open_blocks
from keepfs.fs.lookups import Finding, Lookup, Lookups
from keepfs.keep import Cause, KeepLocator, KeepReadError, NotFoundError
from keepfs.keep.errors import HttpError, NoKeepServersError
from tests.fakes.store import DictStore, FailingStore, GatedStore
from tests.fakes.threads import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keepfs.fs.block_store import BlockStore

MISSING = KeepLocator("0" * 32 + "+7")
#: Seconds; nothing here may depend on it but what is to time out.
SHORT = 0.05


def a_store() -> tuple[DictStore, KeepLocator]:
    """Return a store, and the one block in it."""
    store = DictStore()
    locator = store.put_block(b"foo", 1).locator
    store.calls.clear()
    return store, locator


@contextlib.asynccontextmanager
async def lookups_of(
    store: BlockStore, how: Lookup = Lookup.FETCH, wait: float = 20.0
) -> AsyncIterator[Lookups]:
    async with open_blocks(store, copies=1) as blocks:
        yield Lookups(blocks, how, wait)


async def all_answered(blocks: AsyncBlocks) -> None:
    """Wait until no lookup is under way."""
    await trio.to_thread.run_sync(wait_until, lambda: not blocks.statistics().lookups)


async def test_a_lookup_starts_the_fetch_and_trusts_the_name_without_an_answer() -> None:
    memory, locator = a_store()
    store = GatedStore(memory)
    store.shut("probe_block")
    async with lookups_of(store) as lookups:
        trusted = await lookups.find(MISSING)
        store.open("probe_block")

        assert trusted == Finding(7, is_seen=False)
        assert await lookups.find(locator) == Finding(3, is_seen=True)
        assert store.cached_block(locator) is not None
        with pytest.raises(NotFoundError):
            await lookups.find(MISSING)
        assert [call for call, _ in memory.calls] == ["probe_block", "probe_block"]


async def test_the_size_of_a_name_without_one_is_requested_in_each_mode() -> None:
    for how in Lookup:
        memory, locator = a_store()
        async with lookups_of(memory, how) as lookups:
            assert await lookups.find(KeepLocator(locator.md5sum)) == Finding(3, is_seen=True)
            with pytest.raises(NotFoundError):
                await lookups.find(KeepLocator("0" * 32))
        assert [call for call, _ in memory.calls] == ["head_block", "head_block"]


async def test_a_lookup_may_trust_every_name_that_has_a_size() -> None:
    memory, _ = a_store()
    async with lookups_of(memory, Lookup.TRUST) as lookups:
        assert await lookups.find(MISSING) == Finding(7, is_seen=False)
    assert memory.calls == []


@pytest.mark.parametrize("how", [Lookup.FETCH, Lookup.HEAD])
@pytest.mark.parametrize(
    "failure",
    [
        KeepReadError("503", [("a service", HttpError(503, "busy"))], cause=Cause.OTHER),
        KeepReadError("refused", cause=Cause.UNREACHABLE),
        KeepReadError("took too long", cause=Cause.TIMED_OUT),
        KeepReadError("502", [("a service", HttpError(502, "damaged"))], cause=Cause.CORRUPT),
        NoKeepServersError("no list for now"),
    ],
    ids=lambda failure: failure.message,
)
async def test_a_temporary_failure_does_not_fail_a_lookup(
    how: Lookup, failure: KeepReadError
) -> None:
    memory, locator = a_store()
    store = FailingStore(memory)
    store.fail_next("probe_block", failure)
    store.fail_next("head_block", failure)
    async with lookups_of(store, how) as lookups:
        assert await lookups.find(locator) == Finding(3, is_seen=False)
        assert await lookups.find(locator) == Finding(3, is_seen=True)


@pytest.mark.parametrize(
    "failure",
    [
        NotFoundError("nowhere"),
        KeepReadError("refused", [("a service", HttpError(403, "no"))], cause=Cause.DENIED),
        KeepReadError("not the size its name says", cause=Cause.CORRUPT),
    ],
    ids=lambda failure: failure.message,
)
async def test_a_permanent_failure_fails_a_lookup(failure: KeepReadError) -> None:
    store = FailingStore(a_store()[0])
    store.fail_always("probe_block", failure)
    async with lookups_of(store) as lookups:
        with pytest.raises(KeepReadError, match=failure.message):
            await lookups.find(MISSING)


async def test_a_name_without_size_fails_in_time_and_a_later_lookup_gets_the_answer() -> None:
    memory, locator = a_store()
    store = GatedStore(memory)
    store.shut("head_block")
    bare, missing = KeepLocator(locator.md5sum), KeepLocator("0" * 32)
    async with lookups_of(store, wait=SHORT) as lookups, trio.open_nursery() as nursery:
        for name in (bare, missing, bare):
            with pytest.raises(KeepReadError) as caught:
                await lookups.find(name)
            assert caught.value.cause is Cause.TIMED_OUT
        joined = store.waiting("head_block")
        store.open("head_block")
        nursery.cancel_scope.cancel()
    assert joined == 2

    store.shut("head_block")
    async with open_blocks(store, copies=1) as blocks:
        lookups = Lookups(blocks, wait=SHORT)
        for name in (bare, missing):
            with pytest.raises(KeepReadError):
                await lookups.find(name)
        store.open("head_block")
        await all_answered(blocks)
        memory.calls.clear()

        assert await lookups.find(bare) == Finding(3, is_seen=True)
        with pytest.raises(NotFoundError):
            await lookups.find(missing)
        assert memory.calls == []  # it was answered already
        await lookups.find(bare)
        assert memory.calls == [("head_block", bare.md5sum)]


async def test_an_answer_that_came_too_late_is_not_kept_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    memory, locator = a_store()
    store = GatedStore(memory)
    bare = KeepLocator(locator.md5sum)
    async with open_blocks(store, copies=1) as blocks:
        lookups = Lookups(blocks, wait=0.0)
        with pytest.raises(KeepReadError):
            await lookups.find(bare)
        await all_answered(blocks)
        asked = len(memory.calls)
        await trio.sleep(100)
        with pytest.raises(KeepReadError):
            await lookups.find(bare)

        await all_answered(blocks)
        assert (asked, len(memory.calls)) == (1, 2)
    del autojump_clock


async def test_the_wait_for_a_name_with_a_size_is_that_of_the_store() -> None:
    class Hasty(DictStore):
        """A store that is asked for longer than a lookup should wait."""

        def __init__(self) -> None:
            super().__init__()
            self.end = threading.Event()

        def lookup_wait(self, most: float) -> float:
            return min(most, SHORT)

        def probe_block(self, locator: KeepLocator, wait: float) -> int | None:
            assert wait == SHORT
            self.end.wait(60)
            return super().probe_block(locator, wait)

    store = Hasty()
    async with open_blocks(store, copies=1) as blocks:
        with trio.fail_after(30):
            finding = await Lookups(blocks, Lookup.FETCH, 1000.0).find(MISSING)
        store.end.set()

    assert finding == Finding(7, is_seen=False)


@pytest.mark.slow
async def test_hung_lookups_free_their_places() -> None:
    memory, locator = a_store()
    store = GatedStore(memory)
    store.shut("head_block")
    async with open_blocks(store, copies=1, max_reads=2) as blocks:
        calls = [blocks.head(KeepLocator(f"{number:032x}")) for number in range(4)]
        with trio.fail_after(60):
            size = await blocks.probe(locator, 20).wait()
        store.open("head_block")
        for call in calls:
            with pytest.raises(NotFoundError):
                await call.wait()

    assert size == 3


@pytest.mark.slow
async def test_stalled_reads_free_their_places() -> None:
    """Reads that wait for one service don't use up the threads for all."""

    class HalfStalled(DictStore):
        """A store some of whose blocks take long."""

        def __init__(self) -> None:
            super().__init__()
            self.end = threading.Event()

        def get_block(self, locator: KeepLocator) -> memoryview:
            if locator.size != 3:
                self.end.wait(60)
            return super().get_block(locator)

    store = HalfStalled()
    healthy = store.put_block(b"foo", 1).locator
    stalled = [store.put_block(b"%d" % number, 1).locator for number in range(6)]

    async def read_stalled(blocks: AsyncBlocks, locator: KeepLocator) -> None:
        await blocks.get(locator)

    async with open_blocks(store, copies=1, max_reads=2) as blocks, trio.open_nursery() as nursery:
        for locator in stalled:
            nursery.start_soon(read_stalled, blocks, locator)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(50):
            block = bytes(await blocks.get(healthy))
        is_over = store.end.is_set()
        store.end.set()

    assert (block, is_over) == (b"foo", False)
