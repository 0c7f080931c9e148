"""collections/ over dicts: which requests are made, and what is the same after a change."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from keepfs.collections.builder import ManifestBuilder
from keepfs.collections.parsing import parse
from keepfs.fs.bridge import open_blocks
from keepfs.fs.collection_tree.collections_directory import (
    DEFAULT_BUDGET,
    NOT_FOUND_TIMEOUT,
    CollectionsDirectory,
)
from keepfs.fs.collection_tree.tree import CollectionFile, CollectionFolder
from keepfs.fs.errnos import RefusedError, errno_of
from keepfs.fs.inodes import InodeTable
from keepfs.fs.nodes import ENDLESS, Caller, Metadata, Node, directory_mode
from keepfs.keep import Cause, KeepLocator, KeepReadError, KeepRequestError, NotFoundError
from keepfs.messages import of_retention
from tests.fakes.dict_collections import DictCollections
from tests.fakes.store import DictStore
from tests.messages.provoking import assert_shows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

UUID = "zzzzz-4zz18-000000000000001"
#: Blocks of the store, and files in them.
FOO, BARBAZ = b"foo", b"barbaz"
MANIFEST = (
    ". {foo} {barbaz} 0:3:foo 3:3:bar 6:3:baz 1:4:oobar 0:0:nothing\n"
    "./a/b {barbaz} 0:6:barbaz\n"
    "./empty d41d8cd98f00b204e9800998ecf8427e+0 0:0:\\056\n"
)
FIRST, SECOND = "1" * 40, "2" * 40


def manifest(text: str = MANIFEST) -> str:
    return text.format(foo=KeepLocator.of_block(FOO), barbaz=KeepLocator.of_block(BARBAZ))


class SigningStore(DictStore):
    """A store that refuses all signatures but one."""

    def __init__(self) -> None:
        super().__init__()
        self.signature: str | None = None
        for block in (FOO, BARBAZ):
            self.put_block(block, 1)
        self.calls.clear()

    def cached_block(
        self, locator: KeepLocator, keep_for: float | None = 0.0
    ) -> memoryview | None:
        """Return a block that was read before, by a name that is good now."""
        good = locator.perm_sig == self.signature
        return super().cached_block(locator, keep_for) if good else None

    def get_block(self, locator: KeepLocator) -> memoryview:
        """Return a block, if the signature is the one."""
        if locator.perm_sig != self.signature:
            raise KeepReadError("refused", cause=Cause.DENIED)
        return super().get_block(locator)


@contextlib.asynccontextmanager
async def directory(
    source: DictCollections, store: DictStore | None = None, budget: int = DEFAULT_BUDGET
) -> AsyncIterator[CollectionsDirectory]:
    async with open_blocks(store or SigningStore(), copies=1) as blocks:
        yield CollectionsDirectory(
            Metadata(directory_mode(0o555), 3, 4), source, blocks, budget=budget
        )


async def at(root: Node, path: str, kernel: InodeTable | None = None) -> Node:
    """Look a path up; `kernel` remembers each node of it."""
    for name in path.split("/"):
        assert isinstance(root, CollectionsDirectory | CollectionFolder)
        root = await root.lookup(name)
        if kernel is not None:
            kernel.remember(root)
    return root


async def file_at(root: Node, path: str, kernel: InodeTable | None = None) -> CollectionFile:
    node = await at(root, path, kernel)
    assert isinstance(node, CollectionFile)
    return node


async def content(root: Node, path: str) -> bytes:
    return bytes(await (await file_at(root, path)).read(0, 1000))


async def errno_at(root: Node, path: str) -> int:
    with pytest.raises((RefusedError, KeepRequestError)) as caught:
        await at(root, path)
    return errno_of(caught.value)


async def test_files_are_read_with_one_fetch_of_the_manifest() -> None:
    source = DictCollections()
    name = source.add(manifest(), modified_at="2026-01-02T03:04:05.678901234Z")
    async with directory(source) as root:
        found = {each: await content(root, f"{name}/{each}") for each in ("foo", "bar", "baz")}
        assert found == {"foo": b"foo", "bar": b"bar", "baz": b"baz"}
        assert await content(root, f"{name}/oobar") == b"ooba"
        assert await content(root, f"{name}/nothing") == b""
        assert await content(root, f"{name}/a/b/barbaz") == b"barbaz"
        oobar = await file_at(root, f"{name}/oobar")
        assert bytes(await oobar.read(1, 2)) == b"ob"
        assert bytes(await oobar.read(4, 2)) == b""
        folder = await at(root, f"{name}/empty")
        assert isinstance(folder, CollectionFolder)
        assert list(folder.names()) == []

        said = oobar.attributes()
        assert (said.size, said.metadata.mode, said.metadata.uid) == (4, 0o100444, 3)
        assert said.metadata.mtime_ns == 1767323045678901000
        assert said.validity == (ENDLESS, ENDLESS)
        assert source.calls == [(name, True)]
        with pytest.raises(RefusedError) as caught:
            oobar.check_open(os.O_RDWR)
        assert caught.value.errno == errno.EROFS


def many_files(salt: int) -> str:
    """Return a manifest of 10,000 empty files, much larger than what else is counted."""
    files = " ".join(f"0:0:{salt}-{number:06}" for number in range(10_000))
    return f". d41d8cd98f00b204e9800998ecf8427e+0 {files}\n"


async def test_collections_over_the_budget_are_unloaded_the_least_recently_used_first() -> None:
    source = DictCollections()
    names = [source.add(many_files(salt)) for salt in range(4)]
    budget = 5 * parse(many_files(0).encode()).memory_size // 2
    async with directory(source, budget=budget) as root:
        kernel = InodeTable(root)
        held = await file_at(root, f"{names[0]}/0-000007", kernel)
        for name in (*names[:3], names[1], names[3]):
            await at(root, name)
        gc.collect()
        assert set(root.names()) == {names[0], names[1], names[3]}
        asked = len(source.calls)
        for name in (names[1], names[3]):
            await at(root, name)
        assert len(source.calls) == asked
        await at(root, names[2])

        assert len(source.calls) == asked + 1
        assert await held.read(0, 10) == b""
        above = root.entry_nowait(names[0])
        assert above is not None
        for node in (held, above):
            kernel.forget(node.inode, 1)
        del held, above, node
        gc.collect()
        assert set(root.names()) == {names[2], names[3]}


async def test_a_collection_that_grew_is_counted_with_its_new_size(
    autojump_clock: MockClock,  # noqa: ARG001 - lets the refresh be due at once
) -> None:
    source = DictCollections()
    source.add(". d41d8cd98f00b204e9800998ecf8427e+0 0:0:small\n", UUID)
    names = [source.add(many_files(salt)) for salt in range(2)]
    budget = 5 * parse(many_files(0).encode()).memory_size // 2
    async with directory(source, budget=budget) as root:
        for name in (UUID, *names):
            await at(root, name)
        gc.collect()
        assert set(root.names()) == {UUID, *names}
        source.add(many_files(2), UUID)
        await trio.sleep(20)  # a refresh is due
        for name in (names[1], UUID):
            await at(root, name)
        gc.collect()

        assert set(root.names()) == {UUID, names[1]}


async def test_a_collection_larger_than_the_budget_stays_loaded_while_it_is_used() -> None:
    source = DictCollections()
    name, other = source.add(many_files(0)), source.add(many_files(1))
    async with directory(source, budget=1000) as root:
        for number in range(3):
            assert (await file_at(root, f"{name}/0-00000{number}")).size == 0
        assert len(source.calls) == 1
        await at(root, other)
        gc.collect()

        assert list(root.names()) == [other]


async def test_the_estimate_of_a_manifest_is_near_the_memory_that_it_takes() -> None:
    blocks = " ".join(f"{number:032x}+9+A{number:040x}@7fffffff" for number in range(5000))
    files = " ".join(f"{9 * number}:9:file-{number:06}" for number in range(5000))
    text = f". {blocks} {files}\n".encode()
    tracemalloc.start()
    try:
        manifest = parse(text)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert 0.5 < manifest.memory_size / taken < 1.5


@pytest.mark.parametrize(
    "name",
    [
        *("", "x", UUID.upper(), f"{UUID}x", "zzzzz-j7d0g-000000000000001", "0" * 32),
        *("0" * 32 + "+", "0" * 32 + "+1+A", "\udcff", f" {UUID}", f"{UUID}\n"),
        *("g" * 32 + "+1", "0" * 32 + "+\u0663"),
    ],
)
async def test_other_names_are_not_found_without_a_request(name: str) -> None:
    source = DictCollections()
    async with directory(source) as root:
        assert await errno_at(root, name) == errno.ENOENT
        assert source.calls == []


async def test_failures_have_an_errno_and_are_not_cached() -> None:
    source = DictCollections()
    async with directory(source) as root:
        assert await errno_at(root, UUID) == errno.ENOENT
        for cause, number in (
            (Cause.DENIED, errno.EACCES),
            (Cause.UNREACHABLE, errno.EHOSTUNREACH),
            (Cause.TIMED_OUT, errno.ETIMEDOUT),
        ):
            source.failure = KeepReadError("it failed", cause=cause)
            assert await errno_at(root, UUID) == number
        source.failure = None
        source.add(manifest(), UUID)

        assert await content(root, f"{UUID}/foo") == b"foo"
        assert root.not_found_timeout == NOT_FOUND_TIMEOUT
        assert await errno_at(root, f"{UUID}/none") == errno.ENOENT
        assert await errno_at(root, f"{UUID}/a/none") == errno.ENOENT


async def test_an_invalid_manifest_is_reported_with_the_position() -> None:
    source = DictCollections()
    name = source.add(". x 0:0:foo\n")
    async with directory(source) as root:
        with pytest.raises(KeepReadError, match=rf"{name[:32]}.*line 1, column 3") as caught:
            await root.lookup(name)
        assert errno_of(caught.value) == errno.EIO


async def test_lookups_at_the_same_time_cause_one_fetch() -> None:
    source = DictCollections()
    name = source.add(manifest())
    source.gate.clear()
    nodes = []

    async def look_up() -> None:
        nodes.append(await root.lookup(name))

    async with directory(source) as root:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as killed:
                nursery.start_soon(look_up)
                nursery.start_soon(look_up)
                with trio.move_on_after(0.05):  # a lookup that is given up leaves it to others
                    await root.lookup(name)
                killed.cancel()
            source.gate.set()

        assert nodes[0] is nodes[1]
        assert source.calls == [(name, True)]


async def test_each_user_sees_what_that_user_looked_up() -> None:
    source = DictCollections()
    name = source.add(manifest())
    async with directory(source) as root:
        assert list(root.names()) == []
        node = await root.lookup(name)
        node.found_by(Caller(7, 7, 1))

        assert list(root.names()) == [name]
        assert root.entry_nowait(name) is node
        seen = [uid for uid in (0, 7, 8) if node.is_listed_for(Caller(uid, uid, 1))]
        assert seen == [0, 7]


async def test_nodes_are_freed_when_the_kernel_forgets_them() -> None:
    source = DictCollections()
    names = [source.add(f". {KeepLocator.of_block(FOO)} 0:3:{each}\n") for each in range(9)]
    async with directory(source, budget=68_000) as root:  # of 16 KiB and a little each
        for name in names:
            await root.lookup(name)
        gc.collect()

        assert list(root.names()) == names[-4:]


async def test_xattrs_have_the_collection_and_the_locators_of_a_file() -> None:
    source = DictCollections(signature=FIRST)
    found = source.add(manifest(), UUID, "a name", {"key": ["värld"]})
    async with directory(source) as root:
        said = (await at(root, f"{UUID}/oobar")).xattrs()
        assert {key: said[key] for key in said if key != "user.keep.expires"} == {
            "user.keep.state": "stored",
            "user.keep.pdh": found,
            "user.keep.uuid": UUID,
            "user.keep.collection": "a name",
            "user.keep.properties": '{"key": ["v\\u00e4rld"]}',
            "user.keep.locator": said["user.keep.locator"],
        }
        parts = [KeepLocator(each) for each in said["user.keep.locator"].split(",")]
        assert [each.stripped() for each in parts] == [
            str(KeepLocator.of_block(FOO)),
            str(KeepLocator.of_block(BARBAZ)),
        ]
        assert {each.perm_sig for each in parts} == {FIRST}
        of_folder = (await at(root, f"{UUID}/a")).xattrs()
        assert of_folder["user.keep.pdh"] == found
        assert "user.keep.locator" not in of_folder
        assert "user.keep.locator" not in (await at(root, f"{UUID}/nothing")).xattrs()


async def test_a_uuid_is_requested_again_at_an_access(mock_clock: MockClock) -> None:
    source = DictCollections()
    source.add(manifest(), UUID)
    async with directory(source) as root:
        foo = await file_at(root, f"{UUID}/foo", InodeTable(root))
        mock_clock.jump(5.0)
        assert (await at(root, f"{UUID}/foo")) is foo
        assert foo.attributes().validity == (10.0, 10.0)
        assert source.calls == [(UUID, True)]
        mock_clock.jump(11.0)

        assert (await at(root, f"{UUID}/foo")) is foo

        # The content is the same, and not fetched again.
        assert source.calls == [(UUID, True), (UUID, False)]
        assert foo.attributes().validity == (15.0, 15.0)


async def test_a_changed_collection_shows_its_new_files(mock_clock: MockClock) -> None:
    source = DictCollections()
    source.add(manifest(), UUID)
    store = SigningStore()
    async with directory(source, store) as root:
        kernel = InodeTable(root)
        old = {
            each: await file_at(root, f"{UUID}/{each}", kernel) for each in ("foo", "bar", "baz")
        }
        above = await at(root, f"{UUID}/a", kernel)
        folder = await at(above, "b", kernel)
        below = await file_at(folder, "barbaz", kernel)
        # bar is foo now, foo is elsewhere in the text, baz is gone, as is the empty folder.
        source.add(manifest(". {foo} 0:3:bar 0:3:foo 0:1:new\n./a/b {barbaz} 0:6:barbaz\n"), UUID)
        assert await errno_at(root, f"{UUID}/new") == errno.ENOENT
        mock_clock.jump(16.0)

        assert await content(root, f"{UUID}/new") == b"f"
        assert await file_at(root, f"{UUID}/foo") is old["foo"]
        assert await at(root, f"{UUID}/a") is above
        assert await at(root, f"{UUID}/a/b") is folder
        assert await file_at(root, f"{UUID}/a/b/barbaz") is below
        assert await content(root, f"{UUID}/bar") == b"foo"
        bar = await file_at(root, f"{UUID}/bar", kernel)
        assert bar.inode != old["bar"].inode
        kernel.forget(old["bar"].inode, 1)  # it is no longer the node of this name
        assert await file_at(root, f"{UUID}/bar") is bar
        assert await errno_at(root, f"{UUID}/baz") == errno.ENOENT
        assert await errno_at(root, f"{UUID}/empty") == errno.ENOENT
        # Files that are open stay what they were.
        store.forget_cached()
        assert bytes(await old["bar"].read(0, 10)) == b"bar"
        assert bytes(await old["baz"].read(0, 10)) == b"baz"


async def test_a_listing_is_of_the_collection_as_it_is_now(mock_clock: MockClock) -> None:
    source = DictCollections()
    source.add(manifest(), UUID)
    async with directory(source) as root:
        folder = await at(root, UUID)
        assert isinstance(folder, CollectionFolder)
        names = folder.names()
        source.add(manifest(". {foo} 0:3:only\n"), UUID)
        mock_clock.jump(16.0)
        await folder.prepare_listing()

        assert list(folder.names()) == ["only"]
        # One that was begun before goes on; what has gone is left out.
        assert list(names) == ["a", "empty", "bar", "baz", "foo", "nothing", "oobar"]
        assert folder.entry_nowait("foo") is None


async def test_a_removed_collection_is_not_found(mock_clock: MockClock) -> None:
    source = DictCollections()
    source.add(manifest(), UUID)
    async with directory(source) as root:
        folder = await at(root, UUID)
        opened = await file_at(root, f"{UUID}/foo")
        source.failure = NotFoundError("it is in the trash")
        mock_clock.jump(16.0)

        assert await errno_at(root, UUID) == errno.ENOENT
        assert await errno_at(folder, "foo") == errno.ENOENT
        assert bytes(await opened.read(0, 10)) == b"foo"
        source.failure = None
        assert await content(root, f"{UUID}/foo") == b"foo"


async def test_the_known_content_stays_while_the_source_fails(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    source = DictCollections()
    source.add(manifest(), UUID)
    async with directory(source) as root:
        await at(root, UUID)
        source.failure = KeepReadError("the API server is away", cause=Cause.UNREACHABLE)
        mock_clock.jump(16.0)

        assert await content(root, f"{UUID}/foo") == b"foo"

        assert len(source.calls) == 2
        assert [record.message for record in caplog.records] == [
            of_retention.COLLECTION_NOT_REFRESHED(name=UUID, reason="the API server is away")
        ]
        assert_shows(caplog.text, "collection-not-refreshed")


async def test_a_refused_signature_is_fetched_again_once_and_the_read_succeeds() -> None:
    source = DictCollections(signature=FIRST)
    store = SigningStore()
    name = source.add(manifest())
    store.signature = FIRST
    async with directory(source, store) as root:
        foo = await file_at(root, f"{name}/foo")
        bar = await file_at(root, f"{name}/bar")
        assert bytes(await foo.read(0, 3)) == b"foo"
        store.signature = source.signature = SECOND

        assert bytes(await foo.read(0, 3)) == b"foo"
        assert bytes(await bar.read(0, 3)) == b"bar"

        assert source.calls == [(name, True)] * 2
        assert foo.xattrs()["user.keep.locator"].count(f"+A{SECOND}@") == 1


async def test_a_refusal_that_new_signatures_do_not_end_is_raised(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    source = DictCollections(signature=FIRST)
    store = SigningStore()
    name = source.add(manifest())
    async with directory(source, store) as root:
        foo = await file_at(root, f"{name}/foo")
        for _ in range(5):
            with pytest.raises(KeepReadError) as caught:
                await foo.read(0, 3)
            assert caught.value.cause is Cause.DENIED
        assert source.calls == [(name, True)] * 2  # not at each read
        mock_clock.jump(11.0)
        source.failure = KeepReadError("away", cause=Cause.UNREACHABLE)
        with pytest.raises(KeepReadError) as caught:
            await foo.read(0, 3)
        assert caught.value.cause is Cause.DENIED
        assert len(source.calls) == 3
        assert_shows(caplog.text, "signatures-not-renewed")


async def test_signatures_are_fetched_again_after_half_of_their_lifetime() -> None:
    source = DictCollections(signature=FIRST, ttl=2.0)
    store = SigningStore()
    store.signature = FIRST
    name = source.add(manifest())
    async with directory(source, store) as root:
        foo = await file_at(root, f"{name}/foo")
        assert bytes(await foo.read(0, 1)) == b"f"
        source.signature, source.ttl = SECOND, 3600.0
        while SECOND not in foo.xattrs()["user.keep.locator"]:
            assert bytes(await foo.read(0, 3)) == b"foo" or store.signature
            await trio.sleep(0.05)

        store.signature = SECOND
        assert bytes(await foo.read(0, 3)) == b"foo"
        assert source.calls == [(name, True)] * 2


async def test_nodes_of_a_large_folder_are_made_on_use() -> None:
    builder = ManifestBuilder()
    for number in range(10_000):
        builder.add_file(f"{number:05}")
    source = DictCollections()
    name = source.add(builder.build().text())
    async with directory(source) as root:
        folder = await at(root, name)
        assert isinstance(folder, CollectionFolder)
        before = _nodes()
        names = list(folder.names())
        kernel = InodeTable(root)
        kept = [await file_at(folder, each, kernel) for each in names[5000:5010]]
        folder.entry_nowait(names[0])  # a listing whose reply had no room for it

        assert len(names) == 10_000
        assert _nodes() - before == len(kept)
        assert folder.entry_nowait("05003") is kept[3]
        for node in kept:
            kernel.forget(node.inode, 1)
        del kept, node
        assert _nodes() == before


def _nodes() -> int:
    gc.collect()
    return sum(isinstance(each, CollectionFile) for each in gc.get_objects())
