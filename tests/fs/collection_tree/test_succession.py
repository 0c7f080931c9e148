"""Files of a collection that are read one after another: the next blocks are fetched ahead."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from keepfs.fs.bridge import open_blocks
from keepfs.fs.collection_tree.collections_directory import CollectionsDirectory
from keepfs.fs.collection_tree.succession import Succession
from keepfs.fs.collection_tree.tree import CollectionFile, CollectionFolder
from keepfs.fs.nodes import Metadata, directory_mode
from keepfs.keep import Cause, KeepReadError
from tests.fakes.dict_collections import DictCollections
from tests.fakes.store import DictStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from keepfs.keep import KeepLocator

#: Bytes of each block, and the number of blocks.
SIZE, COUNT = 1000, 8
#: A signature that the API server gives.
SIGNED = "1" * 40


class Collection:
    """A collection of files, and its blocks.

    Args:
        sizes: The sizes of its files, in the order of their names: 0, 1, and so on.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.store = DictStore()
        self.source = DictCollections()
        contents = [bytes([number]) * SIZE for number in range(COUNT)]
        self.digests = [self.store.put_block(each, 1).locator.md5sum for each in contents]
        self.store.calls.clear()
        begins = [sum(sizes[:number]) for number in range(len(sizes))]
        blocks = " ".join(f"{digest}+{SIZE}" for digest in self.digests)
        files = " ".join(
            f"{begin}:{size}:{number}"
            for number, (begin, size) in enumerate(zip(begins, sizes, strict=True))
        )
        self.sizes = sizes
        self.bytes = b"".join(contents)
        self.begins = begins
        self.name = self.source.add(f". {blocks} {files}\n")
        self.files: dict[int, CollectionFile] = {}
        self.folder: CollectionFolder | None = None

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Look the collection up."""
        async with open_blocks(self.store, copies=1) as blocks:
            metadata = Metadata(directory_mode(0o555), 3, 4)
            found = await CollectionsDirectory(metadata, self.source, blocks).lookup(self.name)
            assert isinstance(found, CollectionFolder)
            self.folder = found
            yield

    async def read(self, number: int, offset: int = 0, size: int = 1 << 20) -> None:
        """Read from a file as the mount does."""
        if number not in self.files:
            assert self.folder is not None
            found = await self.folder.lookup(str(number))
            assert isinstance(found, CollectionFile)
            self.files[number] = found
        file = self.files[number]
        size = min(size, self.sizes[number] - offset)
        found_now = file.read_nowait(offset, size)
        content = bytes(await file.read(offset, size) if found_now is None else found_now)
        begin = self.begins[number] + offset
        assert content == self.bytes[begin : begin + size]

    def fetched(self) -> set[int]:
        """Return the numbers of the blocks that were fetched."""
        return {self.digests.index(digest) for _, digest in self.store.calls}

    async def fetches(self, *numbers: int) -> None:
        """Return when these blocks were fetched; no others were."""
        with trio.fail_after(10):
            while not self.fetched() >= set(numbers):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.001)
        assert self.fetched() == set(numbers)


async def test_what_was_read_in_succession_is_the_most_that_is_fetched_ahead() -> None:
    collection = Collection([SIZE] * COUNT)
    async with collection.opened():
        await collection.read(0)
        assert collection.fetched() == {0}
        await collection.read(1)
        await collection.fetches(0, 1, 2)
        await collection.read(2)
        await collection.fetches(0, 1, 2, 3, 4)
        await collection.read(3)
        await collection.fetches(0, 1, 2, 3, 4, 5)
        await collection.read(4)
        await collection.read(5)
        await collection.fetches(*range(COUNT))
        await collection.read(6)
        await collection.read(7)
    assert len(collection.store.calls) == COUNT


async def test_files_in_another_order_get_no_read_ahead() -> None:
    collection = Collection([SIZE] * COUNT)
    async with collection.opened():
        for number in (3, 1, 6, 0, 5, 2):
            await collection.read(number)
    assert collection.fetched() == {0, 1, 2, 3, 5, 6}


async def test_files_of_which_only_the_start_is_read_get_no_read_ahead() -> None:
    collection = Collection([SIZE] * COUNT)
    async with collection.opened():
        for number in range(5):
            await collection.read(number, size=SIZE - 1)
    assert collection.fetched() == {*range(5)}


async def test_small_files_get_the_next_block_when_as_many_bytes_were_read() -> None:
    size = SIZE // 10
    collection = Collection([size] * 10 * COUNT)
    async with collection.opened():
        for number in range(10):
            await collection.read(number)
        assert collection.fetched() == {0}
        await collection.read(10)  # the first of the second block
        await collection.fetches(0, 1, 2)
        for number in range(11, 20):
            await collection.read(number)
        await collection.fetches(0, 1, 2)
        await collection.read(20)
        await collection.fetches(0, 1, 2, 3, 4)


async def test_a_file_of_several_blocks_is_followed_by_the_next() -> None:
    collection = Collection([SIZE, 3 * SIZE, SIZE // 2, SIZE // 2, SIZE])
    async with collection.opened():
        await collection.read(0)
        await collection.read(1, size=10)
        await collection.fetches(0, 1, 2, 3)
        await collection.read(1, offset=SIZE, size=SIZE)
        await collection.fetches(0, 1, 2, 3, 4)
        await collection.read(1, offset=2 * SIZE, size=SIZE)  # a block was read before it
        await collection.fetches(0, 1, 2, 3, 4)
        await collection.read(2)
        await collection.fetches(0, 1, 2, 3, 4, 5, 6)


async def test_a_second_pass_is_recognized_too() -> None:
    collection = Collection([SIZE] * COUNT)
    async with collection.opened():
        for _ in range(2):
            await collection.read(0)
            await collection.read(1)
            await collection.fetches(0, 1, 2)
            collection.store.forget_cached()
            collection.store.calls.clear()


async def test_programs_that_read_at_the_same_time_have_runs_of_their_own() -> None:
    collection = Collection([SIZE] * COUNT)
    async with collection.opened():
        await collection.read(0)
        await collection.read(4)
        await collection.read(1)
        await collection.fetches(0, 4, 1, 2)
        await collection.read(5)
        await collection.fetches(0, 4, 1, 2, 5, 6)


async def test_empty_files_and_the_last_file_end_without_read_ahead() -> None:
    collection = Collection([SIZE, 0, (COUNT - 1) * SIZE])
    async with collection.opened():
        for number in range(3):
            await collection.read(number)
    assert collection.fetched() == {*range(COUNT)}


async def test_blocks_are_fetched_ahead_by_their_newest_signatures() -> None:
    collection = Collection([SIZE] * 3)
    collection.source.signature = SIGNED
    asked = []

    class Refusing(DictStore):
        def get_block(self, locator: KeepLocator) -> memoryview:
            asked.append(locator)
            if locator.perm_sig == SIGNED:
                collection.source.signature = "2" * 40
                raise KeepReadError("refused", cause=Cause.DENIED)
            return super().get_block(locator)

    store, collection.store = collection.store, Refusing()
    collection.store.blocks.update(store.blocks)
    async with collection.opened():
        await collection.read(0)
        await collection.read(1)
        await collection.fetches(0, 1, 2)
    assert [each.perm_sig for each in asked] == [SIGNED, *["2" * 40] * 3]


def test_runs_are_bounded() -> None:
    succession = Succession()
    for number in range(1000):
        succession.extend(10 * number, 10 * number + 5)

    assert succession.length(9995) == 5
    assert succession.length(5) == 0


def test_a_file_whose_end_is_read_twice_counts_once() -> None:
    succession = Succession()
    succession.extend(0, 10)
    succession.extend(10, 15)
    succession.extend(10, 15)

    assert succession.length(15) == 15
    assert succession.length(10) == 0
