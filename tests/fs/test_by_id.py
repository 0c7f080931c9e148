"""by_id/: which names there are, what a lookup costs, and that reads are exact."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfs.fs.bridge import open_blocks
from keepfs.fs.by_id import MAX_KNOWN_NAMES, NOT_FOUND_TIMEOUT, BlockFile, ByIdDirectory
from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import Metadata, directory_mode, file_mode
from keepfs.keep import (
    MAX_BLOCK_SIZE,
    Cause,
    KeepLocator,
    KeepReadError,
    NotFoundError,
    Receipt,
)
from tests.fakes.loops import Loop
from tests.fakes.store import DictStore, FailingStore, GatedStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keepfs.fs.block_store import BlockStore

FOO = "acbd18db4cc2f85cedef654fccc4a4d8+3"
#: A file in upload/.
A_FILE = Metadata(file_mode(0o644), 7, 8)
SIGNATURE = "A" + "0123456789abcdef" * 2 + "01234567@7fffffff"


def a_store(*blocks: bytes) -> DictStore:
    """Return a store of `foo` and other blocks."""
    store = DictStore()
    for block in (b"foo", *blocks):
        store.put_block(block, 1)
    store.calls.clear()
    return store


def locator_of(block: bytes) -> str:
    return str(KeepLocator.of_block(block))


@contextlib.asynccontextmanager
async def directory_of(store: BlockStore) -> AsyncIterator[ByIdDirectory]:
    async with open_blocks(store, copies=1) as blocks:
        yield ByIdDirectory(Metadata(directory_mode(0o555), 3, 4), blocks)


async def found(by_id: ByIdDirectory, name: str) -> BlockFile:
    """Look a name up; it is a file."""
    node = await by_id.lookup(name)
    assert isinstance(node, BlockFile)
    return node


async def test_a_locator_is_a_read_only_file() -> None:
    async with directory_of(a_store()) as by_id:
        file = await found(by_id, FOO)

        said = file.attributes()
        assert (said.metadata.mode, said.metadata.uid, said.metadata.gid) == (0o100444, 3, 4)
        assert (said.size, said.links) == (3, 1)
        assert bytes(await file.read(0, 100)) == b"foo"
        with pytest.raises(RefusedError) as caught:
            file.check_open(os.O_RDWR)
        assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize(
    "name",
    [
        "",
        "README",
        "acbd18db4cc2f85cedef654fccc4a4d",
        FOO.upper(),
        f"{FOO} ",
        f"{FOO}\n",
        f"{FOO}+",
        f"{FOO}+a",
        f"{FOO},",
        f",{FOO}",
        f"{FOO},,{FOO}",
        f"{FOO},README",
        f"{FOO}+Abc@1",
        "acbd18db4cc2f85cedef654fccc4a4d8+-3",
        f"acbd18db4cc2f85cedef654fccc4a4d8+{MAX_BLOCK_SIZE + 1}",
        f"{FOO},acbd18db4cc2f85cedef654fccc4a4d8+{MAX_BLOCK_SIZE + 1}",
        "acbd18db4cc2f85cedef654fccc4a4d8+" + "9" * 200,
        "acbd18db4cc2f85cedef654fccc4a4d8+٣",
        "\udcff\udcfe",
        "x" * 1024,
    ],
)
async def test_any_other_name_is_not_found_without_a_request(name: str) -> None:
    store = a_store()
    async with directory_of(store) as by_id:
        with pytest.raises(RefusedError) as caught:
            await by_id.lookup(name)

        assert caught.value.errno == errno.ENOENT
        assert store.calls == []
        assert list(by_id.names()) == []


async def test_a_missing_block_is_not_found_and_requested_again() -> None:
    store = DictStore()
    async with directory_of(store) as by_id:
        with pytest.raises(NotFoundError):
            await by_id.lookup(FOO)
        store.put_block(b"foo", 1)

        assert (await found(by_id, FOO)).size == 3
        assert by_id.not_found_timeout == NOT_FOUND_TIMEOUT


async def test_a_known_name_makes_no_request() -> None:
    store = a_store()
    async with directory_of(store) as by_id:
        file = await found(by_id, FOO)
        store.calls.clear()
        store.blocks.clear()

        assert await by_id.lookup(FOO) is file
        assert by_id.entry_nowait(FOO) is file
        assert file.attributes().size == 3
        assert store.calls == []


async def test_a_name_without_size_has_the_size_of_its_block() -> None:
    store = a_store()
    name, _ = FOO.split("+")
    async with directory_of(store) as by_id:
        file = await found(by_id, name)

        assert file.size == 3
        assert bytes(await file.read(1, 10)) == b"oo"


async def test_a_block_of_another_size_than_its_name_says_is_an_error() -> None:
    name = FOO.replace("+3", "+4")
    async with directory_of(a_store()) as by_id:
        with pytest.raises(KeepReadError) as caught:
            await by_id.lookup(name)

        assert caught.value.cause is Cause.CORRUPT


async def test_fewer_bytes_than_the_size_are_never_returned() -> None:
    class BoastingStore(DictStore):
        """A store whose sizes are too large."""

        def head_block(self, locator: KeepLocator) -> int:
            return super().head_block(locator) + 5

    store = BoastingStore()
    store.put_block(b"foo", 1)
    async with directory_of(store) as by_id:
        file = await found(by_id, FOO.split("+", maxsplit=1)[0])

        with pytest.raises(KeepReadError, match="has 3 bytes, expected 8"):
            await file.read(0, 8)


async def test_a_list_of_locators_is_one_file() -> None:
    empty = locator_of(b"")
    async with directory_of(a_store(b"quux")) as by_id:
        file = await found(by_id, f"{FOO},{empty},{locator_of(b'quux')},{FOO}")

        assert file.size == 10
        assert bytes(await file.read(0, 100)) == b"fooquuxfoo"
        assert file.xattrs()["user.keep.locator"].count(",") == 3


async def test_a_list_is_found_by_its_first_block_and_a_read_reports_others() -> None:
    missing = locator_of(b"missing")
    async with directory_of(a_store()) as by_id:
        file = await found(by_id, f"{FOO},{missing}")

        assert bytes(await file.read(0, 3)) == b"foo"
        with pytest.raises(NotFoundError):
            await file.read(3, 1)
        for name in (f"{missing},{FOO}", f"{FOO},{missing[:32]}"):  # no size, so it is asked for
            with pytest.raises(NotFoundError):
                await by_id.lookup(name)


async def test_the_empty_block_is_an_empty_file() -> None:
    async with directory_of(DictStore()) as by_id:
        file = await found(by_id, locator_of(b""))

        assert file.size == 0
        assert bytes(await file.read(0, 100)) == b""


async def test_reading_a_list_fetches_the_next_blocks_ahead() -> None:
    store = GatedStore(a_store(b"quux", b"third", b"fourth"))
    async with directory_of(store) as by_id, trio.open_nursery() as nursery:
        names = [FOO, *map(locator_of, (b"quux", b"third", b"fourth"))]
        file = await found(by_id, ",".join(names))
        store.shut("get_block")

        nursery.start_soon(file.read, 0, 1)
        await trio.testing.wait_all_tasks_blocked()
        store.wait_for_callers("get_block", 3)
        fetching = store.waiting("get_block")
        store.open("get_block")

    assert fetching == 3


async def test_many_readers_of_one_block_cause_one_fetch() -> None:
    memory = a_store()
    store = GatedStore(memory)
    store.shut("get_block")
    contents: list[bytes] = []
    async with directory_of(store) as by_id, trio.open_nursery() as nursery:
        file = await found(by_id, FOO)

        async def read() -> None:
            contents.append(bytes(await file.read(0, 3)))

        for _ in range(10):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        store.open("get_block")

    assert contents == [b"foo"] * 10
    assert memory.calls.count(("get_block", FOO[:32])) == 1


async def test_a_read_that_fails_raises_and_a_later_one_may_succeed() -> None:
    store = FailingStore(a_store())
    async with directory_of(store) as by_id:
        file = await found(by_id, FOO)
        store.fail_next("get_block", KeepReadError("every copy is damaged", cause=Cause.CORRUPT))

        with pytest.raises(KeepReadError, match="every copy is damaged"):
            await file.read(0, 3)
        assert bytes(await file.read(0, 3)) == b"foo"


async def test_hints_are_part_of_the_name_and_kept_in_the_locator() -> None:
    name = f"{FOO}+{SIGNATURE}+Kzzzzz"
    async with directory_of(a_store()) as by_id:
        file = await found(by_id, name)

        assert file.xattrs() == {
            "user.keep.state": "stored",
            "user.keep.locator": name,
            "user.keep.expires": "2038-01-19T03:14:07+00:00",
        }
        assert list(by_id.names()) == [name]


async def test_the_sending_services_are_shown_after_a_read() -> None:
    store = a_store()
    async with directory_of(store) as by_id:
        file = await found(by_id, f"{FOO},{FOO}")

        assert "user.keep.services" not in file.xattrs()
        await file.read(0, 6)
        assert file.xattrs()["user.keep.services"] == store.name


async def test_the_expiry_of_a_list_is_the_earliest_one() -> None:
    earlier = SIGNATURE.replace("7fffffff", "70000000")
    async with directory_of(a_store()) as by_id:
        file = await found(by_id, f"{FOO}+{SIGNATURE},{FOO}+{earlier},{FOO}")

        expires = dt.datetime.fromisoformat(file.xattrs()["user.keep.expires"])
        assert expires == dt.datetime.fromtimestamp(0x70000000, dt.UTC)


async def test_an_expired_name_makes_a_request_for_each_lookup() -> None:
    store = a_store()
    expired = f"{FOO}+{SIGNATURE.replace('7fffffff', '00000001')}"
    async with directory_of(store) as by_id:
        file = await found(by_id, expired)
        await file.read(0, 3)
        store.blocks.clear()

        with pytest.raises(NotFoundError):
            await file.read(0, 3)


async def test_stored_blocks_are_listed_without_a_request() -> None:
    store = DictStore()
    async with directory_of(store) as by_id:
        by_id.stored(Receipt(KeepLocator(FOO), 2, ("a service",)), A_FILE)
        file = by_id.entry_nowait(FOO)
        by_id.stored(Receipt(KeepLocator(FOO), 2, ("a service",)), A_FILE)
        by_id.stored(Receipt(KeepLocator(FOO[:32]), 2, ("one that gives no size",)), A_FILE)

        assert list(by_id.names()) == [FOO]
        assert by_id.entry_nowait(FOO) is file is not None
        assert await by_id.lookup(FOO) is file
        assert store.calls == []


async def test_two_lookups_at_once_find_one_file() -> None:
    store = GatedStore(a_store())
    store.shut("head_block")
    files: list[BlockFile] = []
    async with directory_of(store) as by_id, trio.open_nursery() as nursery:

        async def look_up() -> None:
            files.append(await found(by_id, FOO))

        nursery.start_soon(look_up)
        nursery.start_soon(look_up)
        await trio.testing.wait_all_tasks_blocked()
        store.open("head_block")

    assert files[0] is files[1]


async def test_the_listing_is_bounded_and_keeps_the_latest_names() -> None:
    async with directory_of(a_store()) as by_id:
        for number in range(MAX_KNOWN_NAMES):
            by_id.stored(Receipt(KeepLocator(f"{number:032x}+1"), 1, ()), A_FILE)
        await by_id.lookup(f"{0:032x}+1")  # found again
        await by_id.lookup(FOO)

        names = list(by_id.names())
        assert len(names) == MAX_KNOWN_NAMES
        assert names[-1] == FOO
        assert by_id.entry_nowait(f"{0:032x}+1") is not None
        assert by_id.entry_nowait(f"{1:032x}+1") is None


async def test_the_times_of_blocks_never_change() -> None:
    async with directory_of(a_store()) as by_id:
        first = (await found(by_id, FOO)).attributes().metadata

        assert first.mtime_ns == first.ctime_ns == first.atime_ns
        assert first.mtime_ns == 315_532_800 * 10**9


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.binary(max_size=6), min_size=1, max_size=5),
    st.integers(0, 35),
    st.integers(0, 35),
)
def test_reads_across_borders_return_the_joined_bytes(
    parts: list[bytes], offset: int, size: int
) -> None:
    store = a_store(*parts)
    loop = Loop(store)
    by_id = ByIdDirectory(Metadata(directory_mode(0o555), 0, 0), loop.blocks)

    file = loop.wait(found, by_id, ",".join(map(locator_of, parts)))
    content = bytes(loop.wait(file.read, offset, size))
    loop.close()

    assert content == b"".join(parts)[offset : offset + size]
