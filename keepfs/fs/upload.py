"""upload/: files and folders; what is closed here is stored.

The names are kept in memory: they end with the mount, the blocks don't.
For the trio thread only.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, TypeVar

import pyfuse3
from pyfuse3 import FUSEError

from keepfs.fs.nodes import Changes, DirectoryNode, FileNode, Metadata, Node, SymlinkNode
from keepfs.fs.upload_file import UploadFile, change_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from keepfs.fs.staging import Staging
    from keepfs.keep.receipt import Receipt

_NodeT = TypeVar("_NodeT", bound=Node)

#: Longest name, in bytes, as on local disks.
MAX_NAME = 255


class UploadSymlink(SymlinkNode):
    """A symbolic link in upload/."""

    async def change(self, changes: Changes) -> None:
        """Do what a setattr asks for."""
        change_metadata(self.metadata, changes)


class UploadDirectory(DirectoryNode):
    """A directory of upload/, and upload/ itself.

    Args:
        metadata: What `stat` says of it.
        staging: Where its files' bytes are until they are stored.
        on_stored: Called with the receipt of each block of a stored version.
    """

    def __init__(
        self, metadata: Metadata, staging: Staging, on_stored: Callable[[Receipt], None]
    ) -> None:
        super().__init__(metadata)
        self._staging = staging
        self._on_stored = on_stored
        self._entries: dict[str, Node] = {}

    async def lookup(self, name: str) -> Node:
        """Find an entry.

        Raises:
            FUSEError: ENOENT, there is none of that name.
        """
        return self._entry(name)

    def names(self) -> Iterable[str]:
        """Return the names of all entries, in the order they were made."""
        return list(self._entries)

    def entry_nowait(self, name: str) -> Node | None:
        """Return an entry, or None."""
        return self._entries.get(name)

    def files(self) -> Iterator[UploadFile]:
        """Go through the files of the whole tree."""
        directories = [self]  # not by recursion: a tree may be deeper than that can be
        while directories:
            for node in list(directories.pop()._entries.values()):
                if isinstance(node, UploadFile):
                    yield node
                elif isinstance(node, UploadDirectory):
                    directories.append(node)

    async def change(self, changes: Changes) -> None:
        """Do what a setattr asks for."""
        change_metadata(self.metadata, changes)

    def create(self, name: str, metadata: Metadata) -> FileNode:
        """Make an empty file."""
        return self._add(name, UploadFile(self._owned(metadata), self._staging, self._on_stored))

    def mkdir(self, name: str, metadata: Metadata) -> DirectoryNode:
        """Make an empty directory."""
        metadata.mode |= self.metadata.mode & stat.S_ISGID
        return self._add(
            name, UploadDirectory(self._owned(metadata), self._staging, self._on_stored)
        )

    def symlink(self, name: str, target: bytes, metadata: Metadata) -> SymlinkNode:
        """Make a symbolic link."""
        return self._add(name, UploadSymlink(self._owned(metadata), target))

    def link(self, name: str, node: Node) -> None:  # noqa: ARG002 - whatever they are
        """Refuse a hard link: a file has one name.

        Raises:
            FUSEError: EPERM, as on other file systems without hard links.
        """
        raise FUSEError(errno.EPERM)

    def unlink(self, name: str) -> None:
        """Remove a file or symlink; an open file stays usable until it is closed.

        Raises:
            FUSEError: ENOENT; EISDIR.
        """
        if isinstance(self._entry(name), DirectoryNode):
            raise FUSEError(errno.EISDIR)
        self._remove(name)

    def rmdir(self, name: str) -> None:
        """Remove an empty directory.

        Raises:
            FUSEError: ENOENT; ENOTDIR; ENOTEMPTY.
        """
        node = self._entry(name)
        if not isinstance(node, UploadDirectory):
            raise FUSEError(errno.ENOTDIR)
        if node._entries:
            raise FUSEError(errno.ENOTEMPTY)
        self._remove(name)

    def rename(self, name: str, target: DirectoryNode, new_name: str, flags: int) -> None:
        """Move an entry, over an existing one if need be, in one step.

        Raises:
            FUSEError: EROFS, out of upload/; EEXIST, ENOENT, EISDIR, ENOTDIR,
                ENOTEMPTY, EINVAL as rename(2) says.
        """
        if not isinstance(target, UploadDirectory):
            raise FUSEError(errno.EROFS)
        if flags & ~(pyfuse3.RENAME_EXCHANGE | pyfuse3.RENAME_NOREPLACE):
            raise FUSEError(errno.EINVAL)  # a whiteout
        _check_name(new_name)
        node, replaced = self._entry(name), target._entries.get(new_name)
        if flags & pyfuse3.RENAME_EXCHANGE:
            if replaced is None:
                raise FUSEError(errno.ENOENT)
            self._entries[name], target._entries[new_name] = replaced, node
            replaced.metadata.changed()
        elif replaced is node:
            return
        else:
            if replaced is not None:
                if flags & pyfuse3.RENAME_NOREPLACE:
                    raise FUSEError(errno.EEXIST)
                _check_replaceable(node, replaced)
                target._remove(new_name)
            del self._entries[name]
            target._entries[new_name] = node
        for changed in {node, self, target}:
            changed.metadata.changed(content=changed is not node)

    def _entry(self, name: str) -> Node:
        try:
            return self._entries[name]
        except KeyError:
            raise FUSEError(errno.ENOENT) from None

    def _add(self, name: str, node: _NodeT) -> _NodeT:
        _check_name(name)
        if name in self._entries:
            raise FUSEError(errno.EEXIST)
        if not self.links:
            raise FUSEError(errno.ENOENT)
        self._entries[name] = node
        self.metadata.changed(content=True)
        return node

    def _remove(self, name: str) -> None:
        node = self._entries.pop(name)
        if isinstance(node, UploadFile):
            node.removed()
        else:
            node.links = 0
        self.metadata.changed(content=True)

    def _owned(self, metadata: Metadata) -> Metadata:
        """Let a new entry take the directory's group, where its mode says so."""
        if self.metadata.mode & stat.S_ISGID:
            metadata.gid = self.metadata.gid
        return metadata


def _check_name(name: str) -> None:
    if len(os.fsencode(name)) > MAX_NAME:
        raise FUSEError(errno.ENAMETOOLONG)


def _check_replaceable(node: Node, replaced: Node) -> None:
    if isinstance(node, UploadDirectory):
        if not isinstance(replaced, UploadDirectory):
            raise FUSEError(errno.ENOTDIR)
        if list(replaced.names()):
            raise FUSEError(errno.ENOTEMPTY)
    elif isinstance(replaced, DirectoryNode):
        raise FUSEError(errno.EISDIR)
