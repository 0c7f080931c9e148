"""What the kernel passes to a handler, for tests that call handlers themselves."""

from __future__ import annotations

import os

import pyfuse3


class Caller(pyfuse3.RequestContext):
    """Who makes a request; pyfuse3's own can't be filled in.

    Args:
        uid: Its user.
        gid: Its group.
        pid: Its process; this one when not given.
    """

    def __init__(self, uid: int = 0, gid: int = 0, pid: int | None = None) -> None:
        super().__init__()
        self._uid = uid
        self._gid = gid
        self._pid = os.getpid() if pid is None else pid

    @property
    def uid(self) -> int:
        """The user."""
        return self._uid

    @property
    def gid(self) -> int:
        """The group."""
        return self._gid

    @property
    def pid(self) -> int:
        """The process."""
        return self._pid


class Fields(pyfuse3.SetattrFields):
    """Which attributes a setattr changes.

    Args:
        names: Any of mode, uid, gid, size, atime, mtime.
    """

    def __init__(self, *names: str) -> None:
        super().__init__()
        self._names = names

    @property
    def update_mode(self) -> bool:
        """Whether the mode changes."""
        return "mode" in self._names

    @property
    def update_uid(self) -> bool:
        """Whether the user changes."""
        return "uid" in self._names

    @property
    def update_gid(self) -> bool:
        """Whether the group changes."""
        return "gid" in self._names

    @property
    def update_size(self) -> bool:
        """Whether the size changes."""
        return "size" in self._names

    @property
    def update_atime(self) -> bool:
        """Whether the time of the last access changes."""
        return "atime" in self._names

    @property
    def update_mtime(self) -> bool:
        """Whether the time of the last change changes."""
        return "mtime" in self._names
