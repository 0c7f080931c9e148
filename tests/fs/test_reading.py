"""Reading a file of several blocks: in order, here and there, and without room."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from keepfs.config.options import StoreOptions
from keepfs.fs.bridge import open_blocks
from keepfs.fs.reading import BlockReader
from keepfs.keep import KeepBlockCache, KeepClient, KeepReadError
from keepfs.renewing_store import RenewingStore
from tests.fakes.store import DictStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from keepfs.keep.locator import KeepLocator

MIB = 1024 * 1024
SIZE = 16 * MIB


class Recording(DictStore):
    """A store with little room, that remembers for how long blocks are to be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[float] = []
        self.released: list[str] = []
        self.room = True

    def release(self, locator: KeepLocator) -> None:
        """Note it."""
        self.released.append(locator.md5sum)

    def has_room(self, size: int) -> bool:
        """Tell what the test says."""
        return self.room and super().has_room(size)

    def cached_block(
        self, locator: KeepLocator, keep_for: float | None = 0.0
    ) -> memoryview | None:
        """Note it, unless it is a check, and answer."""
        if keep_for is not None:
            self.kept.append(keep_for)
        return super().cached_block(locator, keep_for)

    def fetched(self) -> list[str]:
        """Return the digests of the blocks that were fetched, in order."""
        return [digest for call, digest in self.calls if call == "get_block"]


class OnDisk(Recording):
    """A store that has some of its blocks on a disk.

    Args:
        nowait: Whether parts come without a wait.
    """

    def __init__(self, *, nowait: bool) -> None:
        super().__init__()
        self.nowait = nowait
        self.on_disk: set[str] = set()
        self.open: set[str] = set()
        self.parts: list[tuple[str, int, int]] = []
        self.read_ahead: list[tuple[str, int]] = []
        self.disk_parts = self

    def part_nowait(
        self, locator: KeepLocator, begin: int, end: int, size: int
    ) -> memoryview | None:
        """Return a part if the test lets it."""
        return self.get_part(locator, begin, end, size) if self.nowait else None

    def get_part(self, locator: KeepLocator, begin: int, end: int, size: int) -> memoryview | None:
        """Return a part of a block on the disk, and note it."""
        if locator.md5sum not in self.on_disk:
            return None
        self.parts.append((locator.md5sum, begin, end))
        return memoryview(self._block(locator))[:size][begin:end]

    def begin_part(self, *_: object) -> bool:
        """Leave it to `get_part`."""
        return False

    def is_granted(self, *_: object) -> bool:
        """Ask no service."""
        return True

    def is_open(self, locator: KeepLocator) -> bool:
        """Return what the test lets it."""
        return locator.md5sum in self.open

    def read_on(self, locator: KeepLocator, begin: int) -> bool:
        """Note it."""
        self.read_ahead.append((locator.md5sum, begin))
        return locator.md5sum in self.on_disk


class File:
    """Six blocks as a file.

    Args:
        store: Where they are.
    """

    def __init__(self, store: DictStore) -> None:
        contents = [bytes([number]) * SIZE for number in range(6)]
        self.locators = [store.put_block(each, 1).locator for each in contents]
        store.calls.clear()
        self.reader: BlockReader | None = None

    def locator_at(self, number: int) -> KeepLocator | None:
        """Name a block."""
        return self.locators[number] if number < len(self.locators) else None

    @contextlib.asynccontextmanager
    async def reading(self, store: DictStore) -> AsyncIterator[None]:
        """Have a reader."""
        async with open_blocks(store, copies=1) as blocks:
            self.reader = BlockReader(blocks, self.locator_at)
            yield

    async def read(self, number: int, begin: int, size: int) -> bytes:
        """Read from a block, as files do."""
        assert self.reader is not None
        arguments = number, self.locators[number], SIZE, begin, begin + size
        part = self.reader.read_nowait(*arguments)
        return bytes(await self.reader.read(*arguments) if part is None else part)

    def digests(self, *numbers: int) -> list[str]:
        """Return blocks' digests."""
        return [self.locators[number].md5sum for number in numbers]


async def test_a_reader_at_the_start_of_a_block_gets_the_next_two_fetched() -> None:
    store = Recording()
    file = File(store)
    async with file.reading(store):
        assert await file.read(0, 0, 3) == b"\0\0\0"

        assert await file.read(1, 0, 3) == b"\1\1\1"

    assert set(store.fetched()) <= set(file.digests(0, 1, 2, 3))
    assert set(store.fetched()) >= set(file.digests(0, 1))


