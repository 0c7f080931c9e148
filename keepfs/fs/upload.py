"""upload/: files and folders; what is closed here is stored, and found again at the next mount.

A directory's entries are in memory from the first time it is asked for them.
The catalog is changed first, then memory, without an await in between: so the
two are never apart.

For the trio thread only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, TypeVar

import pyfuse3
from pyfuse3 import FUSEError

from keepfs.fs.catalog import ROOT, Catalog
from keepfs.fs.nodes import (
    Changes,
    DirectoryNode,
    FileNode,
    Metadata,
    Node,
    SymlinkNode,
    changed_metadata,
)
from keepfs.fs.place import Place
from keepfs.fs.upload_file import UploadFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from keepfs.fs.catalog import Entry
    from keepfs.fs.staging import Staging
    from keepfs.keep.receipt import Receipt

_NodeT = TypeVar("_NodeT", bound="UploadNode")

#: Longest name, in bytes, as on local disks.
MAX_NAME = 255


class UploadSymlink(SymlinkNode):
    """A symbolic link in upload/."""

    def __init__(self, metadata: Metadata, target: bytes) -> None:
        super().__init__(metadata, target)
        self.place: Place | None = None
        self.number: int | None = None

    async def change(self, changes: Changes) -> None:
        """Do what a setattr asks for."""
        metadata = changed_metadata(self.metadata, changes)
        if self.place is not None:
            self.place.record_metadata(self.number, metadata)
        self.metadata = metadata


class UploadDirectory(DirectoryNode):
    """A directory of upload/, and upload/ itself.

    Args:
        metadata: What `stat` says of it.
        staging: Where its files' bytes are until they are stored.
        on_stored: Called with the receipt of each block of a stored version.
        catalog: Where names outlive the mount; in memory if not given.
        number: The catalog's, of this directory.
        is_new: Whether it is known to be empty.
    """

    def __init__(
        self,
        metadata: Metadata,
        staging: Staging,
        on_stored: Callable[[Receipt], None],
        catalog: Catalog | None = None,
        number: int = ROOT,
        *,
        is_new: bool = False,
    ) -> None:
        super().__init__(metadata)
        self._staging = staging
        self._on_stored = on_stored
        self.catalog = Catalog() if catalog is None else catalog
        self.number: int | None = number
        self.place: Place | None = None
        self._loaded: dict[str, UploadNode] | None = {} if is_new else None

    @classmethod
    def mounted(
        cls,
        metadata: Metadata,
        staging: Staging,
        on_stored: Callable[[Receipt], None],
        catalog: Catalog,
    ) -> UploadDirectory:
        """Make upload/ itself, as the catalog knows it; `metadata` is for the very first time."""
        known = catalog.root()
        if known is None:
            with catalog.change():
                catalog.add_root(metadata)
        return cls(known or metadata, staging, on_stored, catalog)

    async def lookup(self, name: str) -> Node:
        """Find an entry.

        Raises:
            FUSEError: ENOENT, there is none of that name; ENAMETOOLONG.
        """
        _check_name(name)
        return self._entry(name)

    def names(self) -> Iterable[str]:
        """Return the names of all entries, in the order they were made."""
        return list(self._entries)

    def entry_nowait(self, name: str) -> Node | None:
        """Return an entry, or None."""
        return self._entries.get(name)

    def files(self) -> Iterator[UploadFile]:
        """Go through the files of the tree that are in memory: all that aren't stored are."""
        directories = [self]  # not by recursion: a tree may be deeper than that can be
        while directories:
            for node in list((directories.pop()._loaded or {}).values()):
                if isinstance(node, UploadFile):
                    yield node
                elif isinstance(node, UploadDirectory):
                    directories.append(node)

    async def change(self, changes: Changes) -> None:
        """Do what a setattr asks for."""
        metadata = changed_metadata(self.metadata, changes)
        with self.catalog.change():
            self.catalog.set_metadata(self._number, metadata)
        self.metadata = metadata

    async def sync(self) -> None:
        """Return when the entries, as they are, survive a power cut."""
        await self._staging.blocks.run(self.catalog.sync)

    def create(self, name: str, metadata: Metadata) -> FileNode:
        """Make an empty file; the catalog learns of it when it is stored."""
        file = UploadFile(self._owned(metadata), self._staging, self._on_stored)
        return self._add(name, file)

    def mkdir(self, name: str, metadata: Metadata) -> DirectoryNode:
        """Make an empty directory."""
        metadata.mode |= self.metadata.mode & stat.S_ISGID
        return self._add(name, self._directory(self._owned(metadata), 0, is_new=True))

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

        A file that isn't stored yet leaves the one it replaces in the catalog
        until it is: after a crash the name has the old version or the new one.

        Raises:
            FUSEError: EROFS, out of upload/; EEXIST, ENOENT, EISDIR, ENOTDIR,
                ENOTEMPTY, EINVAL as rename(2) says.
        """
        if not isinstance(target, UploadDirectory):
            raise FUSEError(errno.EROFS)
        _check_name(new_name)
        if flags & ~(pyfuse3.RENAME_EXCHANGE | pyfuse3.RENAME_NOREPLACE):
            raise FUSEError(errno.EINVAL)  # a whiteout
        node, replaced = self._entry(name), target._entries.get(new_name)
        if flags & pyfuse3.RENAME_EXCHANGE:
            if replaced is None:
                raise FUSEError(errno.ENOENT)
            with target._recording(self):
                self._move_in_catalog(node, replaced, target, name, new_name)
            self._put(name, replaced)
            target._put(new_name, node)
            replaced.metadata.changed()
        elif replaced is not node:
            if replaced is not None:
                if flags & pyfuse3.RENAME_NOREPLACE:
                    raise FUSEError(errno.EEXIST)
                _check_replaceable(node, replaced)
            with target._recording(self):
                if node.number is None:
                    self.catalog.remove(self._number, name)
                else:
                    self.catalog.move(node.number, target._number, new_name)
            del self._entries[name]
            if replaced is not None:
                _forget(replaced)
            target._put(new_name, node)
        node.metadata.changed()

    def _move_in_catalog(
        self,
        node: UploadNode,
        other: UploadNode,
        target: UploadDirectory,
        name: str,
        new_name: str,
    ) -> None:
        """Exchange two entries; one that isn't stored yet has none to exchange."""
        if node.number is not None and other.number is not None:
            self.catalog.exchange(node.number, other.number)
        elif node.number is not None:
            self.catalog.move(node.number, target._number, new_name)
        elif other.number is not None:
            self.catalog.move(other.number, self._number, name)

    @property
    def _number(self) -> int:
        """The catalog's number; one that nothing has, once the directory is removed."""
        return 0 if self.number is None else self.number

    @property
    def _entries(self) -> dict[str, UploadNode]:
        if self._loaded is None:
            self._loaded = {}
            for entry in self.catalog.children(self._number):
                self._put(entry.name, self._node(entry))
        return self._loaded

    def _node(self, entry: Entry) -> UploadNode:
        """Make what the catalog knows of an entry a node."""
        node: UploadNode
        if stat.S_ISDIR(entry.metadata.mode):
            return self._directory(entry.metadata, entry.number)
        if stat.S_ISLNK(entry.metadata.mode):
            node = UploadSymlink(entry.metadata, self.catalog.target(entry.number))
        else:
            node = UploadFile(entry.metadata, self._staging, self._on_stored)
            node.take_version(entry.size, lambda: self.catalog.receipts(entry.number))
        node.number = entry.number
        return node

    def _directory(
        self, metadata: Metadata, number: int, *, is_new: bool = False
    ) -> UploadDirectory:
        return UploadDirectory(
            metadata, self._staging, self._on_stored, self.catalog, number, is_new=is_new
        )

    def _entry(self, name: str) -> UploadNode:
        try:
            return self._entries[name]
        except KeyError:
            raise FUSEError(errno.ENOENT) from None

    def _put(self, name: str, node: UploadNode) -> None:
        self._entries[name] = node
        node.place = Place(self, name)

    def _add(self, name: str, node: _NodeT) -> _NodeT:
        _check_name(name)
        if name in self._entries:
            raise FUSEError(errno.EEXIST)
        if not self.links:
            raise FUSEError(errno.ENOENT)
        if isinstance(node, UploadFile):
            self.metadata.changed(content=True)
        else:
            target = node.target if isinstance(node, UploadSymlink) else b""
            with self._recording():
                node.number = self.catalog.add(
                    self._number, name, node.metadata, len(target), target
                )
        self._put(name, node)
        return node

    def _remove(self, name: str) -> None:
        with self._recording():
            self.catalog.remove(self._number, name)
        _forget(self._entries.pop(name))

    @contextlib.contextmanager
    def _recording(self, *others: UploadDirectory) -> Iterator[None]:
        """Change entries here, and in others, with the times that go with it."""
        directories = dict.fromkeys((self, *others))
        with self.catalog.change():
            yield
            for directory in directories:
                directory.metadata.changed(content=True)
                self.catalog.set_metadata(directory._number, directory.metadata)

    def _owned(self, metadata: Metadata) -> Metadata:
        """Let a new entry take the directory's group, where its mode says so."""
        if self.metadata.mode & stat.S_ISGID:
            metadata.gid = self.metadata.gid
        return metadata


UploadNode = UploadDirectory | UploadFile | UploadSymlink


def _forget(node: UploadNode) -> None:
    """Note that a node has no name any more."""
    node.place = node.number = None
    if isinstance(node, UploadFile):
        node.removed()
    else:
        node.links = 0


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
