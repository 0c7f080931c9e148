"""What a file and a directory are, whatever is behind them.

`keepfs.fs.operations` asks nodes; a node knows neither requests nor handles.
What a node doesn't override is refused as a read-only file system refuses it.
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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from keepfs.fs.errnos import RefusedError
from keepfs.fs.processes import supplementary_groups

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Buffer

#: Seconds for which the kernel may keep what can't change behind its back:
#: blocks never change, and upload/ changes through the kernel alone.
ENDLESS = 365 * 24 * 3600.0
#: What st_blksize says: cp and others write that much at once (1.7 times as
#: fast as with 4 KiB).
BLOCK_SIZE_HINT = 1024 * 1024

#: The time of what has none, in nanoseconds since 1970: the first that every archive format can
#: hold (1980-01-01 UTC). One that moves would make the kernel drop its pages.
TIMELESS_NS = 315_532_800 * 10**9

#: The inode number of the mount's root, FUSE_ROOT_ID of the protocol.
ROOT_INODE = 1

_numbers = itertools.count(ROOT_INODE + 1)


def new_inode() -> int:
    """Return a number that no node of this process has had."""
    return next(_numbers)


#: The times there can be, in nanoseconds since 1970: those that SQLite can hold (1677 to
#: 2262). Later and earlier ones are clamped, as Linux does where a file system can't hold one.
_MIN_TIME_NS, _MAX_TIME_NS = -(2**63), 2**63 - 1
#: Stands for a time that isn't given.
_SAME = _MIN_TIME_NS - 1


def clamped_time(time_ns: int) -> int:
    """Return a time that can be recorded, in nanoseconds since 1970."""
    return max(_MIN_TIME_NS, min(time_ns, _MAX_TIME_NS))


@dataclass(slots=True)
class Metadata:
    """What `stat` says of a node, but for its size.

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
        """Set the times that a change of the node, or of its content, sets."""
        self.ctime_ns = time.time_ns()
        if content:
            self.mtime_ns = self.ctime_ns


@dataclass(frozen=True)
class Caller:
    """Who makes a request.

    Attributes:
        uid: Its user.
        gid: Its group.
        pid: Its process.
    """

    uid: int
    gid: int
    pid: int

    @functools.cached_property
    def groups(self) -> frozenset[int]:
        """All its groups; its own alone where its process can't be looked at."""
        return supplementary_groups(self.pid) | {self.gid}

    def may_read(self, permissions: int, uid: int, gid: int) -> bool:
        """Tell whether it may read what has these permissions and this owner and group."""
        if self.uid == 0:
            return True
        if self.uid == uid:
            return bool(permissions & 0o400)
        return bool(permissions & (0o040 if gid in self.groups else 0o004))


@dataclass(frozen=True, slots=True)
class Changes:
    """What a setattr asks for; None leaves a field as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who owns what is made.

    Attributes:
        uid: Owner of everything; None for whoever makes it.
        gid: Group of everything; None for the maker's.
    """

    uid: int | None = None
    gid: int | None = None

    def of_new(self, kind: int, permissions: int, maker: Caller) -> Metadata:
        """Return the metadata of what `maker` makes."""
        return Metadata(
            kind | stat.S_IMODE(permissions),
            maker.uid if self.uid is None else self.uid,
            maker.gid if self.gid is None else self.gid,
        )


class Validity(NamedTuple):
    """How long the kernel may answer by itself, in seconds.

    Attributes:
        entry: That the name is this node.
        attributes: What `stat` returns for it.
    """

    entry: float
    attributes: float


#: For what cannot change behind the kernel's back.
FOREVER = Validity(ENDLESS, ENDLESS)


class Attributes(NamedTuple):
    """What `stat` says of a node.

    Attributes:
        inode: Its number.
        metadata: Mode, owner and times.
        size: Bytes.
        links: Names it has.
        validity: How long this may be repeated.
    """

    inode: int
    metadata: Metadata
    size: int
    links: int
    validity: Validity = FOREVER


class RenameMode(enum.Enum):
    """What a rename does if the new name exists, as in renameat2(2)."""

    REPLACE = enum.auto()
    NO_REPLACE = enum.auto()
    EXCHANGE = enum.auto()


class Node:
    """A file, directory or symlink.

    Args:
        metadata: What `stat` says of it.

    Attributes:
        inode: Its number, unique in this process.
        links: 1, or 0 once no directory names it.
        lookups: How often the kernel was told of it, and hasn't forgotten it since.
    """

    __slots__ = ("inode", "links", "lookups", "metadata")  # there may be very many

    def __init__(self, metadata: Metadata, inode: int | None = None) -> None:
        self.inode = new_inode() if inode is None else inode
        self.metadata = metadata
        self.links = 1
        self.lookups = 0

    @property
    def size(self) -> int:
        """Bytes of its content."""
        return 0

    def attributes(self) -> Attributes:
        """Return what `stat` says, and how long the kernel may repeat it."""
        return Attributes(self.inode, self.metadata, self.size, self.links)

    def xattrs(self) -> Mapping[str, str]:
        """Return its extended attributes, by name (`user.keep.…`)."""
        return {}

    def found_by(self, caller: Caller) -> None:
        """Note that somebody looked it up, or opened it."""

    def is_listed_for(self, caller: Caller) -> bool:
        """Tell whether a listing that somebody reads shows it."""
        return True

    def forgotten(self) -> None:
        """Note that the kernel doesn't know it any more. May not raise."""

    async def sync(self) -> None:
        """Return when what is stored and named survives a power cut."""

    async def change(self, changes: Changes) -> None:
        """Do what a setattr asks for.

        Raises:
            RefusedError: EROFS, where nothing can be changed.
        """
        raise RefusedError(errno.EROFS)


