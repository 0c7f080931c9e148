"""Conversions between the values of nodes and the structures of pyfuse3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes, StatvfsData

from keepfs.fs.nodes import BLOCK_SIZE_HINT, Caller, Changes

if TYPE_CHECKING:
    from pyfuse3 import RequestContext, SetattrFields

    from keepfs.fs.free_space import Space
    from keepfs.fs.nodes import Attributes

#: Inodes that statfs reports, all free: a store of blocks has no table of them.
_MANY_FILES = 2**40


def caller(context: RequestContext) -> Caller:
    """Return the process that makes a request."""
    return Caller(context.uid, context.gid, context.pid)


def changes(attributes: EntryAttributes, fields: SetattrFields) -> Changes:
    """Return the changes that a setattr requests: those of `attributes` that `fields` names."""
    return Changes(
        mode=attributes.st_mode if fields.update_mode else None,
        uid=attributes.st_uid if fields.update_uid else None,
        gid=attributes.st_gid if fields.update_gid else None,
        size=attributes.st_size if fields.update_size else None,
        atime_ns=attributes.st_atime_ns if fields.update_atime else None,
        mtime_ns=attributes.st_mtime_ns if fields.update_mtime else None,
    )


def no_entry(timeout: float) -> EntryAttributes:
    """Return the answer that a name doesn't exist, which the kernel may cache for some seconds."""
    nothing = EntryAttributes()
    nothing.st_ino = 0
    nothing.entry_timeout = timeout
    return nothing


def entry(found: Attributes) -> EntryAttributes:
    """Return the attributes of a node as the kernel gets them."""
    metadata, result = found.metadata, EntryAttributes()
    result.st_ino = found.inode
    result.generation = 0
    result.entry_timeout, result.attr_timeout = found.validity
    result.st_mode = metadata.mode
    result.st_nlink = found.links
    result.st_uid = metadata.uid
    result.st_gid = metadata.gid
    result.st_rdev = 0
    result.st_size = found.size
    result.st_blksize = BLOCK_SIZE_HINT
    result.st_blocks = (found.size + 511) // 512
    result.st_atime_ns = metadata.atime_ns
    result.st_mtime_ns = metadata.mtime_ns
    result.st_ctime_ns = metadata.ctime_ns
    return result


def statvfs(space: Space, longest_name: int) -> StatvfsData:
    """Return a store's space, in units of 1 MiB, and the longest name, in bytes."""
    result = StatvfsData()
    result.f_bsize = result.f_frsize = BLOCK_SIZE_HINT
    result.f_blocks = space.size // BLOCK_SIZE_HINT
    result.f_bfree = result.f_bavail = space.free // BLOCK_SIZE_HINT
    result.f_files = result.f_ffree = result.f_favail = _MANY_FILES
    result.f_namemax = longest_name
    return result
