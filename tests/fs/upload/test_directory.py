"""upload/: names, and what becomes of them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from keepfs.fs.bridge import open_blocks
from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import Changes, Metadata, RenameMode, directory_mode, file_mode
from keepfs.fs.root import RootDirectory
from keepfs.fs.upload.catalog import Catalog
from keepfs.fs.upload.directory import MAX_NAME, UploadDirectory
from keepfs.fs.upload.file import UploadFile
from keepfs.fs.upload.staging import Staging
from tests.fakes.store import DictStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from keepfs.fs.nodes import Node


@contextlib.asynccontextmanager
async def open_upload(permissions: int = 0o755) -> AsyncIterator[UploadDirectory]:
    async with open_blocks(DictStore(), copies=1) as blocks:
        metadata = Metadata(directory_mode(permissions), 1, 2, 3)
        yield UploadDirectory.mounted(metadata, Staging(blocks), lambda *_: None, Catalog())


def make(directory: UploadDirectory, name: str) -> Node:
    """Make an entry: a directory if the name ends in a slash, a symlink in an @, else a file."""
    if name.endswith("/"):
        return directory.mkdir(name[:-1], Metadata(directory_mode(0o755), 1, 5))
    if name.endswith("@"):
        return directory.symlink(name[:-1], b"target", Metadata(stat.S_IFLNK | 0o777, 1, 5))
    return directory.create(name, Metadata(file_mode(0o644), 1, 5))


def subdirectory(directory: UploadDirectory, name: str) -> UploadDirectory:
    made = make(directory, f"{name}/")
    assert isinstance(made, UploadDirectory)
    return made


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(RefusedError) as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


async def test_entries_are_found_and_listed_in_the_order_of_their_bytes() -> None:
    async with open_upload() as upload:
        made = {name.rstrip("/@"): make(upload, name) for name in ("b", "a/", "c@")}

        assert list(upload.names()) == ["a", "b", "c"]
        for name, node in made.items():
            assert await upload.lookup(name) is node
            assert upload.entry_nowait(name) is node
        assert upload.entry_nowait("d") is None
        with refused(errno.ENOENT):
            await upload.lookup("d")


@pytest.mark.parametrize("again", ["name", "name/", "name@"])
async def test_a_name_that_exists_is_not_made_again(again: str) -> None:
    async with open_upload() as upload:
        node = make(upload, "name")

        with refused(errno.EEXIST):
            make(upload, again)
        assert upload.entry_nowait("name") is node


@pytest.mark.parametrize("character", ["x", "\udcff"])
async def test_a_name_has_255_bytes_at_most(character: str) -> None:
    async with open_upload() as upload:
        make(upload, character * MAX_NAME)

        for name in (character * 256, f"{character * 256}/", f"{character * 256}@", "ä" * 128):
            with refused(errno.ENAMETOOLONG):
                make(upload, name)
        with refused(errno.ENAMETOOLONG):
            upload.rename(character * MAX_NAME, upload, character * 256, RenameMode.REPLACE)
        with refused(errno.ENAMETOOLONG):
            await upload.lookup(character * 256)


async def test_a_name_need_not_be_text() -> None:
    name = os.fsdecode(b"\xff\xfe caf\xc3\xa9\n")
    async with open_upload() as upload:
        node = make(upload, name)
        upload.rename(name, upload, f"{name}2", RenameMode.REPLACE)

        assert await upload.lookup(f"{name}2") is node
        assert list(upload.names()) == [f"{name}2"]


async def test_creating_and_removing_entries_sets_the_times_of_the_directory() -> None:
    async with open_upload() as upload:
        actions: list[Callable[[], object]] = [
            lambda: make(upload, "file"),
            lambda: make(upload, "directory/"),
            lambda: upload.rename("file", upload, "other", RenameMode.REPLACE),
            lambda: upload.unlink("other"),
            lambda: upload.rmdir("directory"),
        ]
        for action in actions:
            upload.metadata.mtime_ns = upload.metadata.ctime_ns = 3
            action()

            assert upload.metadata.mtime_ns == upload.metadata.ctime_ns > 3


async def test_a_removed_file_has_no_links() -> None:
    async with open_upload() as upload:
        file, link, directory = (make(upload, name) for name in ("a", "b@", "c/"))
        upload.unlink("a")
        upload.unlink("b")
        upload.rmdir("c")

        assert [file.links, link.links, directory.links] == [0, 0, 0]
        assert list(upload.names()) == []


async def test_removing_fails_with_the_errnos_of_linux() -> None:
    async with open_upload() as upload:
        make(upload, "file")
        make(subdirectory(upload, "full"), "entry")

        with refused(errno.ENOENT):
            upload.unlink("none")
        with refused(errno.EISDIR):
            upload.unlink("full")
        with refused(errno.ENOENT):
            upload.rmdir("none")
        with refused(errno.ENOTDIR):
            upload.rmdir("file")
        with refused(errno.ENOTEMPTY):
            upload.rmdir("full")


async def test_nothing_is_made_in_a_removed_directory() -> None:
    async with open_upload() as upload:
        directory = subdirectory(upload, "directory")
        upload.rmdir("directory")

        for name in ("file", "directory/", "symlink@"):
            with refused(errno.ENOENT):
                make(directory, name)


async def test_a_second_name_of_a_file_is_refused() -> None:
    async with open_upload() as upload:
        file = make(upload, "file")

        with refused(errno.EPERM):
            upload.link("other", file)


async def test_a_file_is_renamed_into_another_directory() -> None:
    async with open_upload() as upload:
        file = make(upload, "file")
        directory = subdirectory(upload, "directory")

        upload.rename("file", directory, "moved", RenameMode.REPLACE)

        assert directory.entry_nowait("moved") is file
        assert list(upload.names()) == ["directory"]
        assert file.links == 1


async def test_renaming_over_a_file_removes_it() -> None:
    async with open_upload() as upload:
        old, new = make(upload, "old"), make(upload, "new")

        upload.rename("new", upload, "old", RenameMode.REPLACE)

        assert upload.entry_nowait("old") is new
        assert (old.links, new.links) == (0, 1)
        assert list(upload.names()) == ["old"]


async def test_renaming_a_directory_over_an_empty_one_removes_that() -> None:
    async with open_upload() as upload:
        empty, full = subdirectory(upload, "empty"), subdirectory(upload, "full")
        make(full, "entry")

        upload.rename("full", upload, "empty", RenameMode.REPLACE)

        assert upload.entry_nowait("empty") is full
        assert empty.links == 0


@pytest.mark.parametrize(
    ("old", "new", "number"),
    [
        ("none", "x", errno.ENOENT),
        ("file", "empty", errno.EISDIR),
        ("symlink", "empty", errno.EISDIR),
        ("empty", "file", errno.ENOTDIR),
        ("empty", "symlink", errno.ENOTDIR),
        ("empty", "full", errno.ENOTEMPTY),
    ],
)
async def test_renaming_fails_with_the_errnos_of_linux(old: str, new: str, number: int) -> None:
    async with open_upload() as upload:
        make(upload, "file")
        make(upload, "symlink@")
        make(upload, "empty/")
        make(subdirectory(upload, "full"), "entry")
        before = list(upload.names())

        with refused(number):
            upload.rename(old, upload, new, RenameMode.REPLACE)
        assert list(upload.names()) == before


async def test_renaming_to_itself_changes_nothing() -> None:
    async with open_upload() as upload:
        file = make(upload, "file")
        upload.rename("file", upload, "file", RenameMode.REPLACE)

        assert upload.entry_nowait("file") is file
        assert file.links == 1


async def test_renaming_may_refuse_to_replace() -> None:
    async with open_upload() as upload:
        old, new = make(upload, "old"), make(upload, "new")
        with refused(errno.EEXIST):
            upload.rename("new", upload, "old", RenameMode.NO_REPLACE)
        upload.rename("new", upload, "other", RenameMode.NO_REPLACE)

        assert upload.entry_nowait("old") is old
        assert upload.entry_nowait("other") is new


async def test_renaming_may_exchange_two_entries() -> None:
    async with open_upload() as upload:
        file, directory = make(upload, "file"), subdirectory(upload, "directory")
        inner = make(directory, "inner@")
        inner.metadata.ctime_ns = 3

        upload.rename("file", directory, "inner", RenameMode.EXCHANGE)
        with refused(errno.ENOENT):
            upload.rename("file", upload, "none", RenameMode.EXCHANGE)

        assert upload.entry_nowait("file") is inner
        assert directory.entry_nowait("inner") is file
        assert (file.links, inner.links) == (1, 1)
        assert inner.metadata.ctime_ns > 3


async def test_moving_out_of_the_tree_is_refused() -> None:
    async with open_upload() as upload:
        make(upload, "file")

        with refused(errno.EROFS):
            upload.rename("file", RootDirectory({}, upload.metadata), "file", RenameMode.REPLACE)


async def test_entries_inherit_group_and_setgid_of_a_setgid_directory() -> None:
    async with open_upload(0o2775) as upload:
        file, link, directory = (make(upload, name) for name in ("a", "b@", "c/"))

        assert [node.metadata.gid for node in (file, link, directory)] == [2, 2, 2]
        assert directory.metadata.mode == directory_mode(0o2755)
        assert file.metadata.mode == file_mode(0o644)


async def test_elsewhere_the_group_is_the_creators() -> None:
    async with open_upload() as upload:
        assert make(upload, "file").metadata.gid == 5
        assert make(upload, "directory/").metadata.mode == directory_mode(0o755)


async def test_mode_and_times_of_directories_and_symlinks_change() -> None:
    async with open_upload() as upload:
        for node in (upload, make(upload, "link@")):
            kind = stat.S_IFMT(node.metadata.mode)
            await node.change(Changes(mode=0o700, mtime_ns=11))
            with refused(errno.EPERM):
                await node.change(Changes(uid=77))

            assert node.metadata.mode == kind | 0o700
            assert node.metadata.mtime_ns == 11


async def test_all_files_of_a_deep_tree_are_found() -> None:
    async with open_upload() as upload:
        made, directory = [], upload
        for _ in range(2000):
            made.append(make(directory, "file"))
            make(directory, "link@")
            directory = subdirectory(directory, "directory")

        files = list(upload.files())

        assert all(isinstance(file, UploadFile) for file in files)
        assert {file.inode for file in files} == {file.inode for file in made}


async def test_truncating_to_the_same_size_records_the_time() -> None:
    async with open_upload() as upload:
        file = make(upload, "file")
        assert isinstance(file, UploadFile)
        await file.store()
        await file.change(Changes(mtime_ns=5))

        await file.truncate(0)  # as O_TRUNC does

        recorded = upload.catalog.child(upload.number or 0, "file")
        assert recorded is not None
        assert recorded.metadata.mtime_ns == file.metadata.mtime_ns > 5
