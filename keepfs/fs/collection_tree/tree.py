"""The nodes of a collection: made by a lookup or listing, freed when the kernel forgets them.

A folder has a path in the collection, and looks its entries up in the current content. A file
keeps its ranges: if the collection changes, an open file stays readable. The name then gets
another node, with another inode number, unless the bytes are the same.

For the trio thread only.
"""

from __future__ import annotations

import errno
import functools
import os
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, overload

from keepfs.collections.manifest import Directory
from keepfs.fs.collection_tree.loaded import MAX_XATTR
from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import Attributes, DirectoryNode, FileNode, Node
from keepfs.fs.reading import SLACK, BlockReader
from keepfs.keep.errors import Cause, KeepReadError
from keepfs.keep.locator import KeepLocator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from keepfs.collections.manifest import File
    from keepfs.fs.collection_tree.live import LiveCollection
    from keepfs.fs.collection_tree.loaded import LoadedCollection
    from keepfs.fs.nodes import Caller

#: The longest name that every kernel accepts, in bytes: FUSE_NAME_MAX of older ones. A longer
#: name would make the listing of its folder fail.
_MAX_NAME = 1024

_located = functools.lru_cache(4096)(KeepLocator)


class CollectionFile(FileNode):
    """A file of a collection.

    Args:
        folder: The folder that it is in.
        content: The contents of the collection when the file was found.
        file: The file in it.
    """

    __slots__ = ("_content", "_file", "_folder", "_read_to", "_reader", "_run", "_starts")

    def __init__(self, folder: CollectionFolder, content: LoadedCollection, file: File) -> None:
        super().__init__(content.file_metadata)
        self._folder = folder
        self._content = content
        self._file = file
        self._reader: BlockReader | None = None
        self._starts: Sequence[int] = ()
        # The end of what was read in order from the start of the file on.
        self._read_to = 0
        # The bytes of the files read in succession before this one.
        self._run = 0

    @property
    def path(self) -> str:
        """The path below collections/, for the log."""
        return f"{self._folder.live.name}/{self._file.path}"

    @property
    def mount_path(self) -> str:
        """The path from the mount's root, where all collections are mounted."""
        return f"collections/{self.path}"

    @property
    def size(self) -> int:
        """The size in bytes, from the manifest."""
        return self._file.size

    def follow(self, content: LoadedCollection, file: File) -> bool:
        """Take over a newer content if its bytes are the same; return whether they are."""
        if content is not self._content:
            if self.size != file.size or not _has_same_bytes(self._file, file):
                return False
            self._content, self._file = content, file
        return True

    def remembered(self) -> None:
        """Stay the node of this name until the kernel forgets it."""
        self._folder.add_child(self._file.name, self)

    def forgotten(self) -> None:
        """Let the next lookup of the name make another node."""
        self._folder.remove_child(self._file.name, self)

    def attributes(self) -> Attributes:
        """Return the attributes for `stat`; valid until the collection is due for a refresh."""
        self.metadata = self._content.file_metadata
        return Attributes(self.inode, self.metadata, self.size, 1, self._folder.live.validity())

    def xattrs(self) -> Mapping[str, str]:
        """Return `user.keep.…`: those of the collection, and the locators if they fit (64 KiB)."""
        found = {"user.keep.state": "stored", **self._content.xattrs()}
        locators: dict[str, None] = {}
        length = -1
        for each in self._content.manifest.counterpart(self._file).ranges():
            if each.locator not in locators:
                locators[each.locator] = None
                length += len(each.locator) + 1
                if length > MAX_XATTR:
                    return found
        if locators:
            found["user.keep.locator"] = ",".join(locators)
            expiries = [it.perm_expiry for it in map(_located, locators) if it.perm_expiry]
            if expiries:
                found["user.keep.expires"] = min(expiries).isoformat()
        return found

    def read_nowait(self, offset: int, size: int) -> memoryview | None:
        """Return what `read` would, if it is of one range of a block in memory; else None."""
        self._content.renew_if_due()
        reader, number = self._reader_at(offset)
        self._note(reader, offset, size)
        pieces = self._file.ranges(offset, size)
        piece = next(pieces, None)
        if piece is None or next(pieces, None) is not None:
            return None
        locator = _located(piece.locator)
        return reader.read_nowait(
            number, locator, locator.size or 0, piece.offset, piece.offset + piece.length
        )

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return the bytes from `offset` on, `size` at most, from verified blocks.

        If a service refuses a signature, new ones are fetched and the read is repeated, once.
        """
        content = self._content
        content.renew_if_due()
        manifest = content.manifest
        try:
            return await self._read(offset, size)
        except KeepReadError as error:
            if error.cause is not Cause.DENIED or not await content.renewed(manifest):
                raise
        return await self._read(offset, size)

    async def _read(self, offset: int, size: int) -> bytes | memoryview:
        reader, number = self._reader_at(offset)
        pieces = []
        for at, piece in enumerate(self._file.ranges(offset, size), number):
            locator = _located(piece.locator)
            pieces.append(
                await reader.read(
                    at, locator, locator.size or 0, piece.offset, piece.offset + piece.length
                )
            )
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _reader_at(self, offset: int) -> tuple[BlockReader, int]:
        """Return the reader of the file's current ranges, and the number of the range there."""
        if self._reader is None:
            self._starts = _starts(self._file)
            self._reader = BlockReader(self._folder.live.blocks, self._locator_at)
        self._file = self._content.manifest.counterpart(self._file)
        return self._reader, bisect_right(self._starts, offset) - 1

    def _note(self, reader: BlockReader, offset: int, size: int) -> None:
        """Record a read of a file that may be read in succession with others."""
        succession = self._content.succession
        if offset == 0:
            self._read_to = 0
            self._run = succession.length(self._file.extent()[0])
            if self._run:
                reader.fetch_ahead_again()
        if offset <= self._read_to + SLACK:
            self._read_to = max(self._read_to, offset + size)
            if self._read_to >= self.size > 0:
                succession.extend(*self._file.extent())

    def _locator_at(self, number: int) -> KeepLocator | None:
        if number < len(self._starts):
            return _located(next(self._file.ranges(self._starts[number], 1)).locator)
        return self._block_beyond(number - len(self._starts))

    def _block_beyond(self, count: int) -> KeepLocator | None:
        """Return a block after those of the file, if files are read in succession.

        The blocks up to it have at most as many bytes as the files that were read before: so
        no more is fetched in vain than was read.
        """
        left = self._run
        for at, text in enumerate(self._file.next_blocks() if left else ()):
            locator = _located(text)
            left -= locator.size or 0
            if left < 0:
                return None
            if at == count:
                return locator
        return None