class FileNode(Node):
    """A regular file."""

    __slots__ = ()

    @property
    def path(self) -> str:
        """The path below upload/; empty where it has none."""
        return ""

    @property
    def may_change(self) -> bool:
        """Whether its bytes may ever be others."""
        return False

    def check_open(self, flags: int) -> None:
        """Raise the RefusedError that an opening with these flags deserves, if any."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise RefusedError(errno.EROFS)

    def opened(self) -> None:
        """Note one opening more."""

    def closed(self) -> None:
        """Note one opening less."""

    async def truncate(self, size: int) -> None:
        """Set the size."""
        raise RefusedError(errno.EROFS)

    @abc.abstractmethod
    async def read(self, offset: int, size: int) -> Buffer:
        """Return exactly the bytes there are from `offset` on, `size` at most.

        Fewer would be taken for the end of the file: a failure must raise.
        """

    async def write(self, offset: int, content: bytes) -> None:
        """Put bytes at `offset`, all of them."""
        raise RefusedError(errno.EROFS)

    @property
    def has_untried_changes(self) -> bool:
        """Whether there are changes that no store has been tried for."""
        return False

    async def store(self) -> None:
        """Return when all bytes written before are stored as wanted.

        Raises:
            KeepWriteError: They aren't; they are kept, and a later call tries again.
        """

    def begin_store(self) -> object:
        """Begin to store all bytes written before, without waiting for it."""
        return None


class SymlinkNode(Node):
    """A symbolic link.

    Args:
        target: What it points to.
    """

    __slots__ = ("target",)

    def __init__(self, metadata: Metadata, target: bytes) -> None:
        super().__init__(metadata)
        self.target = target

    @property
    def size(self) -> int:
        """Bytes of the target."""
        return len(self.target)


class DirectoryNode(Node):
    """A directory; one that nothing can be changed in, where not overridden.

    The link count is 1, which tells programs that it says nothing about how
    many subdirectories there are.
    """

    __slots__ = ()

    @property
    def not_found_timeout(self) -> float:
        """Seconds for which the kernel may remember that a name wasn't found."""
        return 0.0

    async def prepare_listing(self) -> None:
        """Return when the directory may be listed.

        Raises:
            RefusedError: It can't be.
        """

    @abc.abstractmethod
    async def lookup(self, name: str) -> Node:
        """Find an entry.

        Raises:
            RefusedError: ENOENT, there is none of that name.
        """

    @abc.abstractmethod
    def names(self) -> Iterable[str]:
        """Go through the names of the entries to list; they may change meanwhile.

        One that is there all the while comes once. A sequence is asked for its items by
        number, and not kept in another form.
        """

    @abc.abstractmethod
    def entry_nowait(self, name: str) -> Node | None:
        """Return a listed entry, or None where it has gone meanwhile."""

    def create(self, name: str, metadata: Metadata) -> FileNode:
        """Make an empty file."""
        raise RefusedError(errno.EROFS)

    def mkdir(self, name: str, metadata: Metadata) -> DirectoryNode:
        """Make an empty directory."""
        raise RefusedError(errno.EROFS)

    def symlink(self, name: str, target: bytes, metadata: Metadata) -> SymlinkNode:
        """Make a symbolic link."""
        raise RefusedError(errno.EROFS)

    def link(self, name: str, node: Node) -> None:
        """Give a node one more name."""
        raise RefusedError(errno.EROFS)

    def unlink(self, name: str) -> None:
        """Remove a file or symlink."""
        raise RefusedError(errno.EROFS)

    def rmdir(self, name: str) -> None:
        """Remove an empty directory."""
        raise RefusedError(errno.EROFS)

    def rename(self, name: str, target: DirectoryNode, new_name: str, mode: RenameMode) -> None:
        """Move an entry, over an existing one if need be."""
        raise RefusedError(errno.EROFS)


def changed_metadata(metadata: Metadata, changes: Changes) -> Metadata:
    """Return what a setattr makes of mode and times.

    Raises:
        RefusedError: EPERM, another owner or group is asked for.
    """
    if changes.uid not in {None, metadata.uid} or changes.gid not in {None, metadata.gid}:
        raise RefusedError(errno.EPERM)
    changed = replace(metadata)
    if changes.mode is not None:
        changed.mode = (metadata.mode & ~0o7777) | (changes.mode & 0o7777)
    if changes.atime_ns is not None:
        changed.atime_ns = clamped_time(changes.atime_ns)
    if changes.mtime_ns is not None:
        changed.mtime_ns = clamped_time(changes.mtime_ns)
    changed.changed()
    return changed


def directory_mode(permissions: int) -> int:
    """Return the st_mode of a directory."""
    return stat.S_IFDIR | permissions


def file_mode(permissions: int) -> int:
    """Return the st_mode of a regular file."""
    return stat.S_IFREG | permissions
