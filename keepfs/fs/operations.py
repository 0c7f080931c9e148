"""Handlers of pyfuse3: decode a request, call a node, encode the reply.

This module only adapts the protocol. Every handler except `forget` is guarded, so
that no failure ends the mount.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Any

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, StatvfsData

from keepfs.fs import replies, xattrs
from keepfs.fs.errnos import RefusedError, errno_of
from keepfs.fs.free_space import FreeSpace
from keepfs.fs.guards import guarded, guarded_call
from keepfs.fs.inodes import HandleTable, InodeTable, Listing, OpenFile
from keepfs.fs.nodes import (
    DirectoryNode,
    FileNode,
    Node,
    Ownership,
    RenameMode,
    SymlinkNode,
)
from keepfs.fs.request_paths import path_of
from keepfs.fs.upload.directory import MAX_NAME
from keepfs.fs.worker_threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from pyfuse3 import (
        FileHandleT,
        FileNameT,
        FlagT,
        InodeT,
        ModeT,
        ReaddirToken,
        RequestContext,
        SetattrFields,
        XAttrNameT,
    )
    from typing_extensions import Buffer

    from keepfs.fs.bridge import AsyncBlocks
    from keepfs.fs.requests import RequestInProgress, Requests

#: Most names checked for one readdir, about 5 ms: the kernel may request 6,000, and all other
#: requests wait meanwhile.
_MOST_LISTED = 256
#: Modes of a rename by the flags of renameat2(2).
_RENAME_MODES = {
    0: RenameMode.REPLACE,
    pyfuse3.RENAME_NOREPLACE: RenameMode.NO_REPLACE,
    pyfuse3.RENAME_EXCHANGE: RenameMode.EXCHANGE,
}


class Operations(pyfuse3.Operations):
    """The handlers of a mount.

    Args:
        root: The root directory.
        blocks: The block store, for the free space.
        requests: The register of requests in progress.
        ownership: The owner and group of new nodes.
        read_only: Refuse all changes.
        direct_io: Disable the kernel's page cache for files that may change.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        root: DirectoryNode,
        blocks: AsyncBlocks,
        requests: Requests,
        ownership: Ownership,
        *,
        read_only: bool = False,
        direct_io: bool = False,
    ) -> None:
        super().__init__()
        self.requests = requests
        self._ownership = ownership
        self._read_only = read_only
        self._direct_io = direct_io
        self._inodes = InodeTable(root)
        self._files = HandleTable[OpenFile]()
        self._listings = HandleTable[Listing]()
        self._blocks = blocks
        self._free_space = FreeSpace(blocks)

    # --- names -------------------------------------------------------------

    @guarded_call
    def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes | Coroutine[Any, Any, EntryAttributes]:
        """Find an entry; if it doesn't exist, the kernel may cache that for a while."""
        parent, text = self._inodes.directory(parent_inode), os.fsdecode(name)
        try:
            node = parent.lookup_nowait(text)
        except RefusedError as error:
            return self._not_found(parent, error)
        return self._lookup(parent, text, ctx) if node is None else self._found(node, ctx)

    async def _lookup(
        self, parent: DirectoryNode, name: str, ctx: RequestContext
    ) -> EntryAttributes:
        try:
            return self._found(await parent.lookup(name), ctx)
        except Exception as error:  # noqa: BLE001 - raised again, but for ENOENT
            return self._not_found(parent, error)

    def _found(self, node: Node, ctx: RequestContext) -> EntryAttributes:
        node.found_by(replies.caller(ctx))
        return self._told(node)

    def _not_found(self, parent: DirectoryNode, error: Exception) -> EntryAttributes:
        """Return the answer to a lookup that failed with ENOENT, if it may be cached."""
        if not parent.not_found_timeout or errno_of(error) != errno.ENOENT:
            raise error
        self.requests.count_error("lookup", errno.ENOENT)
        return replies.no_entry(parent.not_found_timeout)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Subtract lookups. Not guarded: it must not raise at all, not even FUSEError."""
        for inode, lookups in inode_list:
            self._inodes.forget(inode, lookups)

    @guarded_call
    def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        """Create a file and open it."""
        node = self._changeable(parent_inode).create(
            os.fsdecode(name), self._ownership.of_new(stat.S_IFREG, mode, replies.caller(ctx))
        )
        return self._opened(node, ctx, stores=True), self._told(node)

    @guarded
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Create a regular file; devices, pipes and sockets fail with EPERM."""
        if not stat.S_ISREG(mode):
            raise RefusedError(errno.EPERM)
        node = self._changeable(parent_inode).create(
            os.fsdecode(name), self._ownership.of_new(stat.S_IFREG, mode, replies.caller(ctx))
        )
        self.requests.about(node)
        node.opened()
        try:
            await node.store()  # no close follows
        finally:
            node.closed()
        return self._told(node)

    @guarded_call
    def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """Create a directory."""
        node = self._changeable(parent_inode).mkdir(
            os.fsdecode(name), self._ownership.of_new(stat.S_IFDIR, mode, replies.caller(ctx))
        )
        return self._told(node)

    @guarded_call
    def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Create a symbolic link."""
        node = self._changeable(parent_inode).symlink(
            os.fsdecode(name),
            target,
            self._ownership.of_new(stat.S_IFLNK, 0o777, replies.caller(ctx)),
        )
        return self._told(node)

    @guarded_call
    def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Add a name to a file; every directory refuses it so far."""
        node = self._inodes[inode]
        self._changeable(new_parent_inode).link(os.fsdecode(new_name), node)
        return self._told(node)

    @guarded_call
    def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """Return the target of a symbolic link."""
        node = self._inodes[inode]
        if not isinstance(node, SymlinkNode):
            raise RefusedError(errno.EINVAL)
        return node.target

    @guarded_call
    def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a file or symlink."""
        self._changeable(parent_inode).unlink(os.fsdecode(name))

    @guarded_call
    def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        self._changeable(parent_inode).rmdir(os.fsdecode(name))

    @guarded_call
    def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Move an entry, with the flags of renameat2(2); RENAME_WHITEOUT fails with EINVAL."""
        if flags not in _RENAME_MODES:
            raise RefusedError(errno.EINVAL)
        target = self._changeable(parent_inode_new)
        self._changeable(parent_inode_old).rename(
            os.fsdecode(name_old), target, os.fsdecode(name_new), _RENAME_MODES[flags]
        )

    # --- attributes ----------------------------------------------------------

    @guarded_call
    def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Return a node's attributes."""
        return replies.entry(self._inodes[inode].attributes())

    @guarded
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Change mode, group, times or size; a change of the owner fails with EPERM."""
        if self._read_only:
            raise RefusedError(errno.EROFS)
        node = self._inodes[inode]
        changes = replies.changes(attr, fields)
        if self._ownership.gid is not None and changes.gid not in {None, self._ownership.gid}:
            raise RefusedError(errno.EPERM)  # --gid sets the group of all nodes
        if isinstance(node, FileNode):
            self.requests.about(node)
        with self._resizing(node):
            await node.change(changes)
        return replies.entry(node.attributes())

    @guarded_call
    def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """Return an extended attribute, `user.keep.…`."""
        return xattrs.value_of(self._inodes[inode], name)

    @guarded_call
    def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """Return the names of the extended attributes."""
        return xattrs.names_of(self._inodes[inode])

    @guarded_call
    def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        """Accept and ignore a `user.keep.…` attribute: copies between mounts set them."""
        xattrs.check_set(self._inodes[inode], name, read_only=self._read_only)

    @guarded_call
    def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Accept and ignore the removal of a `user.keep.…` attribute."""
        xattrs.check_removed(self._inodes[inode], name, read_only=self._read_only)

    @guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Return the store's capacity and free space."""
        return replies.statvfs(await self._free_space.answer(), MAX_NAME)

    # --- files ---------------------------------------------------------------

    @guarded_call
    def open(
        self, inode: InodeT, flags: FlagT, ctx: RequestContext
    ) -> FileInfo | Coroutine[Any, Any, FileInfo]:
        """Open a file; with `O_TRUNC` also truncate it, since no setattr follows."""
        node = self._inodes[inode]
        if not isinstance(node, FileNode):
            raise RefusedError(errno.EISDIR)
        # With O_TRUNC even a read-only open changes the file.
        writes = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if self._read_only and writes:
            raise RefusedError(errno.EROFS)
        node.check_open(flags)
        if flags & os.O_TRUNC:
            return self._truncated(node, ctx)
        return self._opened(node, ctx, stores=writes)

    async def _truncated(self, node: FileNode, ctx: RequestContext) -> FileInfo:
        self.requests.about(node)
        await node.truncate(0)
        return self._opened(node, ctx, stores=True)

    @guarded_call
    def read(  # type: ignore[override] # pyfuse3 takes any buffer, and copies none
        self, fh: FileHandleT, off: int, size: int
    ) -> Buffer | Coroutine[Any, Any, Buffer]:
        """Return `size` bytes, fewer only at the end of the file."""
        file = self._files[fh]
        found = file.node.read_nowait(off, size)
        return self._read(file, off, size) if found is None else found

    async def _read(self, file: OpenFile, off: int, size: int) -> Buffer:
        self.requests.about(file.node, file.pid)
        return await file.overdue.read(file.node.read, off, size)

    @guarded_call
    def write(self, fh: FileHandleT, off: int, buf: bytes) -> int | Coroutine[Any, Any, int]:
        """Write all bytes or fail."""
        file = self._files[fh]
        with self._resizing(file.node):
            is_done = file.node.write_nowait(off, buf)
        return len(buf) if is_done else self._write(file, off, buf)

    async def _write(self, file: OpenFile, off: int, buf: bytes) -> int:
        self.requests.about(file.node, file.pid)
        with self._resizing(file.node):
            await file.node.write(off, buf)
        return len(buf)

    @guarded_call
    def flush(self, fh: FileHandleT) -> Coroutine[Any, Any, None] | None:
        """Store the written bytes: close() waits for this and reports its failure.

        A reader's close doesn't report failures of another process's writes.
        """
        file = self._files[fh]
        return self._store(file) if file.stores else None

    async def _store(self, file: OpenFile) -> None:
        self.requests.about(file.node, file.pid)
        await file.node.store()

    @guarded
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3's
        """Store the written bytes, and sync the names to disk."""
        file = self._files[fh]
        await self._store(file)
        await file.node.sync()

    @guarded_call
    def release(self, fh: FileHandleT) -> None:
        """Close a handle; start to store the bytes that mmap wrote since the last flush."""
        node = self._files.remove(fh).node
        try:
            if node.has_untried_changes:
                node.begin_store()
        finally:
            node.closed()

    # --- directories ---------------------------------------------------------

    @guarded
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        return self._listings.add(
            await Listing.of(self._inodes.directory(inode), replies.caller(ctx))
        )

    @guarded_call
    def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """List entries from number `start_id` on; check 256 names, more if none is listed."""
        listing = self._listings[fh]
        if start_id == 0:
            listing.begin()
        # An answer without entries means the end of the directory.
        for number, name, node in listing.entries(start_id, _MOST_LISTED):
            entry = replies.entry(node.attributes())
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, number):
                return
            self._inodes.remember(node)

    @guarded_call
    def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        self._listings.remove(fh)

    @guarded
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3's
        """Sync the names to disk."""
        listing = self._listings[fh]
        self.requests.about(listing.node, listing.caller.pid)
        await listing.node.sync()

    def path_of(self, request: RequestInProgress) -> str:
        """Return the path of a request's file; see `request_paths`. For any thread."""
        return path_of(request, self._inodes, self._files, self._listings)

    # --- what handlers share ---------------------------------------------------

    @contextlib.contextmanager
    def _resizing(self, node: Node) -> Iterator[None]:
        """If a request fails after it changed the size, drop the kernel's cached size and pages.

        The attributes are invalidated before the error is sent, so that a read to the end requests
        the size. The pages are locked until then: a task invalidates them later.
        """
        size = node.size
        try:
            yield
        except BaseException:
            if node.size != size:
                with contextlib.suppress(OSError, RuntimeError):  # nothing is mounted
                    pyfuse3.invalidate_inode(node.inode, attr_only=True)
                self._blocks.start(_invalidate, node.inode)
            raise

    def _told(self, node: Node) -> EntryAttributes:
        """Return a node's attributes for a reply that passes the node, and count the lookup."""
        attributes = replies.entry(node.attributes())
        self._inodes.remember(node)
        return attributes

    def _opened(self, node: FileNode, ctx: RequestContext, *, stores: bool) -> FileInfo:
        node.opened()
        node.found_by(replies.caller(ctx))
        file = OpenFile(node, ctx.pid, stores)
        direct = self._direct_io and node.may_change
        # Keep cached pages: a block never changes, and upload/ changes through the kernel only.
        return FileInfo(fh=self._files.add(file), keep_cache=not direct, direct_io=direct)

    def _changeable(self, inode: InodeT) -> DirectoryNode:
        if self._read_only:
            raise RefusedError(errno.EROFS)
        return self._inodes.directory(inode)


async def _invalidate(inode: InodeT) -> None:
    """Drop the kernel's cached attributes and pages of an inode, but not its name."""
    with contextlib.suppress(OSError, RuntimeError):  # not cached; nothing is mounted; no thread
        await run_in_thread(lambda: pyfuse3.invalidate_inode(inode))
