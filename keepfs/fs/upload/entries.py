"""Entry: the values of a row of the catalog, and the detection of damaged rows."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from typing import Any

from keepfs.fs.nodes import Metadata, file_mode
from keepfs.fs.upload.stored import StoredBytes, as_rows, from_rows

#: The columns of a row, for SELECT.
COLUMNS = (
    "number, name, mode, uid, gid, atime_ns, mtime_ns, ctime_ns, size, typeof(content) = 'blob'"
)
#: The size of a damaged entry without a valid size, in bytes. Not 0: the kernel would answer a
#: read of an empty file itself, without the error.
_SOME_SIZE = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the catalog.

    Attributes:
        number: Its number, never reused.
        name: Its name in its directory.
        metadata: Its mode, owner and times.
        size: Bytes of the file, or of the symlink's target.
    """

    number: int
    name: str
    metadata: Metadata
    size: int


def entry_of(row: tuple[Any, ...], owner: tuple[int | None, int | None]) -> Entry:
    """Return the entry of an intact row.

    Args:
        row: The values of `COLUMNS`.
        owner: User and group that replace the row's, unless None.
    """
    number, name, mode, uid, gid, atime_ns, mtime_ns, ctime_ns, size, _ = row
    # Share one object for equal times: there may be very many entries.
    mtime_ns = atime_ns if mtime_ns == atime_ns else mtime_ns
    ctime_ns = mtime_ns if ctime_ns == mtime_ns else ctime_ns
    uid, gid = (
        own if given is None else given for own, given in zip((uid, gid), owner, strict=True)
    )
    metadata = Metadata(mode, uid, gid, atime_ns, mtime_ns, ctime_ns)
    return Entry(number, os.fsdecode(name), metadata, size)


def damaged_entry(row: tuple[Any, ...], owner: tuple[int | None, int | None]) -> Entry:
    """Return the entry shown for a damaged row: a file that only its owner may read."""
    number, name, _, uid, gid, *_, size, _ = row
    uid, gid = (
        given if given is not None else own if _is_number(own) else 0
        for own, given in zip((uid, gid), owner, strict=True)
    )
    metadata = Metadata(file_mode(0o400), uid, gid, 0)
    return Entry(number, os.fsdecode(name), metadata, size if _is_number(size) else _SOME_SIZE)


def damage_of(row: tuple[Any, ...]) -> str:
    """Return the flaw of a row, as text; empty if it is intact."""
    _, _, mode, uid, gid, *times, size, has_content = row
    if not _is_number(mode) or stat.S_IFMT(mode) not in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}:
        return f"its mode is {mode!r}"
    if not _is_number(uid) or not _is_number(gid):
        return f"its owner and group are {uid!r} and {gid!r}"
    if not all(isinstance(it, int) for it in times):
        return f"its times are {times!r}"
    if not _is_number(size):
        return f"its size is {size!r}"
    return "" if has_content else "its content is of the wrong type"


def values_of(metadata: Metadata) -> tuple[int, ...]:
    """Return mode, owner, group and times in the order of the columns."""
    return (
        metadata.mode,
        metadata.uid,
        metadata.gid,
        metadata.atime_ns,
        metadata.mtime_ns,
        metadata.ctime_ns,
    )


def stored_as_text(stored: StoredBytes) -> bytes:
    """Encode where a file's bytes are, for a row."""
    return json.dumps(as_rows(stored)).encode()


def stored_of(text: bytes, *, size: int) -> StoredBytes:
    """Decode where a file's bytes are.

    Args:
        text: The bytes' ranges as encoded in a row.
        size: The size of the file, in bytes.

    Raises:
        ValueError: They are damaged.
    """
    try:
        stored = from_rows(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"its blocks can't be read: {error}") from error
    if stored.size != size:
        raise ValueError("its blocks have another size than the file")
    return stored


def _is_number(value: object) -> bool:
    return isinstance(value, int) and value >= 0
