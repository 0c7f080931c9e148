"""Volumes: where a test keepstore has its blocks, in memory.

A volume does what a directory on disk would: it can be full, read-only or
broken, and what is in it can be spoilt behind the server's back.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from tests.keepstore.clock import SECOND
from tests.keepstore.locators import MAX_BLOCK_SIZE, RefusalError

if TYPE_CHECKING:
    from tests.keepstore.wire import Content


class FullError(Exception):
    """The volume has no room for a block."""


class BrokenError(Exception):
    """The volume can't be written, for a reason other than room."""


@dataclass(slots=True)
class StoredBlock:
    """A block on a volume.

    Attributes:
        content: What is stored, right or wrong.
        mtime: When it was last written or touched, in nanoseconds since 1970.
    """

    content: Content
    mtime: int
    _md5sum: str = field(default="", repr=False)

    def md5sum(self) -> str:
        """Compute the hash of what is stored, once."""
        if not self._md5sum:
            self._md5sum = hashlib.md5(self.content, usedforsecurity=False).hexdigest()
        return self._md5sum


@dataclass(slots=True)
class _Trashed:
    block: StoredBlock
    deadline: int


@dataclass(slots=True, eq=False)
class Volume:
    """One volume of a keepstore; any thread may use it.

    Pickled, it becomes an empty volume of the same configuration.

    Attributes:
        uuid: Its last 15 characters decide the order of volumes for a block.
        classes: Its storage classes.
        replication: Copies that one write counts for.
        read_only: Never written nor trashed from.
        capacity: Bytes it can hold; with less than 64 MiB free it counts as
            full. None: no limit.
        broken: Every write fails with an error other than full.
        root: The directory that errors and `/mounts` speak of.
        host: The machine that `/mounts` speaks of.
    """

    uuid: str = "zzzzz-nyw5e-000000000000000"
    classes: tuple[str, ...] = ("default",)
    replication: int = 1
    read_only: bool = False
    capacity: int | None = None
    broken: bool = False
    root: str = "/var/lib/arvados/keep"
    host: str = "keep0"
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _blocks: dict[str, StoredBlock] = field(default_factory=dict, init=False, repr=False)
    _trash: dict[str, list[_Trashed]] = field(default_factory=dict, init=False, repr=False)
    _directories: set[str] = field(default_factory=set, init=False, repr=False)

    def __reduce__(self) -> tuple[type[Volume], tuple[object, ...]]:
        settings = [getattr(self, each.name) for each in fields(self) if each.init]
        return Volume, tuple(settings)

    def block(self, digest: str) -> StoredBlock | None:
        """Look a block up.

        Raises:
            RefusalError: A directory stands in the file's place, or the file
                is larger than any block.
        """
        with self._lock:
            if digest in self._directories:
                raise RefusalError(500, f"read {self._path(digest)}: is a directory")
            found = self._blocks.get(digest)
        if found is not None and len(found.content) > MAX_BLOCK_SIZE:
            raise RefusalError(413, "request entity too large")
        return found

    def write(self, digest: str, content: Content, now: int) -> None:
        """Store a block, in place of one that may be there.

        Raises:
            FullError: There is no room.
            BrokenError: It can't be written.
        """
        with self._lock:
            if self.broken or digest in self._directories:
                raise BrokenError
            used = sum(len(block.content) for block in self._blocks.values())
            if self.capacity is not None and self.capacity - used < MAX_BLOCK_SIZE:
                raise FullError
            self._blocks[digest] = StoredBlock(content, now, digest)

    def touch(self, digest: str, now: int) -> bool:
        """Set a block's time; return whether it is there."""
        with self._lock:
            if digest not in self._blocks:
                return False
            self._blocks[digest].mtime = now
            return True

    def index(self, prefix: str) -> list[str]:
        """List blocks as lines `digest+size mtime`, in the order they were placed."""
        with self._lock:
            return [
                f"{digest}+{len(block.content)} {block.mtime}"
                for digest, block in self._blocks.items()
                if digest.startswith(prefix)
            ]

    def trash(self, digest: str, now: int, ttl: float, lifetime: float) -> None:
        """Move a block to the trash, unless it is younger than `ttl` seconds.

        Args:
            digest: Of a block that is there.
            now: In nanoseconds.
            ttl: Seconds.
            lifetime: Seconds in the trash; 0 deletes at once.

        Raises:
            RefusalError: The block isn't there.
        """
        with self._lock:
            block = self._blocks.get(digest)
            if block is None:
                text = f"stat {self._path(digest)}: no such file or directory"
                raise RefusalError(404, text)
            if now - block.mtime < ttl * SECOND:
                return
            del self._blocks[digest]
            if lifetime:
                deadline = now + int(lifetime * SECOND)
                self._trash.setdefault(digest, []).append(_Trashed(block, deadline))

    def untrash(self, digest: str, now: int) -> bool:
        """Bring a trashed block back; return whether there was one."""
        with self._lock:
            left = [each for each in self._trash.pop(digest, []) if each.deadline > now]
            if not left:
                return False
            self._blocks[digest] = left[-1].block
            return True

    def place(self, digest: str, content: Content, mtime: int) -> None:
        """Put a block file where it belongs, whatever is in it."""
        with self._lock:
            self._directories.discard(digest)
            self._blocks[digest] = StoredBlock(content, mtime)

    def remove(self, digest: str) -> None:
        """Delete a block file, if it is there."""
        with self._lock:
            self._directories.discard(digest)
            self._blocks.pop(digest, None)

    def place_directory(self, digest: str) -> None:
        """Put a directory where a block file belongs."""
        with self._lock:
            self._blocks.pop(digest, None)
            self._directories.add(digest)

    def corrupt(self, digest: str, position: int = 0) -> None:
        """Flip the lowest bit of one byte of a block; -1 is its last byte."""
        with self._lock:
            block = self._blocks[digest]
            content = bytearray(block.content)
            content[position] ^= 1
            self._blocks[digest] = StoredBlock(content, block.mtime)

    def resize(self, digest: str, size: int) -> None:
        """Cut a block file, or lengthen it with zero bytes."""
        with self._lock:
            block = self._blocks[digest]
            content = bytes(block.content[:size]).ljust(size, b"\0")
            self._blocks[digest] = StoredBlock(content, block.mtime)

    def digests(self) -> list[str]:
        """List the blocks."""
        with self._lock:
            return list(self._blocks)

    def _path(self, digest: str) -> str:
        return f"{self.root}/{digest[:3]}/{digest}"
