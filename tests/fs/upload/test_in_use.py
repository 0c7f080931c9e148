"""upload/: what of it is in memory, and that nobody can tell."""

from __future__ import annotations

import contextlib
import errno
import stat
from typing import TYPE_CHECKING

import pytest

from keepfs.fs.bridge import open_blocks
from keepfs.fs.errnos import RefusedError
from keepfs.fs.inodes import InodeTable
from keepfs.fs.nodes import Metadata, RenameMode, directory_mode, file_mode
from keepfs.fs.upload.catalog import Catalog
from keepfs.fs.upload.directory import UploadDirectory
from keepfs.fs.upload.file import UploadFile
from keepfs.fs.upload.staging import Staging
from keepfs.fs.upload.storing import State
from tests.fakes.store import DictStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keepfs.fs.nodes import Node


class Bench:
    """A tree, and the same tree at a later mount.

    Attributes:
        upload: As it is mounted now.
        inodes: What the kernel knows.
    """

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._catalog = Catalog()
        self.mount()

    def mount(self) -> None:
        """Mount (again): nothing is in memory then."""
        owner = Metadata(directory_mode(0o755), 1, 2, 3)
        self.upload = UploadDirectory.mounted(owner, self._staging, lambda *_: None, self._catalog)
        self.inodes = InodeTable(self.upload)

    def create(self, name: str, directory: UploadDirectory | None = None) -> UploadFile:
        """Make a file that isn't stored."""
        made = (directory or self.upload).create(name, Metadata(file_mode(0o644), 1, 2))
        assert isinstance(made, UploadFile)
        return made

    async def store(self, *names: str) -> None:
        """Store files whose content is their name."""
        for name in names:
            file = self.create(name)
            file.opened()
            await file.write(0, name.encode())
            await file.store()
            file.closed()

    def in_memory(self) -> list[str]:
        """Return the files that are in memory."""
        return sorted(file.path for file in self.upload.files())

    async def look_up(self, name: str, directory: UploadDirectory | None = None) -> Node:
        """Tell the kernel of a node."""
        node = await (directory or self.upload).lookup(name)
        self.inodes.remember(node)
        return node

    async def file(self, name: str) -> UploadFile:
        """Do the same with a file."""
        node = await self.look_up(name)
        assert isinstance(node, UploadFile)
        return node

    async def directory(self, name: str) -> UploadDirectory:
        """Do the same with a directory."""
        node = await self.look_up(name)
        assert isinstance(node, UploadDirectory)
        return node

    def forget(self, *nodes: Node) -> None:
        """Let the kernel forget nodes."""
        for node in nodes:
            self.inodes.forget(node.inode, node.lookups)


@contextlib.asynccontextmanager
async def open_bench() -> AsyncIterator[Bench]:
    async with open_blocks(DictStore(), copies=1) as blocks:
        yield Bench(Staging(blocks))


async def test_a_lookup_loads_only_that_name_into_memory() -> None:
    async with open_bench() as bench:
        await bench.store("a", "b", "c")
        bench.mount()

        found = await bench.file("b")

        assert found.path == "b"
        assert found.size == 1
        assert found.state is State.STORED
        assert bench.in_memory() == ["b"]
        assert await bench.file("b") is found


async def test_a_listing_loads_nothing_into_memory() -> None:
    names = [f"{number:04}" for number in range(1234)]
    async with open_bench() as bench:
        for name in names:
            bench.upload.symlink(name, b"target", Metadata(stat.S_IFLNK | 0o777, 1, 2))
        bench.mount()
        await bench.store("0000a", "z")
        bench.mount()
        bench.create("0000b")

        assert list(bench.upload.names()) == ["0000", "0000a", "0000b", *names[1:], "z"]
        assert bench.in_memory() == ["0000b"]


async def test_a_file_that_is_stored_while_it_is_listed_is_listed_once() -> None:
    names = [f"{number:04}" for number in range(1500)]
    async with open_bench() as bench:
        files = [bench.create(name) for name in names]
        listing = bench.upload.names()
        listed = [next(listing)]
        for file in files[::2]:
            await file.store()
        listed += [next(listing) for _ in range(900)]
        for file in files[1::2]:
            await file.store()

        assert [*listed, *listing] == names


