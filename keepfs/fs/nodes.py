"""Nodes: the interface of files, directories and symlinks.

`keepfs.fs.operations` calls nodes; a node refers to neither requests nor handles.
Operations that a node doesn't override raise RefusedError with EROFS.
For the trio thread only.
"""

from __future__ import annotations

import abc
import enum
import errno
import functools
import itertools
import os
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from keepfs.fs.errnos import RefusedError
from keepfs.fs.processes import supplementary_groups

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Buffer

#: Seconds for which the kernel may cache data that can't change without its knowledge:
#: blocks never change, and upload/ changes through the kernel only.
ENDLESS = 365 * 24 * 3600.0
#: The st_blksize of all nodes: cp and others use it as the size of their writes
#: (1.7 times as fast as with 4 KiB).
BLOCK_SIZE_HINT = 1024 * 1024

#: The times of nodes without times, in nanoseconds since 1970: 1980-01-01 UTC, the first time
#: that every archive format can hold. A time that changes would make the kernel drop its pages.
TIMELESS_NS = 315_532_800 * 10**9

#: The inode number of the mount's root, FUSE_ROOT_ID of the protocol.
ROOT_INODE = 1

_numbers = itertools.count(ROOT_INODE + 1)


def new_inode() -> int:
    """Return a number that no node of this process has had."""
    return next(_numbers)


#: Marks a time that isn't given: earlier than any that can be recorded.
_SAME = -(2**63) - 1


@dataclass(slots=True)
class Metadata:
    """Mode, owner and times of a node, as `stat` returns them.

    Attributes:
        mode: Type and permissions, as in st_mode.
        uid: Owner.
        gid: Group.
        atime_ns: Last access, in nanoseconds since 1970; only utimens sets it.
        mtime_ns: Last change of the content.
        ctime_ns: Last change of anything.
    """

    mode: int
    uid: int
    gid: int
    atime_ns: int = field(default_factory=time.time_ns)
    mtime_ns: int = _SAME
    ctime_ns: int = _SAME

    def __post_init__(self) -> None:
        if self.mtime_ns == _SAME:
            self.mtime_ns = self.atime_ns
        if self.ctime_ns == _SAME:
            self.ctime_ns = self.mtime_ns

    def changed(self, *, content: bool = False) -> None:
        """Set ctime to now, and mtime too if the content changed."""
        self.ctime_ns = time.time_ns()
        if content:
            self.mtime_ns = self.ctime_ns


@dataclass(frozen=True)
class Caller:
    """The process that made a request.

    Attributes:
        uid: Its user id.
        gid: Its group id.
        pid: Its process id.
    """

    uid: int
    gid: int
    pid: int

    @functools.cached_property
    def groups(self) -> frozenset[int]:
        """All its groups; only `gid` if /proc doesn't show its process."""
        return supplementary_groups(self.pid) | {self.gid}

    def note_groups(self) -> None:
        """Read its groups now, while it waits: its pid may be another process's later."""
        if self.uid:  # root needs none
            _ = self.groups

    def may_read(self, permissions: int, uid: int, gid: int) -> bool:
        """Return whether it may read a file with these permissions, owner and group."""
        if self.uid == 0:
            return True
        if self.uid == uid:
            return bool(permissions & 0o400)
        return bool(permissions & (0o040 if gid in self.groups else 0o004))


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes that a setattr requests; None leaves a field unchanged."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Ownership:
    """The owner and group of new nodes.

    Attributes:
        uid: Owner of every node; None for the creator's.
        gid: Group of every node; None for the creator's.
    """

    uid: int | None = None
    gid: int | None = None

    def of_new(self, kind: int, permissions: int, maker: Caller) -> Metadata:
        """Return the metadata of a node that `maker` creates."""
        return Metadata(
            kind | stat.S_IMODE(permissions),
            maker.uid if self.uid is None else self.uid,
            maker.gid if self.gid is None else self.gid,
        )


