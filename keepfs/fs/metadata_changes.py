"""Changes of a node's metadata: what a setattr leaves of mode, group and times."""

from __future__ import annotations

import errno
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

from keepfs.fs.errnos import RefusedError

if TYPE_CHECKING:
    from keepfs.fs.nodes import Changes, Metadata

#: The range of times, in nanoseconds since 1970: SQLite's integers (1677 to 2262). Times
#: outside are clamped, as Linux does for file systems with a limited range.
_MIN_TIME_NS, _MAX_TIME_NS = -(2**63), 2**63 - 1


def clamped_time(time_ns: int) -> int:
    """Return the closest time that can be recorded, in nanoseconds since 1970."""
    return max(_MIN_TIME_NS, min(time_ns, _MAX_TIME_NS))


def changed_metadata(metadata: Metadata, changes: Changes) -> Metadata:
    """Return the metadata after a setattr of mode, group and times.

    The kernel has checked that the caller may change them.

    Raises:
        RefusedError: EPERM, the setattr changes the owner.
    """
    if changes.uid not in {None, metadata.uid}:
        raise RefusedError(errno.EPERM)
    changed = replace(metadata)
    if changes.gid is not None and changes.gid != metadata.gid:
        changed.gid = changes.gid
        if stat.S_ISREG(metadata.mode):  # as chown(2): the new group gets no such rights
            changed.mode &= ~stat.S_ISUID
            changed.mode &= ~stat.S_ISGID if metadata.mode & stat.S_IXGRP else ~0
    if changes.mode is not None:
        changed.mode = (metadata.mode & ~0o7777) | (changes.mode & 0o7777)
    if changes.atime_ns is not None:
        changed.atime_ns = clamped_time(changes.atime_ns)
    if changes.mtime_ns is not None:
        changed.mtime_ns = clamped_time(changes.mtime_ns)
    changed.changed()
    return changed