async def test_a_random_reader_gets_no_read_ahead() -> None:
    store = Recording()
    file = File(store)
    async with file.reading(store):
        for number, begin in ((3, 8 * MIB), (1, 12 * MIB), (3, 15 * MIB)):
            await file.read(number, begin, 4096)

    assert store.fetched() == file.digests(3, 1)
    assert set(store.kept) == {0.0}


async def test_a_block_is_kept_for_its_sequential_reader_until_the_end() -> None:
    store = Recording()
    file = File(store)
    async with file.reading(store):
        await file.read(5, 0, MIB)
        at_first = store.kept[-1]
        for begin in range(1, 15):
            await file.read(5, begin * MIB, MIB)
        halfway = store.kept[-1]
        await file.read(5, 15 * MIB, MIB)

    assert 0 < at_first < halfway
    assert store.kept[-1] == 0


async def test_a_reader_that_starts_a_block_again_is_sequential() -> None:
    store = Recording()
    file = File(store)
    async with file.reading(store):
        for begin in [*range(16), *range(4)]:
            await file.read(5, begin * MIB, MIB)

    assert store.kept[-1] > 0.5
    assert store.kept[-4] > 0


async def test_reordered_requests_of_a_sequential_reader_are_recognized() -> None:
    store = Recording()
    file = File(store)
    async with file.reading(store):
        for begin in (0, 2, 1, 4, 3):
            await file.read(5, begin * MIB, MIB)

    assert store.kept[-1] > 0.5


async def test_a_reader_of_parts_of_consecutive_blocks_gets_read_ahead() -> None:
    store = Recording()
    file = File(store)
    async with file.reading(store):
        for number, begin in ((0, 8 * MIB), (1, 12 * MIB)):
            await file.read(number, begin, 4096)
        before = store.fetched()
        await file.read(2, 6 * MIB, 4096)
        await file.read(3, 6 * MIB, 1)
        await file.read(4, 6 * MIB, 1)
        with trio.fail_after(10):
            while file.digests(5)[0] not in store.fetched():  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.001)

    assert before == file.digests(0, 1)
    assert set(store.fetched()[2:]) == set(file.digests(2, 3, 4, 5))


async def test_a_sequential_reader_releases_all_blocks_but_the_last() -> None:
    store = Recording()
    file = File(store)
    async with file.reading(store):
        for number in (0, 1, 2):
            await file.read(number, 0, 4096)

    assert store.released == file.digests(0)


async def test_a_reader_that_skips_prefetched_blocks_releases_them() -> None:
    store = Recording()
    file = File(store)
    async with file.reading(store):
        await file.read(0, 0, 4096)
        await file.read(5, 8 * MIB, 4096)

    assert store.released == file.digests(1, 2)


async def test_alternating_readers_keep_each_others_prefetched_blocks() -> None:
    store = Recording()
    file = File(store)
    async with file.reading(store):
        await file.read(3, 0, MIB)
        await file.read(0, 0, MIB)
        store.released.clear()
        for at in range(1, 8):
            await file.read(3, at * MIB, MIB)
            await file.read(0, at * MIB, MIB)

    assert store.released == []


async def test_without_room_nothing_is_fetched_ahead_until_there_is() -> None:
    store = Recording()
    file = File(store)
    store.room = False
    async with file.reading(store):
        await file.read(0, 0, MIB)
        alone = store.fetched()
        store.room = True
        await file.read(0, MIB, MIB)
        await file.read(1, 0, 1)

    assert alone == file.digests(0)
    assert file.digests(1)[0] in store.fetched()


async def test_a_block_of_another_size_is_an_error() -> None:
    store = Recording()
    file = File(store)
    async with file.reading(store):
        assert file.reader is not None
        with pytest.raises(KeepReadError, match="expected 5"):
            await file.reader.read(0, file.locators[0], 5, 0, 5)


async def test_the_number_of_recorded_positions_is_bounded() -> None:
    store = Recording()
    file = File(store)
    file.locators *= 40
    async with file.reading(store):
        for number in range(200):
            await file.read(number, 0, 1)

    assert len(store.fetched()) == 6


