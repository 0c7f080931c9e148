"""What the kernel's numbers mean: inodes with their lookup counts, and open handles.

Numbers are never used twice, so a late request can't reach a newer file.
For the trio thread only.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import ROOT_INODE
from keepfs.fs.requests import Overdue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.fs.nodes import Caller, DirectoryNode, FileNode, Node

_HandleT = TypeVar("_HandleT")


class InodeTable:
    """The nodes the kernel knows, by their number.

    Invariant: a node is here from the first `remember` until `forget` has
    returned every lookup; the root always.

    Args:
        root: The mount's root directory.
    """

    def __init__(self, root: Node) -> None:
        self._nodes: dict[int, Node] = {root.inode: root}

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, inode: int) -> Node:
        """Return the node of a number the kernel has looked up.

        Raises:
            RefusedError: ESTALE, the kernel doesn't know the number any more.
        """
        try:
            return self._nodes[inode]
        except KeyError:
            raise RefusedError(errno.ESTALE) from None

    def remember(self, node: Node) -> None:
        """Count one lookup: the kernel is being told of the node."""
        if node.inode != ROOT_INODE:
            self._nodes[node.inode] = node
            node.lookups += 1

    def forget(self, inode: int, lookups: int) -> None:
        """Take lookups back. Never raises: an exception here would end the mount."""
        node = self._nodes.get(inode)
        if node is None or inode == ROOT_INODE:
            return
        node.lookups = max(0, node.lookups - lookups)
        if not node.lookups:
            del self._nodes[inode]
            node.forgotten()


class HandleTable(Generic[_HandleT]):
    """Open files, by the number the kernel knows them by."""

    def __init__(self) -> None:
        self._open: dict[int, _HandleT] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, handle: _HandleT) -> int:
        """Give a new handle its number."""
        number = next(self._numbers)
        self._open[number] = handle
        return number

    def __getitem__(self, number: int) -> _HandleT:
        """Return an open handle.

        Raises:
            RefusedError: EBADF, there is none of that number.
        """
        try:
            return self._open[number]
        except KeyError:
            raise RefusedError(errno.EBADF) from None

    def remove(self, number: int) -> _HandleT:
        """Close a handle and return it.

        Raises:
            RefusedError: EBADF, there is none of that number.
        """
        handle = self[number]
        del self._open[number]
        return handle


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that is open.

    Attributes:
        node: The file.
        pid: Who opened it.
        stores: Whether its close waits for the store. Not of those who only read: they aren't
            told what became of another's bytes.
        overdue: Its reads that have been given up.
    """

    node: FileNode
    pid: int
    stores: bool
    overdue: Overdue = field(default_factory=Overdue)


@dataclass(slots=True)
class Listing:
    """A directory that is being read.

    Attributes:
        node: The directory.
        caller: Who reads it.
        names: All of them, or those gone through so far: a reader may go back to any.
        rest: Those that follow; None where `names` has all.
    """

    node: DirectoryNode
    caller: Caller
    names: Sequence[str] = ()
    rest: Iterator[str] | None = None

    @classmethod
    async def of(cls, node: DirectoryNode, caller: Caller) -> Listing:
        """Open a directory once it may be listed."""
        await node.prepare_listing()
        return cls(node, caller)

    def begin(self) -> None:
        """Begin at the first name."""
        names = self.node.names()
        if isinstance(names, Sequence):
            self.names, self.rest = names, None
        else:
            self.names, self.rest = [], iter(names)

    def name(self, number: int) -> str | None:
        """Return the name of that number, counted from 0, or None after the last."""
        if self.rest is not None and isinstance(self.names, list):
            missing = number + 1 - len(self.names)
            self.names.extend(itertools.islice(self.rest, max(missing, 0)))
        return self.names[number] if number < len(self.names) else None