async def test_entries_that_stay_are_listed_once_while_others_change() -> None:
    names = [f"{number:04}" for number in range(1500)]
    async with open_bench() as bench:
        await bench.store(*names)
        bench.mount()
        listed = []
        for number, name in enumerate(bench.upload.names()):
            listed.append(name)
            if number % 3 == 0 and name in names and number < 700:
                bench.upload.unlink(names[number // 3])  # all of them listed by then
                bench.create(f"{name}-")

        assert len(set(listed)) == len(listed)
        assert set(listed) >= set(names)


async def test_a_version_that_an_unstored_file_replaces_is_not_listed_beside_it() -> None:
    async with open_bench() as bench:
        await bench.store("old")
        bench.mount()
        new = bench.create("new")
        bench.upload.rename("new", bench.upload, "old", RenameMode.REPLACE)

        assert list(bench.upload.names()) == ["old"]
        assert await bench.file("old") is new

        bench.upload.unlink("old")
        assert list(bench.upload.names()) == []
        assert bench.upload.entry_nowait("old") is None


async def test_an_unloaded_directory_behaves_like_a_loaded_one() -> None:
    async with open_bench() as bench:
        for name in ("empty", "full"):
            bench.upload.mkdir(name, Metadata(directory_mode(0o755), 1, 2))
        await bench.store("a", "b", "c")
        bench.upload.rename("a", await bench.directory("full"), "inner", RenameMode.REPLACE)
        bench.mount()

        for name, number in (("full", errno.ENOTEMPTY), ("b", errno.ENOTDIR)):
            with pytest.raises(RefusedError) as caught:
                bench.upload.rmdir(name)
            assert caught.value.errno == number
        with pytest.raises(RefusedError) as caught:
            bench.upload.rename("empty", bench.upload, "full", RenameMode.REPLACE)
        assert caught.value.errno == errno.ENOTEMPTY
        bench.upload.rename("full", bench.upload, "empty", RenameMode.REPLACE)
        bench.upload.rename("b", bench.upload, "empty", RenameMode.EXCHANGE)
        bench.upload.rename("c", bench.upload, "empty", RenameMode.REPLACE)

        assert list(bench.upload.names()) == ["b", "empty"]
        bench.mount()
        assert list((await bench.directory("b")).names()) == ["inner"]
        assert (await bench.file("empty")).version.endswith("+1")


async def test_stored_closed_files_leave_memory_after_a_forget() -> None:
    async with open_bench() as bench:
        await bench.store("file")
        before = await bench.file("file")
        bench.upload.symlink("link", b"target", Metadata(stat.S_IFLNK | 0o777, 1, 2))
        link = await bench.look_up("link")

        bench.forget(before, link)
        assert bench.in_memory() == []
        again = await bench.file("file")

        assert again is not before
        assert again.inode != before.inode
        assert again.metadata == before.metadata
        assert again.version == before.version
        assert bytes(await again.read(0, 10)) == b"file"
        assert await bench.look_up("link") is not link


async def test_open_and_unstored_files_stay_in_memory() -> None:
    async with open_bench() as bench:
        await bench.store("open", "written")
        opened, written = await bench.file("open"), await bench.file("written")
        opened.opened()
        await written.write(0, b"more")
        fresh = bench.create("fresh")
        bench.inodes.remember(fresh)

        bench.forget(opened, written, fresh)

        assert bench.in_memory() == ["fresh", "open", "written"]
        assert await bench.file("written") is written
        assert await bench.file("fresh") is fresh


async def test_a_directory_stays_in_memory_as_long_as_its_entries() -> None:
    async with open_bench() as bench:
        directory, made = bench.upload, []
        for _ in range(2000):
            directory.mkdir("d", Metadata(directory_mode(0o755), 1, 2))
            node = await bench.look_up("d", directory)
            assert isinstance(node, UploadDirectory)
            directory = node
            made.append(node)
        file = bench.create("file", directory)
        bench.inodes.remember(file)

        bench.forget(*made)
        assert list(bench.upload.files()) == [file]
        assert await bench.look_up("d") is made[0]
        bench.forget(made[0])

        await file.store()
        bench.forget(file)
        assert list(bench.upload.files()) == []
        assert await bench.look_up("d") is not made[0]


@pytest.mark.parametrize("how", ["unlink", "rename"])
async def test_an_open_unread_file_keeps_its_bytes_after_a_removal(how: str) -> None:
    async with open_bench() as bench:
        await bench.store("file", "other")
        bench.mount()
        file = await bench.file("file")
        file.opened()

        if how == "unlink":
            bench.upload.unlink("file")
        else:
            bench.upload.rename("other", bench.upload, "file", RenameMode.REPLACE)

        assert bytes(await file.read(0, 10)) == b"file"
        assert file.xattrs()["user.keep.locator"].endswith("+4")


async def test_the_time_of_a_rename_is_kept() -> None:
    async with open_bench() as bench:
        await bench.store("file", "other")
        for mode in (RenameMode.REPLACE, RenameMode.EXCHANGE):
            source = "file" if mode is RenameMode.REPLACE else "other"
            node = await bench.file(source)
            node.metadata.ctime_ns = 3
            bench.upload.rename(source, bench.upload, "moved", mode)
            renamed = node.metadata.ctime_ns
            bench.forget(node)

            assert (await bench.file("moved")).metadata.ctime_ns == renamed > 3


async def test_a_removed_directory_has_no_entries() -> None:
    async with open_bench() as bench:
        bench.upload.mkdir("d", Metadata(directory_mode(0o755), 1, 2))
        directory = await bench.directory("d")
        bench.upload.rmdir("d")

        assert list(directory.names()) == []
        assert directory.entry_nowait("") is None