class Validity(NamedTuple):
    """How long the kernel may cache an answer, in seconds.

    Attributes:
        entry: The name's node.
        attributes: The node's attributes.
    """

    entry: float
    attributes: float


#: For data that can't change without the kernel's knowledge.
FOREVER = Validity(ENDLESS, ENDLESS)


class Attributes(NamedTuple):
    """The attributes of a node, for `stat`.

    Attributes:
        inode: Its inode number.
        metadata: Mode, owner and times.
        size: Its size, in bytes.
        links: The number of its names.
        validity: How long the kernel may cache them.
    """

    inode: int
    metadata: Metadata
    size: int
    links: int
    validity: Validity = FOREVER


class RenameMode(enum.Enum):
    """How a rename treats an existing new name, as in renameat2(2)."""

    REPLACE = enum.auto()
    NO_REPLACE = enum.auto()
    EXCHANGE = enum.auto()


class Node:
    """A file, directory or symlink.

    Args:
        metadata: Its mode, owner and times.

    Attributes:
        inode: Its number, unique in this process.
        links: 1, or 0 once no directory has an entry for it.
        lookups: The kernel's lookup count: replies with the node that weren't forgotten.
    """

    __slots__ = ("inode", "links", "lookups", "metadata")  # there may be very many

    def __init__(self, metadata: Metadata, inode: int | None = None) -> None:
        self.inode = new_inode() if inode is None else inode
        self.metadata = metadata
        self.links = 1
        self.lookups = 0

    @property
    def size(self) -> int:
        """The size of its content, in bytes."""
        return 0

    @property
    def mount_path(self) -> str:
        """The path from the mount's root, for people; empty for the root, or if unknown.

        Locators in it have no signatures. For any thread, because it is needed while the event
        loop is stuck: it reads each attribute once, and only immutable values.
        """
        return ""

    def path_of_entry(self, name: str) -> str:
        """Return the `mount_path` of an entry with this name, which need not exist."""
        above = self.mount_path
        return f"{above}/{name}" if above else name

    def attributes(self) -> Attributes:
        """Return the attributes, and how long the kernel may cache them."""
        return Attributes(self.inode, self.metadata, self.size, self.links)

    def xattrs(self) -> Mapping[str, str]:
        """Return its extended attributes, by name (`user.keep.…`)."""
        return {}

    def found_by(self, caller: Caller) -> None:
        """Record that the caller looked it up or opened it."""

    def is_listed_for(self, caller: Caller) -> bool:
        """Return whether a listing for the caller includes it."""
        return True

    def remembered(self) -> None:
        """Take note of the kernel's first lookup, of which `forgotten` is the end."""

    def forgotten(self) -> None:
        """Release resources after the kernel's last forget. Must not raise."""

    async def sync(self) -> None:
        """Wait until its stored content and its names survive a power cut."""

    async def change(self, changes: Changes) -> None:
        """Apply a setattr.

        Raises:
            RefusedError: EROFS, the node can't be changed.
        """
        raise RefusedError(errno.EROFS)


