"""Request paths: the path of the file of a request in progress, for diagnosis."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from keepfs.fs.errnos import RefusedError

if TYPE_CHECKING:
    from keepfs.fs.inodes import HandleTable, InodeTable, Listing, OpenFile
    from keepfs.fs.requests import RequestInProgress

#: Handlers whose first arguments are a directory and a name in it.
_BY_NAME = frozenset(
    ("lookup", "create", "mknod", "mkdir", "symlink", "unlink", "rmdir", "rename")
)
#: Handlers whose first argument is the handle of a file; those with one of a directory follow.
_BY_FILE = frozenset(("read", "write", "flush", "fsync", "release"))
_BY_LISTING = frozenset(("readdir", "releasedir", "fsyncdir"))


def path_of(
    request: RequestInProgress,
    inodes: InodeTable,
    files: HandleTable[OpenFile],
    listings: HandleTable[Listing],
) -> str:
    """Return the path of a request's file from the mount's root, without signatures.

    Empty for the root, or if it can't be found. For any thread, because it is needed while the
    event loop is stuck: it reads one entry of a table, which is one operation of a dictionary,
    and the path of its node, of which `Node.mount_path` says the same.

    Args:
        request: The request.
        inodes: The nodes that the kernel has looked up.
        files: The open files.
        listings: The open directories.
    """
    if not request.arguments:
        return ""
    first, *others = request.arguments
    try:
        if request.kind in _BY_FILE:
            return files[first].node.mount_path
        if request.kind in _BY_LISTING:
            return listings[first].node.mount_path
        node = inodes[first]
        if request.kind in _BY_NAME:
            return node.path_of_entry(os.fsdecode(others[0]))
    except (RefusedError, LookupError, TypeError, RuntimeError):  # gone meanwhile; statfs
        return ""
    return node.mount_path