@pytest.mark.parametrize("nowait", [True, False])
async def test_blocks_on_the_disk_are_read_in_parts_in_order_too(*, nowait: bool) -> None:
    store = OnDisk(nowait=nowait)
    file = File(store)
    store.on_disk = set(file.digests(*range(6)))
    async with file.reading(store):
        for number in range(6):
            for begin in range(16):
                assert await file.read(number, begin * MIB, MIB) == bytes([number]) * MIB
        for number in (4, 1, 5):
            assert await file.read(number, 9 * MIB, 3) == bytes([number]) * 3
        # The disk reads ahead: in each block, and in the next ones.
        ahead = {(file.digests(2)[0], 0), (file.digests(1)[0], 8 * MIB)}
        with trio.fail_after(10):
            while not ahead <= set(store.read_ahead):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.001)

    assert store.fetched() == []
    assert len(store.parts) == 6 * 16 + 3


@pytest.mark.parametrize("are_open", [False, True])
async def test_small_reads_in_blocks_that_were_read_before_ask_no_thread(
    *, are_open: bool
) -> None:
    store = OnDisk(nowait=True)
    file = File(store)
    store.on_disk = set(file.digests(*range(6)))
    store.open = store.on_disk if are_open else set()
    async with file.reading(store):
        for number in (3, 0, 2):
            assert await file.read(number, 0, 4096) == bytes([number]) * 4096
        with trio.move_on_after(0.1 if are_open else 10):
            while not store.read_ahead:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.001)

    assert bool(store.read_ahead) is not are_open
    assert store.fetched() == []


async def test_a_read_does_not_wait_for_threads_that_read_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, goes_on = OnDisk(nowait=False), threading.Event()
    file = File(store)
    store.on_disk = set(file.digests(0))
    monkeypatch.setattr(store, "read_on", lambda *_: goes_on.wait(60))
    async with open_blocks(store, copies=1, max_reads=2) as blocks:
        for _ in range(20):
            blocks.read_on(file.locators[0], 0)
        await trio.testing.wait_all_tasks_blocked()

        with trio.fail_after(10):
            part = await blocks.get_part(file.locators[0], 0, 3, SIZE)

        goes_on.set()
    assert part == memoryview(bytes(3))


async def test_the_disk_does_not_read_ahead_in_a_block_in_memory() -> None:
    store = OnDisk(nowait=True)
    file = File(store)
    async with file.reading(store):
        await file.read(0, 0, 4096)
        for begin in range(16):
            await file.read(0, begin * MIB, MIB)
        await trio.testing.wait_all_tasks_blocked()

    assert file.digests(0)[0] not in [digest for digest, _ in store.read_ahead]


async def test_a_stream_does_not_evict_blocks_that_are_read_again_and_again(
    tmp_path: Path,
) -> None:
    cache = KeepBlockCache(3 * MIB)
    with KeepClient(local_store=str(tmp_path), block_cache=cache) as client:
        store = RenewingStore(client, StoreOptions(local_store=tmp_path))
        first, second, stream, new = (
            store.put_block(bytes([number]) * MIB, 1).locator for number in range(4)
        )
        async with open_blocks(store, copies=1) as blocks:

            async def read(locator: KeepLocator, size: int) -> None:
                reader = BlockReader(blocks, lambda _: None)
                for begin in range(0, MIB, size):
                    arguments = 0, locator, MIB, begin, begin + size
                    if reader.read_nowait(*arguments) is None:
                        await reader.read(*arguments)

            for locator in (first, second, first, second):
                await read(locator, MIB)
            hits = cache.statistics().hits
            await read(stream, MIB // 16)
            hits = cache.statistics().hits - hits
            await read(new, MIB)
            kept = [store.cached_block(each) is not None for each in (first, second, stream)]

    assert hits == 16
    assert kept == [True, True, False]


async def test_what_is_missing_on_the_disk_is_fetched_ahead() -> None:
    store = OnDisk(nowait=True)
    file = File(store)
    store.on_disk = set(file.digests(0, 2))
    async with file.reading(store):
        await file.read(0, 0, MIB)
        with trio.fail_after(10):
            while not store.fetched():  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.001)
        first = store.fetched()
        assert await file.read(1, 0, MIB) == b"\1" * MIB

    assert first == file.digests(1)
    assert file.digests(2)[0] not in store.fetched()
