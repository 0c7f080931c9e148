"""upload/: its directories; closed files are stored, and the next mount lists them again.

The catalog has the entries. A node is in memory until the kernel forgets it, while it
is open, or until it is stored; it takes precedence over the catalog's version of its
name. The catalog is changed first, then memory, without an await in between.

For the trio thread only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from typing import TYPE_CHECKING, TypeVar

from keepfs.fs.errnos import RefusedError
from keepfs.fs.metadata_changes import changed_metadata
from keepfs.fs.nodes import (
    Changes,
    DirectoryNode,
    FileNode,
    Metadata,
    Node,
    RenameMode,
    SymlinkNode,
)
from keepfs.fs.upload.catalog import ROOT
from keepfs.fs.upload.file import UploadFile
from keepfs.fs.upload.place import Place
from keepfs.fs.upload.symlink import UploadSymlink

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from keepfs.fs.upload.catalog import Catalog
    from keepfs.fs.upload.entries import Entry
    from keepfs.fs.upload.failed import FailedFiles
    from keepfs.fs.upload.place import OnStored
    from keepfs.fs.upload.staging import Staging
    from keepfs.fs.upload.stored import StoredBytes

_NodeT = TypeVar("_NodeT", bound="UploadNode")

#: Longest name, in bytes, as in local file systems.
MAX_NAME = 255
#: Names that a listing reads from the catalog at a time: a few tenths of a millisecond.
_CHUNK = 500
#: A number that the catalog never assigns.
_NOWHERE = -2


class UploadDirectory(DirectoryNode):
    """A directory of upload/, and upload/ itself.

    Args:
        metadata: Its mode, owner and times.
        staging: Holds the bytes of its files until they are stored.
        on_stored: Called with a block's receipt and its file's metadata, if either is new.
        catalog: The persistent entries.
        number: This directory's number in the catalog.
    """

    __slots__ = ("_nodes", "_staging", "catalog", "number", "on_stored", "place", "unrecorded")

    def __init__(
        self,
        metadata: Metadata,
        staging: Staging,
        on_stored: OnStored,
        catalog: Catalog,
        number: int = ROOT,
    ) -> None:
        super().__init__(metadata)
        self._staging = staging
        self.on_stored = on_stored
        self.catalog = catalog
        self.number: int | None = number
        self.place: Place | None = None
        self.unrecorded: dict[str, None] = {}
        #: The entries in memory: those not in the catalog, and those in use.
        self._nodes: dict[str, UploadNode] = {}

    @classmethod
    def mounted(
        cls, metadata: Metadata, staging: Staging, on_stored: OnStored, catalog: Catalog
    ) -> UploadDirectory:
        """Make upload/ itself from the catalog; `metadata` is used if the catalog has none."""
        known = catalog.root()
        if known is None:
            with catalog.change():
                catalog.add_root(metadata)
        return cls(known or metadata, staging, on_stored, catalog)

    @property
    def mount_path(self) -> str:
        """The path from the mount's root. For any thread."""
        place = self.place
        return "upload" if place is None else f"upload/{place.path}"

    def lookup_nowait(self, name: str) -> Node:
        """Find an entry.

        Raises:
            RefusedError: ENOENT, no entry has this name; ENAMETOOLONG.
        """
        _check_length(name)
        return self._entry(name)

    async def lookup(self, name: str) -> Node:
        """Find an entry, as `lookup_nowait`."""
        return self.lookup_nowait(name)

    def names(self) -> Iterator[str]:
        """Iterate over the names of all entries, in byte order.

        An entry that exists during the whole iteration is returned once, even if it is
        stored meanwhile.
        """
        after = b""
        while True:
            chunk = self.catalog.names(self._number, after, _CHUNK)
            last = chunk[-1] if len(chunk) == _CHUNK else None
            others = map(os.fsencode, self.unrecorded)
            here = {name for name in others if name > after and (last is None or name <= last)}
            yield from map(os.fsdecode, sorted(here.union(chunk)))
            if last is None:
                return
            after = last

    def entry_nowait(self, name: str) -> UploadNode | None:
        """Return an entry, from memory or from the catalog, or None."""
        node = self._nodes.get(name)
        if node is None:
            entry = self.catalog.child(self._number, name)
            if entry is not None:
                node = self._node(entry)
                self._put(name, node)
        return node

    def forgotten(self) -> None:
        """Drop the node from memory, unless it has entries in memory."""
        if self.place is not None and not self._nodes:
            self.place.leave()

    def let_go(self, name: str) -> bool:
        """Drop an entry from memory; return whether this directory can be dropped too."""
        self._nodes.pop(name, None)
        return not self._nodes and not self.lookups

    def files(self) -> Iterator[UploadFile]:
        """Iterate over the files of the tree that are in memory, all unstored ones included."""
        directories = [self]  # not recursive: a tree may be deeper than the recursion limit
        while directories:
            for node in list(directories.pop()._nodes.values()):
                if isinstance(node, UploadFile):
                    yield node
                elif isinstance(node, UploadDirectory):
                    directories.append(node)

    async def change(self, changes: Changes) -> None:
        """Apply a setattr."""
        metadata = changed_metadata(self.metadata, changes)
        with self.catalog.change():
            self.catalog.set_metadata(self._number, metadata)
        self.metadata = metadata

    async def sync(self) -> None:
        """Sync the catalog: the current entries survive a power cut."""
        await self._staging.blocks.run(self.catalog.sync)

    def create(self, name: str, metadata: Metadata) -> FileNode:
        """Create an empty file; it is added to the catalog when it is stored."""
        file = UploadFile(self._owned(metadata), self._staging, self.on_stored)
        return self._add(name, file)

    def add_stored(self, files: Mapping[str, tuple[Metadata, StoredBytes]]) -> None:
        """Add files whose bytes are stored already: all of them, or none.

        Args:
            files: By name: the metadata, whose owner and group are set to this directory's,
                and where the bytes are.

        Raises:
            RefusedError: EEXIST, ENAMETOOLONG, or ENOENT if this directory was removed.
            OSError: The catalog couldn't be written.
        """
        if not self.links:
            raise RefusedError(errno.ENOENT)
        for name, (metadata, _) in files.items():
            _check_length(name)
            if self.entry_nowait(name) is not None:
                raise RefusedError(errno.EEXIST)
            metadata.uid, metadata.gid = self.metadata.uid, self.metadata.gid
        with self._recording():
            for name, (metadata, stored) in files.items():
                self.catalog.add_file(self._number, name, metadata, stored)
        for metadata, stored in files.values():
            for receipt in stored.whole_blocks():
                self.on_stored(receipt, metadata)

    def mkdir(self, name: str, metadata: Metadata) -> DirectoryNode:
        """Create an empty directory."""
        metadata.mode |= self.metadata.mode & stat.S_ISGID
        return self._add(name, self._directory(self._owned(metadata), _NOWHERE))

    def symlink(self, name: str, target: bytes, metadata: Metadata) -> SymlinkNode:
        """Create a symbolic link."""
        return self._add(name, UploadSymlink(self._owned(metadata), target))

    def link(self, name: str, node: Node) -> None:  # noqa: ARG002 - not needed
        """Refuse a hard link: a file has one name.

        Raises:
            RefusedError: EPERM, as on other file systems without hard links.
        """
        raise RefusedError(errno.EPERM)

    def unlink(self, name: str) -> None:
        """Remove a file or symlink; an open file remains usable until it is closed.

        Raises:
            RefusedError: ENOENT; EISDIR.
        """
        if isinstance(self._entry(name), DirectoryNode):
            raise RefusedError(errno.EISDIR)
        self._remove(name)

    def rmdir(self, name: str) -> None:
        """Remove an empty directory.

        Raises:
            RefusedError: ENOENT; ENOTDIR; ENOTEMPTY.
        """
        node = self._entry(name)
        if not isinstance(node, UploadDirectory):
            raise RefusedError(errno.ENOTDIR)
        if not node._is_empty:
            raise RefusedError(errno.ENOTEMPTY)
        self._remove(name)

    def rename(self, name: str, target: DirectoryNode, new_name: str, mode: RenameMode) -> None:
        """Move an entry atomically; `mode` defines what happens to an existing one.

        If an unstored file replaces a stored one, the catalog keeps the stored one until
        the new file is stored.

        Raises:
            RefusedError: EROFS, the target is outside upload/; EEXIST, ENOENT, EISDIR,
                ENOTDIR, ENOTEMPTY as in rename(2).
        """
        if not isinstance(target, UploadDirectory):
            raise RefusedError(errno.EROFS)
        _check_length(new_name)
        node, replaced = self._entry(name), target.entry_nowait(new_name)
        if mode is RenameMode.EXCHANGE:
            if replaced is None:
                raise RefusedError(errno.ENOENT)
            with target._recording(self, moved=(node, replaced)):
                self._move_in_catalog(node, replaced, target, name, new_name)
            self._put(name, replaced)
            target._put(new_name, node)
            _note_moved(self._staging.failed, node, replaced)
        elif replaced is not node:
            if replaced is not None:
                if mode is RenameMode.NO_REPLACE:
                    raise RefusedError(errno.EEXIST)
                _check_replaceable(node, replaced)
                _prepare_to_forget(replaced)
            with target._recording(self, moved=(node,)):
                self._note_forgotten(replaced)
                if node.number is None:
                    self.catalog.remove(self._number, name)
                else:
                    self.catalog.move(node.number, target._number, new_name)
            self._take(name)
            if replaced is not None:
                _forget(replaced)
            target._put(new_name, node)
            _note_moved(self._staging.failed, node)

    def _move_in_catalog(
        self,
        node: UploadNode,
        other: UploadNode,
        target: UploadDirectory,
        name: str,
        new_name: str,
    ) -> None:
        """Exchange two entries; a file that isn't stored yet has no entry."""
        if node.number is not None and other.number is not None:
            self.catalog.exchange(node.number, other.number)
        elif node.number is not None:
            self.catalog.move(node.number, target._number, new_name)
        elif other.number is not None:
            self.catalog.move(other.number, self._number, name)

    @property
    def _number(self) -> int:
        """The number in the catalog; after a removal one that the catalog never assigns."""
        return _NOWHERE if self.number is None else self.number

    @property
    def _is_empty(self) -> bool:
        return not self._nodes and not self.catalog.has_children(self._number)

    def _node(self, entry: Entry) -> UploadNode:
        """Return a new node for an entry of the catalog."""
        node: UploadNode
        if stat.S_ISDIR(entry.metadata.mode):
            return self._directory(entry.metadata, entry.number)
        if stat.S_ISLNK(entry.metadata.mode):
            node = UploadSymlink(entry.metadata, self.catalog.target(entry.number))
        else:
            node = UploadFile(entry.metadata, self._staging, self.on_stored)
            node.take_version(entry.size)
        node.number = entry.number
        return node

    def _directory(self, metadata: Metadata, number: int) -> UploadDirectory:
        return UploadDirectory(metadata, self._staging, self.on_stored, self.catalog, number)

    def _entry(self, name: str) -> UploadNode:
        node = self.entry_nowait(name)
        if node is None:
            raise RefusedError(errno.ENOENT)
        return node

    def _put(self, name: str, node: UploadNode) -> None:
        """Put a node into memory, in place of another of this name."""
        self._nodes[name] = node
        node.place = Place(self, name)
        if node.number is None:
            self.unrecorded[name] = None
        else:
            self.unrecorded.pop(name, None)

    def _take(self, name: str) -> UploadNode:
        """Remove a node from memory and return it."""
        self.unrecorded.pop(name, None)
        return self._nodes.pop(name)

    def _add(self, name: str, node: _NodeT) -> _NodeT:
        _check_length(name)
        if self.entry_nowait(name) is not None:
            raise RefusedError(errno.EEXIST)
        if not self.links:
            raise RefusedError(errno.ENOENT)
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
        node = self._entry(name)
        _prepare_to_forget(node)
        with self._recording():
            self._note_forgotten(node)
            self.catalog.remove(self._number, name)
        _forget(self._take(name))

    def _note_forgotten(self, node: UploadNode | None) -> None:
        """Mark the spill record of a removed file as obsolete in the catalog."""
        if isinstance(node, UploadFile) and node.spilled is not None:
            self.catalog.mark_obsolete(node.spilled.name)

    @contextlib.contextmanager
    def _recording(
        self, *others: UploadDirectory, moved: Sequence[UploadNode] = ()
    ) -> Iterator[None]:
        """Run the body in a transaction of the catalog; update the times of the changed nodes."""
        with self.catalog.change():
            yield
            times = []
            for node in (*moved, *dict.fromkeys((self, *others))):
                metadata = dataclasses.replace(node.metadata)
                metadata.changed(content=node not in moved)
                if node.number is not None:
                    self.catalog.set_metadata(node.number, metadata)
                times.append((node, metadata))
        for node, metadata in times:
            node.metadata = metadata

    def _owned(self, metadata: Metadata) -> Metadata:
        """Give a new entry the directory's group if the directory has the setgid bit."""
        if self.metadata.mode & stat.S_ISGID:
            metadata.gid = self.metadata.gid
        return metadata


UploadNode = UploadDirectory | UploadFile | UploadSymlink


def _prepare_to_forget(node: UploadNode) -> None:
    """Load a file's version before its entry is removed from the catalog: it may be open."""
    if isinstance(node, UploadFile):
        with contextlib.suppress(OSError):  # the blocks of a damaged entry are unknown
            node.load()


def _forget(node: UploadNode) -> None:
    """Update a node that has lost its name."""
    node.place = node.number = None
    if isinstance(node, UploadFile):
        node.removed()
    else:
        node.links = 0


def _note_moved(failed: FailedFiles, *nodes: UploadNode) -> None:
    for node in nodes:
        failed.moved(node, is_directory=isinstance(node, UploadDirectory))


def _check_length(name: str) -> None:
    if len(os.fsencode(name)) > MAX_NAME:
        raise RefusedError(errno.ENAMETOOLONG)


def _check_replaceable(node: Node, replaced: Node) -> None:
    if isinstance(node, UploadDirectory):
        if not isinstance(replaced, UploadDirectory):
            raise RefusedError(errno.ENOTDIR)
        if not replaced._is_empty:
            raise RefusedError(errno.ENOTEMPTY)
    elif isinstance(replaced, DirectoryNode):
        raise RefusedError(errno.EISDIR)
