"""AcceptedNames: signed locators that the services accepted, kept beside the blocks.

A service checks the signature of a locator before it sends the block. Memory answers a name
that the services have accepted in this process (`keepfs.keep.caching.grants`). For the disk
this record must outlive the process, or a second run would need one request for each block.
The answer of a keepstore depends on the locator, the token and its signing key, not on the
process. So a name that it accepted is accepted again with the same token until it expires.

A record has the first 16 bytes of BLAKE2b of the digest and the hints, keyed with the token, and
the time at which the signature expires: neither locators nor tokens can be read from it, and
another token's or another signature's record doesn't match. Each fan-out folder has a file
`names` of records, which is rewritten without the expired ones when it grows. Names without a
signature, and those of other clusters, have no record.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import time
from typing import TYPE_CHECKING

from keepfs.keep.caching.disk.new_files import NewFiles, opened_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.locator import KeepLocator

_NAME = "names"
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_EXPIRY = struct.Struct("<I")
_HASH = 16
_RECORD = _HASH + _EXPIRY.size
#: Bytes at which a file is rewritten without expired records, and at most half of the others:
#: 10,000 records, read in about 30 µs. A cache of 10 million blocks has 2,441 in a folder.
_MOST = 10_000 * _RECORD


def record_of(locator: KeepLocator, token: str) -> bytes | None:
    """Return the record of a name; None if it isn't signed by this cluster, or has expired."""
    expiry = locator.perm_expiry
    others = any(hint.startswith(("R", "K")) for hint in locator.hints)
    if not token or locator.perm_sig is None or expiry is None or others:
        return None
    seconds = int(expiry.timestamp())
    if locator.permission_expired() or seconds >= 2**32:
        return None
    key = hashlib.blake2b(token.encode(errors="surrogateescape"), digest_size=64).digest()
    name = locator.md5sum + str(locator)[len(locator.stripped()) :]  # the size is not signed
    hashed = hashlib.blake2b(name.encode(), digest_size=_HASH, key=key, person=b"keepfs-name")
    return hashed.digest() + _EXPIRY.pack(seconds)


class AcceptedNames:
    """The records in the folders of a directory. Any thread may use it; every method blocks.

    A disk that can't be used has no records, without an error.

    Args:
        root: A descriptor of the directory; it is duplicated.
    """

    def __init__(self, root: int) -> None:
        self._root = os.dup(root)
        self._new_files = NewFiles(self._root)

    def close(self) -> None:
        """Close the directory."""
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    def has(self, md5sum: str, record: bytes) -> bool:
        """Return whether a name was accepted."""
        content, begin = self._read(md5sum), -1
        while True:
            begin = content.find(record, begin + 1)
            if begin < 0 or begin % _RECORD == 0:
                return begin >= 0

    def add(self, md5sum: str, record: bytes) -> None:
        """Record that a name was accepted. Without the block's folder this does nothing."""
        try:
            file = os.open(
                _path(md5sum),
                os.O_WRONLY | os.O_CREAT | os.O_APPEND | _FLAGS,
                0o600,
                dir_fd=self._root,
            )
        except OSError:
            return
        with contextlib.suppress(OSError):
            try:
                length = os.fstat(file).st_size
                # After a write that was cut off, records would begin at wrong places.
                is_full = length >= _MOST or length % _RECORD != 0
                if not is_full:
                    os.write(file, record)
            finally:
                os.close(file)
            if is_full:
                self._rewrite(md5sum, lambda _: True, record)

    def remove(self, md5sum: str, record: bytes) -> None:
        """Remove the record of a name that was refused."""
        if self.has(md5sum, record):
            with contextlib.suppress(OSError):
                self._rewrite(md5sum, lambda it: it != record)

    def _read(self, md5sum: str) -> bytes:
        try:
            file = os.open(_path(md5sum), os.O_RDONLY | _FLAGS, dir_fd=self._root)
        except OSError:
            return b""
        try:
            return os.read(file, 2 * _MOST)
        except OSError:
            return b""
        finally:
            os.close(file)

    def _rewrite(
        self, md5sum: str, is_kept: Callable[[bytes], bool], record: bytes | None = None
    ) -> None:
        now = time.time_ns() // 10**9
        kept = [
            each
            for each in _records(self._read(md5sum))
            if is_kept(each) and _EXPIRY.unpack_from(each, _HASH)[0] > now
        ][-_MOST // _RECORD // 2 :]
        content = b"".join(kept) + (record or b"")
        with opened_directory(self._root, md5sum[:3]) as folder:
            self._new_files.replace(folder, _NAME, content)


def _records(content: bytes) -> list[bytes]:
    whole = len(content) - len(content) % _RECORD
    return [content[begin : begin + _RECORD] for begin in range(0, whole, _RECORD)]


def _path(md5sum: str) -> str:
    return f"{md5sum[:3]}/{_NAME}"
