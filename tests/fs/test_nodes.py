"""What every node says of itself, and refuses where nothing else is said."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest
from pyfuse3 import FUSEError

from keepfs.fs.nodes import (
    Changes,
    DirectoryNode,
    FileNode,
    Metadata,
    Node,
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
        raise FUSEError(errno.ENOENT)

    def names(self) -> Iterable[str]:
        return []

    def entry_nowait(self, name: str) -> Node | None:  # noqa: ARG002 - it is empty
        return None


def a_file() -> PlainFile:
    return PlainFile(Metadata(file_mode(0o640), 1, 2, 3))


def a_directory() -> PlainDirectory:
    return PlainDirectory(Metadata(directory_mode(0o755), 1, 2, 3))


def test_attributes_say_what_the_metadata_says() -> None:
    node = SymlinkNode(Metadata(stat.S_IFLNK | 0o777, 1, 2, 3, 4, 5), b"a target")

    said = node.attributes()

    assert (said.st_ino, said.st_mode, said.st_nlink) == (node.inode, stat.S_IFLNK | 0o777, 1)
    assert (said.st_uid, said.st_gid, said.st_size) == (1, 2, 8)
    assert (said.st_atime_ns, said.st_mtime_ns, said.st_ctime_ns) == (3, 4, 5)
    assert said.st_blocks == 1
    assert said.entry_timeout == said.attr_timeout > 24 * 3600


def test_times_before_1970_and_down_to_the_nanosecond_are_kept() -> None:
    node = a_file()
    node.metadata.mtime_ns = -(10**18) - 1
    node.metadata.atime_ns = 1_791_234_567_123_456_789

    said = node.attributes()

    assert said.st_mtime_ns == -(10**18) - 1
    assert said.st_atime_ns == 1_791_234_567_123_456_789


def test_times_that_are_not_given_are_the_others() -> None:
    metadata = Metadata(file_mode(0), 0, 0)

    assert metadata.atime_ns == metadata.mtime_ns == metadata.ctime_ns > 0


def test_a_change_moves_the_times_it_should() -> None:
    metadata = Metadata(file_mode(0), 0, 0, 1)

    metadata.changed()
    after_any = (metadata.atime_ns, metadata.mtime_ns, metadata.ctime_ns > 1)
    metadata.changed(content=True)

    assert after_any == (1, 1, True)
    assert metadata.mtime_ns == metadata.ctime_ns > 1


async def test_what_a_node_does_not_override_is_refused_as_read_only() -> None:
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
        lambda: directory.rename("name", directory, "other", 0),
    ]
    for refusal in refusals:
        with pytest.raises(FUSEError) as caught:
            refusal()
        assert caught.value.errno == errno.EROFS
    for refused in (file.change(Changes(mode=0)), file.truncate(0), file.write(0, b"x")):
        with pytest.raises(FUSEError) as caught:
            await refused
        assert caught.value.errno == errno.EROFS


async def test_a_plain_file_can_be_read_and_needs_nothing_else() -> None:
    file = a_file()

    file.check_open(os.O_RDONLY)
    file.opened()
    await file.store()
    file.closed()

    assert not file.needs_store
    assert file.size == 0
    assert file.xattrs() == {}
    assert await file.read(0, 3) == b"con"


def test_names_not_found_are_not_remembered_unless_a_directory_says_so() -> None:
    assert a_directory().not_found_timeout == 0.0
