"""What every node says of itself, and refuses where nothing else is said."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pyfuse3
import pytest

from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import (
    ROOT_INODE,
    Changes,
    DirectoryNode,
    FileNode,
    Metadata,
    Node,
    RenameMode,
    SymlinkNode,
    directory_mode,
    file_mode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class PlainFile(FileNode):
    """A file that overrides only what it must."""

    async def read(self, offset: int, size: int) -> bytes:
        return b"content"[offset : offset + size]


class PlainDirectory(DirectoryNode):
    """A directory that overrides only what it must."""

    async def lookup(self, name: str) -> Node:  # noqa: ARG002 - it is empty
        raise RefusedError(errno.ENOENT)

    def names(self) -> Iterable[str]:
        return []

    def entry_nowait(self, name: str) -> Node | None:  # noqa: ARG002 - it is empty
        return None


def a_file() -> PlainFile:
    return PlainFile(Metadata(file_mode(0o640), 1, 2, 3))


def a_directory() -> PlainDirectory:
    return PlainDirectory(Metadata(directory_mode(0o755), 1, 2, 3))


def test_attributes_are_those_of_the_node_and_stay_valid() -> None:
    node = SymlinkNode(Metadata(stat.S_IFLNK | 0o777, 1, 2, 3, 4, 5), b"a target")

    found = node.attributes()

    assert (found.inode, found.links, found.size) == (node.inode, 1, 8)
    assert found.metadata is node.metadata
    assert found.validity.entry == found.validity.attributes > 24 * 3600


def test_the_root_has_the_number_that_the_kernel_gives_it() -> None:
    assert ROOT_INODE == pyfuse3.ROOT_INODE


def test_missing_times_default_to_the_given_ones() -> None:
    metadata = Metadata(file_mode(0), 0, 0)

    assert metadata.atime_ns == metadata.mtime_ns == metadata.ctime_ns > 0


def test_a_change_sets_ctime_and_mtime_if_content_changed() -> None:
    metadata = Metadata(file_mode(0), 0, 0, 1)

    metadata.changed()
    after_any = (metadata.atime_ns, metadata.mtime_ns, metadata.ctime_ns > 1)
    metadata.changed(content=True)

    assert after_any == (1, 1, True)
    assert metadata.mtime_ns == metadata.ctime_ns > 1


async def test_operations_that_a_node_does_not_override_are_erofs() -> None:
    file, directory = a_file(), a_directory()
    refusals: list[Callable[[], object]] = [
        lambda: file.check_open(os.O_WRONLY),
        lambda: file.check_open(os.O_RDWR),
        lambda: file.check_open(os.O_RDONLY | os.O_TRUNC),
        lambda: directory.create("name", file.metadata),
        lambda: directory.mkdir("name", file.metadata),
        lambda: directory.symlink("name", b"target", file.metadata),
        lambda: directory.link("name", file),
        lambda: directory.unlink("name"),
        lambda: directory.rmdir("name"),
        lambda: directory.rename("name", directory, "other", RenameMode.REPLACE),
    ]
    for refusal in refusals:
        with pytest.raises(RefusedError) as caught:
            refusal()
        assert caught.value.errno == errno.EROFS
    for refused in (file.change(Changes(mode=0)), file.truncate(0), file.write(0, b"x")):
        with pytest.raises(RefusedError) as caught:
            await refused
        assert caught.value.errno == errno.EROFS


async def test_a_plain_file_can_be_read_and_needs_nothing_else() -> None:
    file = a_file()

    file.check_open(os.O_RDONLY)
    file.opened()
    await file.store()
    file.closed()

    assert not file.has_untried_changes
    assert file.size == 0
    assert file.xattrs() == {}
    assert await file.read(0, 3) == b"con"


def test_names_not_found_are_cached_only_if_a_directory_allows_it() -> None:
    assert a_directory().not_found_timeout == 0.0
