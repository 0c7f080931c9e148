"""BlockStore: the interface of the file system to a store of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from keepfs.keep.locator import KeepLocator
    from keepfs.keep.store import Receipt


class BlockParts(Protocol):
    """The interface of the file system to a disk cache. Any thread may use it."""

    def get_part(self, locator: KeepLocator, begin: int, end: int, size: int) -> memoryview | None:
        """Return verified bytes of a block from the disk, or None if it isn't there.

        `size`: the size that the block should have, in bytes.
        """

    def part_nowait(
        self, locator: KeepLocator, begin: int, end: int, size: int
    ) -> memoryview | None:
        """Return what `get_part` would, if no request or disk access is necessary; else None."""

    def begin_part(self, locator: KeepLocator, begin: int, end: int, size: int) -> bool:
        """Start to read a small part from the disk, for `part_nowait`, without waiting for it.

        Returns whether it was started: False if `get_part` is faster, or has to send a request.
        """

    def is_granted(self, locator: KeepLocator) -> bool:
        """Return whether `get_part` needs no request to a service; doesn't wait."""

    def is_open(self, locator: KeepLocator) -> bool:
        """Return whether a part of the block was read from the disk a moment ago; doesn't wait."""

    def read_on(self, locator: KeepLocator, begin: int) -> bool:
        """Read on in a block on the disk, into the page cache; return whether it is there."""


class BlockStore(Protocol):
    """The store interface of the file system. Calls may block; any thread may make them.

    A call that fails raises KeepRequestError.
    """

    def cached_block(
        self, locator: KeepLocator, keep_for: float | None = 0.0
    ) -> memoryview | None:
        """Return a verified block from the cache without waiting, else None.

        `keep_for`: seconds for which the caller expects to continue reading it; None if the
        caller only checks for it, which doesn't count as a read.
        """

    def release(self, locator: KeepLocator) -> None:
        """End the effect of `keep_for` on a cached block, when its reader has left it."""

    @property
    def disk_parts(self) -> BlockParts | None:
        """Reads parts of blocks from the disk cache; None without one."""

    def has_room(self, size: int) -> bool:
        """Return whether a block of `size` bytes can be fetched without waiting for memory."""

    def get_block(self, locator: KeepLocator) -> memoryview:
        """Return a verified block."""

    def services_of(self, locator: KeepLocator) -> tuple[str, ...]:
        """Return the services known to have sent or confirmed a block, without waiting."""

    def head_block(self, locator: KeepLocator) -> int:
        """Return the size of a stored block, in bytes."""

    def lookup_wait(self, most: float) -> float:
        """Return the seconds that a lookup should wait, `most` at most. Doesn't block."""

    def probe_block(self, locator: KeepLocator, wait: float) -> int | None:
        """Start to fetch a block; return its size once a service has confirmed it.

        None if no service has answered after `wait` seconds.
        """

    def put_block(
        self, block: Buffer, copies: int, *, locator: KeepLocator | None = None
    ) -> Receipt:
        """Store a block, which must not change meanwhile; `locator`: its locator if known."""

    def free_space(self) -> tuple[int, int]:
        """Return the store's capacity and free space, in bytes."""
