"""Extended attributes of nodes, `user.keep.…`: what a handler returns and refuses."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import FileNode

if TYPE_CHECKING:
    from keepfs.fs.nodes import Node

_PREFIX = b"user.keep."


def value_of(node: Node, name: bytes) -> bytes:
    """Return the value of an attribute.

    Raises:
        RefusedError: ENODATA, the node hasn't got it; EOPNOTSUPP for access control lists.
    """
    if name.startswith(b"system."):
        raise RefusedError(errno.EOPNOTSUPP)
    # The kernel asks for security.capability before each write.
    value = node.xattrs().get(os.fsdecode(name)) if name.startswith(_PREFIX) else None
    if value is None:
        raise RefusedError(errno.ENODATA)
    return os.fsencode(value)


def names_of(node: Node) -> list[bytes]:
    """Return the names of a node's attributes."""
    return [os.fsencode(name) for name in node.xattrs()]


def check_set(node: Node, name: bytes, *, read_only: bool) -> None:
    """Check that an attribute may be set: accepted and ignored, for copies between mounts.

    Raises:
        RefusedError: EOPNOTSUPP, it isn't a `user.keep.…` attribute of a file that may change;
            EROFS, the mount is read-only.
    """
    if not (name.startswith(_PREFIX) and isinstance(node, FileNode) and node.may_change):
        raise RefusedError(errno.EOPNOTSUPP)
    if read_only:
        raise RefusedError(errno.EROFS)


def check_removed(node: Node, name: bytes, *, read_only: bool) -> None:
    """Check that an attribute may be removed: accepted and ignored, as `check_set`.

    Raises:
        RefusedError: As `check_set`; ENODATA, the node hasn't got it.
    """
    check_set(node, name, read_only=read_only)
    if os.fsdecode(name) not in node.xattrs():
        raise RefusedError(errno.ENODATA)
