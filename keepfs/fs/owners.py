"""Owners: the owners and permissions of uploaded blocks, for by_id/.

A block that was stored from upload/ has the owner, group and read permissions of
its file under every name in by_id/: with other hints, without a size, or as a
part of a list. This applies to names with the same signature only, since another
signature gives its holder a separate right. Blocks without signatures are matched by
the digest alone.
For the trio thread only.
"""

from __future__ import annotations

import collections
import stat
from typing import TYPE_CHECKING, TypeAlias

from keepfs.fs.nodes import Metadata, file_mode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepfs.fs.nodes import Caller
    from keepfs.keep.locator import KeepLocator

#: Most blocks whose owners are recorded; about 5 MB.
MAX_BLOCKS = 10_000

_ALL_MAY_READ = 0o444
# Group and read permissions of the last file with a block, by the owner of the file. Earlier
# files of the owner are dropped: a changed group must not count as a second owner.
_Permissions: TypeAlias = "dict[int, tuple[int, int]]"


class Owners:
    """The owners of the 10,000 blocks stored most recently.

    Args:
        common: Owner, group and times of blocks that weren't stored through this mount.
    """

    def __init__(self, common: Metadata) -> None:
        self._common = common
        self._owners = collections.OrderedDict[tuple[str, str | None], _Permissions]()

    def add(self, locator: KeepLocator, file: Metadata) -> None:
        """Record owner and mode of a file that has a block, or its new mode."""
        key = (locator.md5sum, locator.permission_hint())
        owners = self._owners.setdefault(key, {})
        owners[file.uid] = file.gid, stat.S_IMODE(file.mode) & _ALL_MAY_READ
        self._owners.move_to_end(key)
        if len(self._owners) > MAX_BLOCKS:
            self._owners.popitem(last=False)

    def metadata(self, locators: Iterable[KeepLocator]) -> Metadata | None:
        """Return owner and mode of a name of these blocks; None if none was stored here.

        A block that several owners have stored doesn't restrict the name: each of them has
        its content. If the other blocks have different owners, all users may read the
        name if others may read each of these blocks, else only root may.
        """
        known = [it for it in map(self._of, locators) if it is not None]
        if not known:
            return None
        single = [next(iter(it.items())) for it in known if len(it) == 1]
        owners, permissions = {(uid, gid) for uid, (gid, _) in single}, _ALL_MAY_READ
        for _, (_, mode) in single:
            permissions &= mode
        uid, gid = self._common.uid, self._common.gid
        if len(owners) == 1:
            ((uid, gid),) = owners
        elif permissions & 0o004:
            permissions = _ALL_MAY_READ
        elif owners:
            permissions = 0
        return Metadata(file_mode(permissions), uid, gid, self._common.mtime_ns)

    def may_all_be_read(self, locators: Iterable[KeepLocator], caller: Caller) -> bool:
        """Return whether the caller may read, for each block, a file in upload/ that has it."""
        return all(
            owners is not None
            and any(caller.may_read(mode, uid, gid) for uid, (gid, mode) in owners.items())
            for owners in map(self._of, locators)
        )

    def _of(self, locator: KeepLocator) -> _Permissions | None:
        unsigned = self._owners.get((locator.md5sum, None))
        if unsigned is not None:
            return unsigned
        return self._owners.get((locator.md5sum, locator.permission_hint()))