class CollectionFolder(DirectoryNode):
    """A folder of a collection.

    Args:
        live: The collection, loaded.
        path: The path of the folder in the collection; empty for its root.
        above: The folder that it is in; None for the root.
        inode: Its inode number; None for a new one.
    """

    __slots__ = ("_above", "_children", "_content", "_directory", "_listed", "_path", "live")

    def __init__(
        self,
        live: LiveCollection,
        path: str = "",
        above: CollectionFolder | None = None,
        inode: int | None = None,
    ) -> None:
        content = _content_of(live)
        super().__init__(content.folder_metadata, inode)
        self.live = live
        self._path = path
        self._above = above
        self._content: LoadedCollection | None = None
        self._directory: Directory | None = None
        self._listed: _EntryNames | None = None
        #: The nodes that the kernel has looked up, by name.
        self._children: dict[str, Node] = {}

    @property
    def mount_path(self) -> str:
        """The path from the mount's root, where all collections are mounted."""
        return f"collections/{self.live.name}/{self._path}".rstrip("/")

    @property
    def not_found_timeout(self) -> float:
        """Seconds for which the kernel may cache that a name wasn't found."""
        return self.live.validity().entry

    def attributes(self) -> Attributes:
        """Return the attributes for `stat`; valid until the collection is due for a refresh."""
        self.metadata = _content_of(self.live).folder_metadata
        return Attributes(self.inode, self.metadata, 0, 1, self.live.validity())

    def xattrs(self) -> Mapping[str, str]:
        """Return `user.keep.…` of the collection."""
        return _content_of(self.live).xattrs()

    def remembered(self) -> None:
        """Stay the node of this name until the kernel forgets it."""
        if self._above is not None:
            self._above.add_child(self._path.rpartition("/")[2], self)

    def forgotten(self) -> None:
        """Let the next lookup of the name make another node."""
        if self._above is not None:
            self._above.remove_child(self._path.rpartition("/")[2], self)

    def add_child(self, name: str, node: Node) -> None:
        """Return this node for a name from now on."""
        self._children[name] = node

    def remove_child(self, name: str, node: Node) -> None:
        """End `add_child`, unless the name has another node meanwhile."""
        if self._children.get(name) is node:
            del self._children[name]
            if not self._children:
                self._children = {}  # an empty dictionary keeps its memory

    async def prepare_listing(self) -> None:
        """Return when the content of the collection is current."""
        await self.live.check()

    def lookup_nowait(self, name: str) -> Node | None:
        """Find an entry if the content is current; else return None.

        Raises:
            RefusedError: ENOENT, no entry has this name.
        """
        return self._found(name) if self.live.check_nowait() else None

    async def lookup(self, name: str) -> Node:
        """Find an entry.

        Raises:
            RefusedError: ENOENT, no entry has this name.
            KeepRequestError: The collection was removed, or access to it was denied.
        """
        await self.live.check()
        return self._found(name)

    def _found(self, name: str) -> Node:
        node = self.entry_nowait(name)
        if node is None:
            raise RefusedError(errno.ENOENT)
        return node

    def names(self) -> Iterable[str]:
        """Return the names of the entries, as they are now."""
        directory = self._now()
        self._listed = None if directory is None else _EntryNames(directory)
        return () if self._listed is None else self._listed

    def entry_nowait(self, name: str) -> Node | None:
        """Return an entry, or None."""
        directory = self._now()
        listed = self._listed
        entry: Directory | File | None
        if listed is not None and listed.directory is directory and name == listed.last_name:
            entry = listed.last  # a listing looks up the name that it just got
        else:
            entry = None if directory is None else directory.lookup(name)
        content = self._content
        if entry is None or content is None or len(os.fsencode(name)) > _MAX_NAME:
            return None
        known = self._children.get(name)
        if isinstance(entry, Directory):
            if isinstance(known, CollectionFolder):
                return known
            return CollectionFolder(
                self.live, f"{self._path}/{name}" if self._path else name, self
            )
        if isinstance(known, CollectionFile) and known.follow(content, entry):
            return known
        return CollectionFile(self, content, entry)

    def _now(self) -> Directory | None:
        """Return the folder in the current content; None if it no longer exists."""
        content = _content_of(self.live)
        if content is not self._content:
            entry = content.manifest.lookup(self._path)
            self._directory = entry if isinstance(entry, Directory) else None
            self._content = content
        return self._directory


