"""The handlers, called as pyfuse3 calls them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

import pyfuse3
import pytest
import trio
import trio.testing
from pyfuse3 import EntryAttributes, FUSEError

from keepfs.fs.bridge import open_blocks
from keepfs.fs.by_id import NOT_FOUND_TIMEOUT
from keepfs.fs.nodes import DirectoryNode, Metadata, Node, Ownership, directory_mode
from keepfs.fs.operations import Operations
from keepfs.fs.requests import Requests
from keepfs.fs.root import RootDirectory
from keepfs.keep import Cause, KeepLocator, KeepReadError, KeepWriteError
from tests.fakes.kernel import Caller, Fields
from tests.fakes.store import DictStore, FailingStore, GatedStore
from tests.fakes.threads import PATIENCE
from tests.fakes.tree import README, Tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pyfuse3 import FileHandleT, InodeT

    from keepfs.fs.block_store import BlockStore

FOO = b"acbd18db4cc2f85cedef654fccc4a4d8+3"
ME = Caller(uid=11, gid=12)
ROOT = pyfuse3.ROOT_INODE


@contextlib.asynccontextmanager
async def open_tree(
    store: BlockStore | None = None,
    *,
    ownership: Ownership | None = None,
    read_only: bool = False,
) -> AsyncIterator[Tree]:
    """Make a tree the kernel knows the directories of."""
    async with open_blocks(DictStore() if store is None else store, copies=2) as blocks:
        tree = Tree(blocks, ownership=ownership, read_only=read_only)
        await tree.operations.lookup(ROOT, b"upload", ME)
        await tree.operations.lookup(ROOT, b"by_id", ME)
        yield tree


async def make(tree: Tree, name: bytes, content: bytes = b"") -> tuple[InodeT, FileHandleT]:
    """Make a file in upload/ and write to it; it stays open."""
    info, attributes = await tree.operations.create(tree.upload, name, 0o100644, os.O_RDWR, ME)
    if content:
        await tree.operations.write(info.fh, 0, content)
    return attributes.st_ino, info.fh


async def close(tree: Tree, handle: FileHandleT) -> None:
    await tree.operations.flush(handle)
    await tree.operations.release(handle)


async def refusal(request: Awaitable[object]) -> str:
    """Return the name of the errno that a request is answered with."""
    with pytest.raises(FUSEError) as caught:
        await request
    return errno.errorcode[caught.value.errno]


def with_size(size: int) -> EntryAttributes:
    attributes = EntryAttributes()
    attributes.st_size = size
    return attributes


async def content_of(tree: Tree, inode: InodeT) -> bytes:
    """Read a file through a handle of its own."""
    info = await tree.operations.open(inode, os.O_RDONLY, ME)
    content = bytes(await tree.operations.read(info.fh, 0, 1 << 20))
    await close(tree, info.fh)
    return content


async def xattrs(tree: Tree, inode: InodeT) -> dict[bytes, bytes]:
    names = await tree.operations.listxattr(inode, ME)
    return {name: await tree.operations.getxattr(inode, name, ME) for name in names}


# --- names ---------------------------------------------------------------------


async def test_a_node_can_be_used_from_its_lookup_until_its_forget() -> None:
    async with open_tree() as tree:
        operations = tree.operations
        found = await operations.lookup(ROOT, b"README", ME)
        again = await operations.lookup(ROOT, b"README", ME)
        await operations.forget([(found.st_ino, 1)])
        known = await operations.getattr(found.st_ino, ME)
        await operations.forget([(found.st_ino, 1), (4711, 3), (ROOT, 1)])

        assert found.st_ino == again.st_ino == known.st_ino
        assert found.st_size == len(README)
        assert await refusal(operations.getattr(found.st_ino, ME)) == "ESTALE"
        assert (await operations.getattr(ROOT, ME)).st_ino == ROOT


async def test_a_name_not_found_in_by_id_may_be_cached_for_a_second() -> None:
    store = FailingStore(DictStore())
    async with open_tree(store) as tree:
        for name in (FOO, b"no locator", b"\xff"):
            nothing = await tree.operations.lookup(tree.by_id, name, ME)

            assert nothing.st_ino == 0
            assert nothing.entry_timeout == NOT_FOUND_TIMEOUT

        store.fail_next("head_block", KeepReadError("who are you?", cause=Cause.DENIED))
        assert await refusal(tree.operations.lookup(tree.by_id, FOO, ME)) == "EACCES"


async def test_a_name_not_found_elsewhere_is_not_cached() -> None:
    async with open_tree() as tree:
        assert await refusal(tree.operations.lookup(tree.upload, b"none", ME)) == "ENOENT"
        assert await refusal(tree.operations.lookup(ROOT, b"none", ME)) == "ENOENT"


async def test_a_block_is_read_by_its_locator() -> None:
    store = DictStore()
    store.put_block(b"foo", 1)
    async with open_tree(store) as tree:
        found = await tree.operations.lookup(tree.by_id, FOO, ME)

        assert await content_of(tree, found.st_ino) == b"foo"


async def test_a_new_node_belongs_to_its_creator_or_to_uid_and_gid() -> None:
    async with open_tree() as tree:
        made = await tree.operations.mkdir(tree.upload, b"d", 0o40755, ME)
        assert (made.st_uid, made.st_gid, made.st_mode) == (11, 12, 0o40755)

    async with open_tree(ownership=Ownership(uid=1, gid=2)) as tree:
        made = await tree.operations.mknod(tree.upload, b"f", 0o100600, 0, ME)
        assert (made.st_uid, made.st_gid, made.st_mode) == (1, 2, 0o100600)


async def test_only_regular_files_are_made_by_mknod() -> None:
    async with open_tree() as tree:
        for kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK):
            request = tree.operations.mknod(tree.upload, b"name", kind | 0o600, 0, ME)
            assert await refusal(request) == "EPERM"


async def test_readlink_reads_symlinks_only() -> None:
    target = b"over/there\xff"
    async with open_tree() as tree:
        link = await tree.operations.symlink(tree.upload, b"link", target, ME)

        assert link.st_mode == stat.S_IFLNK | 0o777
        assert link.st_size == len(target)
        assert await tree.operations.readlink(link.st_ino, ME) == target
        assert await refusal(tree.operations.readlink(ROOT, ME)) == "EINVAL"
        assert await refusal(tree.operations.open(link.st_ino, os.O_RDONLY, ME)) == "EISDIR"


async def test_a_hard_link_is_refused() -> None:
    async with open_tree() as tree:
        inode, _ = await make(tree, b"file")

        assert await refusal(tree.operations.link(inode, tree.upload, b"two", ME)) == "EPERM"
        assert await refusal(tree.operations.link(inode, tree.by_id, b"two", ME)) == "EROFS"


async def test_entries_are_renamed_and_removed() -> None:
    async with open_tree() as tree:
        operations = tree.operations
        inode, handle = await make(tree, b"file", b"abc")
        await close(tree, handle)
        directory = (await operations.mkdir(tree.upload, b"d", 0o40755, ME)).st_ino

        await operations.rename(tree.upload, b"file", directory, b"moved\xff", 0, ME)
        assert (await operations.lookup(directory, b"moved\xff", ME)).st_ino == inode
        assert await refusal(operations.rmdir(tree.upload, b"d", ME)) == "ENOTEMPTY"
        await operations.unlink(directory, b"moved\xff", ME)
        await operations.rmdir(tree.upload, b"d", ME)

        assert await refusal(operations.lookup(tree.upload, b"d", ME)) == "ENOENT"
        assert (await operations.getattr(inode, ME)).st_nlink == 0


async def test_a_rename_with_a_whiteout_is_refused() -> None:
    whiteout = 1 << 2  # RENAME_WHITEOUT of linux/fs.h
    async with open_tree() as tree:
        await make(tree, b"file", b"abc")

        renaming = tree.operations.rename(tree.upload, b"file", tree.upload, b"x", whiteout, ME)
        assert await refusal(renaming) == "EINVAL"


async def test_every_attribute_reaches_the_kernel() -> None:
    async with open_tree() as tree:
        inode, handle = await make(tree, b"file", b"abc")
        wanted = EntryAttributes()
        wanted.st_atime_ns, wanted.st_mtime_ns = 1_791_234_567_123_456_789, -(10**18) - 1
        wanted.st_mode = 0o100640
        changes = Fields("atime", "mtime", "mode")

        said = await tree.operations.setattr(inode, wanted, changes, None, ME)
        await close(tree, handle)

        assert (said.st_ino, said.st_mode, said.st_nlink) == (inode, 0o100640, 1)
        assert (said.st_uid, said.st_gid, said.st_size) == (ME.uid, ME.gid, 3)
        assert (said.st_atime_ns, said.st_mtime_ns) == (wanted.st_atime_ns, wanted.st_mtime_ns)
        assert said.st_ctime_ns > said.st_mtime_ns
        assert (said.st_blocks, said.st_blksize, said.st_rdev) == (1, 1 << 20, 0)
        assert said.entry_timeout == said.attr_timeout > 24 * 3600


async def test_a_file_has_no_entries() -> None:
    async with open_tree() as tree:
        inode, _ = await make(tree, b"file")

        assert await refusal(tree.operations.lookup(inode, b"name", ME)) == "ENOTDIR"
        assert await refusal(tree.operations.opendir(inode, ME)) == "ENOTDIR"
        assert await refusal(tree.operations.mkdir(inode, b"d", 0o40755, ME)) == "ENOTDIR"
        assert await refusal(tree.operations.open(tree.upload, os.O_RDONLY, ME)) == "EISDIR"


async def test_nothing_is_changed_in_by_id_and_the_root() -> None:
    store = DictStore()
    store.put_block(b"foo", 1)
    async with open_tree(store) as tree:
        operations = tree.operations
        file = (await operations.lookup(tree.by_id, FOO, ME)).st_ino
        requests: list[Awaitable[object]] = [
            operations.create(tree.by_id, FOO, 0o100644, os.O_RDWR, ME),
            operations.mkdir(tree.by_id, b"d", 0o40755, ME),
            operations.symlink(ROOT, b"l", b"target", ME),
            operations.unlink(tree.by_id, FOO, ME),
            operations.rmdir(ROOT, b"upload", ME),
            operations.rename(tree.by_id, FOO, tree.upload, b"x", 0, ME),
            operations.open(file, os.O_RDWR, ME),
            operations.open(file, os.O_RDONLY | os.O_TRUNC, ME),
            operations.setattr(file, with_size(0), Fields("size"), None, ME),
            operations.setattr(ROOT, with_size(0), Fields("mode"), None, ME),
        ]

        assert {await refusal(request) for request in requests} == {"EROFS"}


async def test_a_read_only_mount_refuses_every_change() -> None:
    async with open_tree(read_only=True) as tree:
        operations = tree.operations
        readme = (await operations.lookup(ROOT, b"README", ME)).st_ino
        requests: list[Awaitable[object]] = [
            operations.create(tree.upload, b"f", 0o100644, os.O_RDWR, ME),
            operations.mknod(tree.upload, b"f", 0o100644, 0, ME),
            operations.mkdir(tree.upload, b"d", 0o40755, ME),
            operations.symlink(tree.upload, b"l", b"target", ME),
            operations.link(readme, tree.upload, b"two", ME),
            operations.unlink(tree.upload, b"f", ME),
            operations.rmdir(tree.upload, b"d", ME),
            operations.rename(tree.upload, b"f", tree.upload, b"g", 0, ME),
            operations.setattr(tree.upload, with_size(0), Fields("mode"), None, ME),
            operations.open(readme, os.O_WRONLY, ME),
            operations.open(readme, os.O_RDONLY | os.O_TRUNC, ME),
        ]

        assert {await refusal(request) for request in requests} == {"EROFS"}
        assert await content_of(tree, readme) == README.encode()


# --- attributes ------------------------------------------------------------------


async def test_setattr_changes_all_but_the_owner() -> None:
    async with open_tree() as tree:
        inode, _ = await make(tree, b"file", b"abc")
        wanted = EntryAttributes()
        wanted.st_mode, wanted.st_uid, wanted.st_gid = 0o100600, 11, 12
        wanted.st_atime_ns, wanted.st_mtime_ns, wanted.st_size = 5, -6, 2

        said = await tree.operations.setattr(
            inode, wanted, Fields("mode", "uid", "gid", "atime", "mtime", "size"), None, ME
        )
        wanted.st_uid = 0
        other_owner = tree.operations.setattr(inode, wanted, Fields("uid"), None, ME)

        assert (said.st_mode, said.st_size) == (0o100600, 2)
        assert (said.st_atime_ns, said.st_mtime_ns) == (5, -6)
        assert await refusal(other_owner) == "EPERM"


async def test_the_extended_attributes_name_the_locator() -> None:
    async with open_tree() as tree:
        inode, handle = await make(tree, b"file", b"foo")
        before = await xattrs(tree, inode)
        await close(tree, handle)

        assert before == {b"user.keep.state": b"dirty"}
        assert await xattrs(tree, inode) == {
            b"user.keep.state": b"stored",
            b"user.keep.locator": FOO,
            b"user.keep.copies": b"2",
            b"user.keep.services": b"dict:",
        }


async def test_there_are_no_other_extended_attributes() -> None:
    async with open_tree() as tree:
        for name, expected in (
            (b"security.capability", "ENODATA"),
            (b"user.other", "ENODATA"),
            (b"user.keep.none", "ENODATA"),
            (b"system.posix_acl_access", "EOPNOTSUPP"),
        ):
            with pytest.raises(FUSEError) as caught:
                await tree.operations.getxattr(tree.upload, name, ME)
            assert caught.value.errno == getattr(errno, expected)
        assert await tree.operations.listxattr(tree.upload, ME) == []


async def test_the_space_of_the_store_is_cached_for_some_seconds(
    mock_clock: trio.testing.MockClock,
) -> None:
    store = DictStore(capacity=100 << 20)
    async with open_tree(store) as tree:
        first = await tree.operations.statfs(ME)
        store.capacity = 300 << 20
        second = await tree.operations.statfs(ME)
        mock_clock.jump(11.0)
        third = await tree.operations.statfs(ME)

        assert first.f_bsize == first.f_frsize == 1 << 20
        assert (first.f_blocks, first.f_bfree, first.f_bavail) == (100, 100, 100)
        assert (second.f_blocks, third.f_blocks) == (100, 300)
        assert first.f_namemax == 255
        assert first.f_files > 0


# --- files -----------------------------------------------------------------------


async def test_closing_stores_and_the_block_is_listed_in_by_id() -> None:
    store = DictStore()
    async with open_tree(store) as tree:
        _, handle = await make(tree, b"file", b"foo")
        await close(tree, handle)
        store.calls.clear()

        found = await tree.operations.lookup(tree.by_id, FOO, ME)

        assert found.st_size == 3
        assert list(store.blocks.values()) == [b"foo"]
        assert store.calls == []


async def test_fsync_stores_without_closing() -> None:
    store = DictStore()
    async with open_tree(store) as tree:
        inode, handle = await make(tree, b"file", b"foo")

        await tree.operations.fsync(handle, False)  # noqa: FBT003 - pyfuse3's

        assert (await xattrs(tree, inode))[b"user.keep.state"] == b"stored"


async def test_a_flush_before_the_first_write_does_no_harm() -> None:
    store = DictStore()
    async with open_tree(store) as tree:
        inode, handle = await make(tree, b"file")
        await tree.operations.flush(handle)
        await tree.operations.write(handle, 0, b"foo")
        await tree.operations.flush(handle)
        await tree.operations.write(handle, 3, b"bar")
        await close(tree, handle)

        assert set(store.blocks.values()) == {b"", b"foo", b"foobar"}
        assert await content_of(tree, inode) == b"foobar"


async def until_stored(tree: Tree, inode: InodeT) -> None:
    """Wait until a task of the mount has stored a file."""
    with trio.fail_after(PATIENCE):
        while (await xattrs(tree, inode))[b"user.keep.state"] != b"stored":  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.001)


async def test_bytes_written_after_the_last_flush_are_stored_at_release() -> None:
    store = DictStore()
    async with open_tree(store) as tree:
        inode, handle = await make(tree, b"file", b"foo")
        await tree.operations.flush(handle)
        await tree.operations.write(handle, 3, b"bar")

        await tree.operations.release(handle)

        await until_stored(tree, inode)
        assert b"foobar" in store.blocks.values()


async def test_opening_may_truncate() -> None:
    async with open_tree() as tree:
        inode, handle = await make(tree, b"file", b"foo")
        await close(tree, handle)

        info = await tree.operations.open(inode, os.O_WRONLY | os.O_TRUNC, ME)
        size = (await tree.operations.getattr(inode, ME)).st_size
        await close(tree, info.fh)

        assert size == 0
        assert info.keep_cache
        assert (await xattrs(tree, inode))[b"user.keep.locator"].endswith(b"+0")


async def test_a_reader_that_creates_or_truncates_waits_for_the_store() -> None:
    async with open_tree() as tree:
        info, made = await tree.operations.create(tree.upload, b"file", 0o100644, os.O_RDONLY, ME)
        await tree.operations.flush(info.fh)
        assert (await xattrs(tree, made.st_ino))[b"user.keep.state"] == b"stored"
        await tree.operations.release(info.fh)

        info = await tree.operations.open(made.st_ino, os.O_RDWR, ME)
        await tree.operations.write(info.fh, 0, b"foo")
        await close(tree, info.fh)
        info = await tree.operations.open(made.st_ino, os.O_RDONLY | os.O_TRUNC, ME)
        await tree.operations.flush(info.fh)
        found = await xattrs(tree, made.st_ino)
        await tree.operations.release(info.fh)

        assert found[b"user.keep.locator"].endswith(b"+0")


@pytest.mark.parametrize("by", ["handle", "name"])
async def test_a_size_is_set_by_handle_and_by_name(by: str) -> None:
    store = DictStore()
    async with open_tree(store) as tree:
        inode, handle = await make(tree, b"file", b"foobar")
        await close(tree, handle)
        info = await tree.operations.open(inode, os.O_WRONLY, ME)
        if by == "name":
            await close(tree, info.fh)

        said = await tree.operations.setattr(
            inode, with_size(3), Fields("size"), info.fh if by == "handle" else None, ME
        )
        if by == "handle":
            await close(tree, info.fh)

        assert said.st_size == 3
        assert (await xattrs(tree, inode))[b"user.keep.locator"] == FOO


async def test_close_reports_a_failed_store_and_the_bytes_stay() -> None:
    store = FailingStore(DictStore())
    async with open_tree(store) as tree:
        inode, handle = await make(tree, b"file", b"foo")
        store.fail_next("put_block", KeepWriteError("no room", cause=Cause.FULL))

        flushing = await refusal(tree.operations.flush(handle))
        await tree.operations.release(handle)  # tried already

        assert flushing == "ENOSPC"
        assert await xattrs(tree, inode) == {
            b"user.keep.state": b"failed",
            b"user.keep.error": b"no room",
        }
        assert await content_of(tree, inode) == b"foo"


async def test_a_readers_close_does_not_report_a_writers_failure() -> None:
    store = FailingStore(DictStore())
    async with open_tree(store) as tree:
        inode, _ = await make(tree, b"file", b"foo")
        store.fail_always("put_block", KeepWriteError("no room", cause=Cause.FULL))
        info = await tree.operations.open(inode, os.O_RDONLY, ME)

        await tree.operations.flush(info.fh)

        assert (await xattrs(tree, inode))[b"user.keep.state"] == b"dirty"


async def test_an_open_file_outlives_its_name() -> None:
    store = DictStore()
    async with open_tree(store) as tree:
        inode, handle = await make(tree, b"file", b"foo")
        await tree.operations.unlink(tree.upload, b"file", ME)

        await tree.operations.write(handle, 3, b"bar")
        content = bytes(await tree.operations.read(handle, 0, 10))
        await close(tree, handle)

        assert content == b"foobar"
        assert (await tree.operations.getattr(inode, ME)).st_nlink == 0
        assert tree.staging.currsize == 0
        assert store.calls == []


async def test_a_reader_sees_unstored_bytes_of_a_writer() -> None:
    async with open_tree() as tree:
        inode, _ = await make(tree, b"file", b"foo")

        assert await content_of(tree, inode) == b"foo"


async def test_a_release_stores_after_a_cancelled_close() -> None:
    store = GatedStore(DictStore())
    async with open_tree(store) as tree:
        inode, handle = await make(tree, b"file", b"foo")
        store.shut("put_block")
        with trio.move_on_after(0), pytest.raises(FUSEError):
            await tree.operations.flush(handle)

        await tree.operations.release(handle)
        store.open("put_block")

        await until_stored(tree, inode)
        assert (await xattrs(tree, inode))[b"user.keep.locator"] == FOO


async def test_a_number_that_is_not_open_is_refused() -> None:
    async with open_tree() as tree:
        operations = tree.operations
        _, handle = await make(tree, b"file", b"foo")
        await close(tree, handle)
        requests: list[Callable[[], Awaitable[object]]] = [
            lambda: operations.read(handle, 0, 1),
            lambda: operations.write(handle, 0, b"x"),
            lambda: operations.flush(handle),
            lambda: operations.release(handle),
            lambda: operations.releasedir(handle),
        ]

        assert {await refusal(request()) for request in requests} == {"EBADF"}


async def test_a_directory_is_opened_synced_and_closed() -> None:
    async with open_tree() as tree:
        handle = await tree.operations.opendir(ROOT, ME)
        await tree.operations.fsyncdir(handle, False)  # noqa: FBT003 - pyfuse3's
        await tree.operations.releasedir(handle)

        assert await refusal(tree.operations.releasedir(handle)) == "EBADF"


async def test_a_file_of_several_blocks_is_one_name_in_by_id() -> None:
    store = DictStore()
    async with open_blocks(store, copies=1) as blocks:
        tree = Tree(blocks, block_size=4)
        await tree.operations.lookup(ROOT, b"upload", ME)
        await tree.operations.lookup(ROOT, b"by_id", ME)
        inode, handle = await make(tree, b"file", b"0123456789")
        await close(tree, handle)
        locators = (await xattrs(tree, inode))[b"user.keep.locator"]

        found = await tree.operations.lookup(tree.by_id, locators, ME)

        assert [KeepLocator(each).size for each in locators.decode().split(",")] == [4, 4, 2]
        assert await content_of(tree, found.st_ino) == b"0123456789"


# --- the log ---------------------------------------------------------------------


class BrokenDirectory(DirectoryNode):
    """A directory whose disk fails, unless a test sets another behaviour.

    Attributes:
        hangs: Whether it hangs instead.
        works: Whether it works.
    """

    mount_path = "collections/folder"
    hangs = works = False

    async def prepare_listing(self) -> None:
        """Fail, hang or work."""
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if not self.works:
            raise OSError(errno.EIO, "no disk")

    async def sync(self) -> None:
        """Do the same."""
        await self.prepare_listing()

    async def lookup(self, name: str) -> Node:
        """Fail."""
        raise OSError(errno.EIO, name)

    def names(self) -> list[str]:
        """Return a name."""
        return ["x"]

    def entry_nowait(self, name: str) -> Node | None:
        """Fail."""
        raise OSError(errno.EIO, name)


async def test_the_log_names_the_directory_of_a_request_that_fails_or_hangs(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner = Metadata(directory_mode(0), 0, 0)
    folder = BrokenDirectory(owner)
    async with open_blocks(DictStore(), copies=1) as blocks, trio.open_nursery() as nursery:
        requests = Requests(60.0)
        root = RootDirectory({"folder": folder}, owner)
        operations = Operations(root, blocks, requests, Ownership())
        nursery.start_soon(requests.watch)
        inode = (await operations.lookup(ROOT, b"folder", ME)).st_ino
        folder.works = True
        handle = await operations.opendir(inode, ME)
        for folder.works, folder.hangs in ((False, False), (False, True)):
            await refusal(operations.opendir(inode, ME))
            await refusal(operations.fsyncdir(handle, False))  # noqa: FBT003 - pyfuse3's
        await refusal(operations.lookup(inode, b"x", ME))
        nursery.cancel_scope.cancel()

    assert [record.getMessage().split(" after ")[0] for record in caplog.records] == [
        "opendir of collections/folder: EIO: no disk [file-failed]",
        "fsyncdir of collections/folder: EIO: no disk [file-failed]",
        "opendir of collections/folder: ETIMEDOUT",
        "fsyncdir of collections/folder: ETIMEDOUT",
        "lookup of collections/folder/x: EIO: x [file-failed]",
    ]
