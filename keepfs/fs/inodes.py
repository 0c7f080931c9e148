"""Tables of the numbers that the kernel uses: inodes with lookup counts, and open handles.

Numbers are never reused, so a late request can't reach a newer file. For the trio thread only,
except that any thread may read an entry by its number: that is one operation of a dictionary.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import ROOT_INODE, DirectoryNode
from keepfs.fs.requests import Overdue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.fs.nodes import Caller, FileNode, Node

_HandleT = TypeVar("_HandleT")


class InodeTable:
    """The nodes that the kernel has looked up, by inode number.

    Invariant: a node is in the table from its first `remember` until `forget` has
    subtracted every lookup; the root is always in it.

    Args:
        root: The mount's root directory.
    """

    def __init__(self, root: Node) -> None:
        self._nodes: dict[int, Node] = {root.inode: root}

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, inode: int) -> Node:
        """Return the node with this inode number.

        Raises:
            RefusedError: ESTALE, the kernel has forgotten the number.
        """
        try:
            return self._nodes[inode]
        except KeyError:
            raise RefusedError(errno.ESTALE) from None

    def directory(self, inode: int) -> DirectoryNode:
        """Return the directory with this inode number.

        Raises:
            RefusedError: ESTALE, the kernel has forgotten the number; ENOTDIR.
        """
        node = self[inode]
        if not isinstance(node, DirectoryNode):
            raise RefusedError(errno.ENOTDIR)
        return node

    def remember(self, node: Node) -> None:
        """Count one lookup: a reply is about to pass the node to the kernel."""
        if node.inode == ROOT_INODE:
            return
        if not node.lookups:
            self._nodes[node.inode] = node
            node.remembered()
        node.lookups += 1

    def forget(self, inode: int, lookups: int) -> None:
        """Subtract lookups. Never raises: an exception here would end the mount."""
        node = self._nodes.get(inode)
        if node is None or inode == ROOT_INODE:
            return
        node.lookups = max(0, node.lookups - lookups)
        if not node.lookups:
            del self._nodes[inode]
            node.forgotten()


class HandleTable(Generic[_HandleT]):
    """Open handles, by the number that the kernel uses for them."""

    def __init__(self) -> None:
        self._open: dict[int, _HandleT] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, handle: _HandleT) -> int:
        """Add a handle and return its number."""
        number = next(self._numbers)
        self._open[number] = handle
        return number

    def __getitem__(self, number: int) -> _HandleT:
        """Return an open handle.

        Raises:
            RefusedError: EBADF, no handle has this number.
        """
        try:
            return self._open[number]
        except KeyError:
            raise RefusedError(errno.EBADF) from None

    def remove(self, number: int) -> _HandleT:
        """Close a handle and return it.

        Raises:
            RefusedError: EBADF, no handle has this number.
        """
        handle = self[number]
        del self._open[number]
        return handle


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file.

    Attributes:
        node: The file.
        pid: The process that opened it.
        stores: Whether its close waits until the file is stored. False for readers: their close
            doesn't report failures of another process's writes.
        overdue: Its reads that exceeded their deadline.
    """

    node: FileNode
    pid: int
    stores: bool
    overdue: Overdue = field(default_factory=Overdue)


@dataclass(slots=True)
class Listing:
    """An open directory.

    Attributes:
        node: The directory.
        caller: The user that reads it.
        names: All names, or those read so far, since a reader may return to any of them.
        rest: The names that follow; None if `names` has all.
    """

    node: DirectoryNode
    caller: Caller
    names: Sequence[str] = ()
    rest: Iterator[str] | None = None

    @classmethod
    async def of(cls, node: DirectoryNode, caller: Caller) -> Listing:
        """Open a directory once it may be listed."""
        caller.note_groups()
        await node.prepare_listing()
        return cls(node, caller)

    def begin(self) -> None:
        """Begin at the first name."""
        names = self.node.names()
        if isinstance(names, Sequence):
            self.names, self.rest = names, None
        else:
            self.names, self.rest = [], iter(names)

    def entries(self, begin: int, most: int) -> Iterator[tuple[int, str, Node]]:
        """Iterate over entries that the caller may see: the next one's number, name and node.

        Args:
            begin: The number of the first name to check.
            most: The number of names to check; more are checked until one is listed.
        """
        number, is_listed = begin, False
        while number - begin < most or not is_listed:
            name = self.name(number)
            if name is None:
                return
            number += 1
            node = self.node.entry_nowait(name)
            if node is not None and node.is_listed_for(self.caller):  # None: removed meanwhile
                yield number, name, node
                is_listed = True

    def name(self, number: int) -> str | None:
        """Return the name with this number, counted from 0, or None after the last."""
        if self.rest is not None and isinstance(self.names, list):
            missing = number + 1 - len(self.names)
            self.names.extend(itertools.islice(self.rest, max(missing, 0)))
        return self.names[number] if number < len(self.names) else None