class CollectionRoot(CollectionFolder):
    """The root folder of a collection in collections/, with the users that have looked it up."""

    __slots__ = ("__weakref__", "_finders")

    def __init__(self, live: LiveCollection) -> None:
        super().__init__(live)
        self._finders: set[int] = set()

    def found_by(self, caller: Caller) -> None:
        """Record that a user looked it up."""
        self._finders.add(caller.uid)

    def is_listed_for(self, caller: Caller) -> bool:
        """Return whether the user has looked it up; True for root."""
        return caller.uid == 0 or caller.uid in self._finders


class _EntryNames(Sequence[str]):
    """The names of a folder's entries, by number; each is made on its first use."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        #: The entry whose name was returned last.
        self.last: Directory | File | None = None
        self.last_name: str | None = None

    def __len__(self) -> int:
        return len(self.directory)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        self.last = self.directory.entry(index)
        self.last_name = self.last.name
        return self.last_name

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in self.directory.entries())


def _content_of(live: LiveCollection) -> LoadedCollection:
    content = live.content
    if content is None:
        raise RefusedError(errno.EIO)  # can't happen: nodes are made from loaded content
    return content


def _starts(file: File) -> Sequence[int]:
    """Return the offset in the file at which each range starts."""
    starts, end = array("Q"), 0
    for each in file.ranges():
        starts.append(end)
        end += each.length
    return starts


def _has_same_bytes(old: File, new: File) -> bool:
    """Return whether two files have the same ranges of the same blocks; hints may differ."""
    return all(
        one is not None
        and other is not None
        and one[1:] == other[1:]
        and _located(one.locator).stripped() == _located(other.locator).stripped()
        for one, other in zip_longest(old.ranges(), new.ranges())
    )