class FileNode(Node):
    """A regular file."""

    __slots__ = ()

    @property
    def path(self) -> str:
        """The path for the log, below upload/ or collections/; empty if it has none."""
        return ""

    @property
    def may_change(self) -> bool:
        """Whether its content may change."""
        return False

    def check_open(self, flags: int) -> None:
        """Raise RefusedError if the file can't be opened with these flags of open(2)."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise RefusedError(errno.EROFS)

    def opened(self) -> None:
        """Count one more open handle."""

    def closed(self) -> None:
        """Count one open handle less."""

    async def truncate(self, size: int) -> None:
        """Set the size, in bytes."""
        raise RefusedError(errno.EROFS)

    def read_nowait(self, offset: int, size: int) -> Buffer | None:
        """Return what `read` would, if the bytes are in memory; else None.

        It is called once for each request of the kernel, before `read`.
        """
        return None

    @abc.abstractmethod
    async def read(self, offset: int, size: int) -> Buffer:
        """Return the bytes from `offset` on: `size` of them, fewer only at the end of the file.

        A failure must raise, since fewer bytes mean the end of the file.
        """

    def write_nowait(self, offset: int, content: bytes) -> bool:
        """Write as `write` does, if that needs no wait; return whether it was done."""
        return False

    async def write(self, offset: int, content: bytes) -> None:
        """Write all bytes at `offset`."""
        raise RefusedError(errno.EROFS)

    @property
    def has_untried_changes(self) -> bool:
        """Whether there are changes that no finished attempt to store has covered."""
        return False

    async def store(self) -> None:
        """Wait until all bytes written so far are stored with the requested replicas.

        Raises:
            KeepWriteError: They couldn't be stored. They are kept; a later call retries.
        """

    def begin_store(self) -> object:
        """Start to store all bytes written so far; don't wait."""
        return None


class SymlinkNode(Node):
    """A symbolic link.

    Args:
        target: The path that it points to.
    """

    __slots__ = ("target",)

    def __init__(self, metadata: Metadata, target: bytes) -> None:
        super().__init__(metadata)
        self.target = target

    @property
    def size(self) -> int:
        """The length of the target, in bytes."""
        return len(self.target)


class DirectoryNode(Node):
    """A directory; read-only unless a subclass overrides the changes.

    A change raises RefusedError with the errno for the caller, or OSError if it can't be
    recorded. The link count is 1: by convention the number of subdirectories is unknown.
    """

    __slots__ = ()

    @property
    def not_found_timeout(self) -> float:
        """Seconds for which the kernel may cache that a name wasn't found."""
        return 0.0

    async def prepare_listing(self) -> None:
        """Return when the directory may be listed.

        Raises:
            RefusedError: It can't be.
        """

    def lookup_nowait(self, name: str) -> Node | None:
        """Find an entry as `lookup` does, if that needs no wait; else return None.

        Raises:
            RefusedError: ENOENT, no entry has this name.
        """
        return None

    @abc.abstractmethod
    async def lookup(self, name: str) -> Node:
        """Find an entry.

        Raises:
            RefusedError: ENOENT, no entry has this name.
        """

    @abc.abstractmethod
    def names(self) -> Iterable[str]:
        """Iterate over the names to list; entries may change meanwhile.

        An entry that exists during the whole iteration is returned once. A sequence that
        this returns is used by index, without a copy.
        """

    @abc.abstractmethod
    def entry_nowait(self, name: str) -> Node | None:
        """Return a listed entry, or None if it was removed meanwhile."""

    def create(self, name: str, metadata: Metadata) -> FileNode:
        """Create an empty file."""
        raise RefusedError(errno.EROFS)

    def mkdir(self, name: str, metadata: Metadata) -> DirectoryNode:
        """Create an empty directory."""
        raise RefusedError(errno.EROFS)

    def symlink(self, name: str, target: bytes, metadata: Metadata) -> SymlinkNode:
        """Create a symbolic link."""
        raise RefusedError(errno.EROFS)

    def link(self, name: str, node: Node) -> None:
        """Add a name to a node."""
        raise RefusedError(errno.EROFS)

    def unlink(self, name: str) -> None:
        """Remove a file or symlink."""
        raise RefusedError(errno.EROFS)

    def rmdir(self, name: str) -> None:
        """Remove an empty directory."""
        raise RefusedError(errno.EROFS)

    def rename(self, name: str, target: DirectoryNode, new_name: str, mode: RenameMode) -> None:
        """Move an entry; `mode` defines what happens to an existing one."""
        raise RefusedError(errno.EROFS)


def directory_mode(permissions: int) -> int:
    """Return the st_mode of a directory."""
    return stat.S_IFDIR | permissions


def file_mode(permissions: int) -> int:
    """Return the st_mode of a regular file."""
    return stat.S_IFREG | permissions
