"""DiskParts: verified parts of blocks in the disk cache, without the rest of the block."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.caching.disk.disk_cache import DiskCache
    from keepfs.keep.caching.grants import Grants
    from keepfs.keep.counters import Counters
    from keepfs.keep.locator import KeepLocator


class DiskParts:
    """Reads parts of blocks from the disk cache of a client. Any thread may use it.

    Args:
        disk: The disk cache.
        grants: The locators that the services have accepted.
        counters: Count the parts that are found.
        ensure_granted: Sends a HEAD for a locator that the services have not accepted yet;
            raises KeepReadError if they refuse it or don't answer.
    """

    def __init__(
        self,
        disk: DiskCache,
        grants: Grants,
        counters: Counters,
        ensure_granted: Callable[[KeepLocator], None],
    ) -> None:
        self._disk = disk
        self._grants = grants
        self._counters = counters
        self._ensure_granted = ensure_granted

    def with_check(self, wrap: Callable[[KeepLocator, Callable[[], None]], None]) -> DiskParts:
        """Return the same parts with another way to check locators.

        Args:
            wrap: Gets a locator, and the function that checks it, which it calls.
        """
        return DiskParts(
            self._disk,
            self._grants,
            self._counters,
            lambda locator: wrap(locator, lambda: self._ensure_granted(locator)),
        )

    def get_part(self, locator: KeepLocator, begin: int, end: int, size: int) -> memoryview | None:
        """Return verified bytes of a block. Blocks.

        Args:
            locator: The block's locator.
            begin: The offset of the first byte.
            end: The offset after the last byte.
            size: The size that the block should have, in bytes.

        Returns:
            None if the block isn't on the disk: `get_block` fetches it.

        Raises:
            KeepReadError: The services refuse the locator, or don't answer.
        """
        if not self._grants.allows(locator):
            if locator.permission_expired() or not self._disk.has(locator.md5sum):
                return None
            self._ensure_granted(locator)
        return self._counted(self._disk.read_part(locator.md5sum, begin, end, size))

    def part_nowait(
        self, locator: KeepLocator, begin: int, end: int, size: int
    ) -> memoryview | None:
        """Return what `get_part` would, if no request or disk access is necessary; else None."""
        if not self._grants.allows(locator):
            return None
        return self._counted(self._disk.read_part_nowait(locator.md5sum, begin, end, size))

    def begin_part(self, locator: KeepLocator, begin: int, end: int, size: int) -> bool:
        """Start to read what `part_nowait` needs; return whether it was started. Doesn't wait."""
        folder = self._disk.folder()
        return (
            folder is not None
            and self._grants.allows(locator)
            and folder.begin_part(locator.md5sum, begin, end, size)
        )

    def is_granted(self, locator: KeepLocator) -> bool:
        """Return whether the services have accepted the locator: `get_part` does not ask them."""
        return self._grants.allows(locator)

    def is_open(self, locator: KeepLocator) -> bool:
        """Return whether a part of the block was read from the disk a moment ago."""
        folder = self._disk.folder()
        return folder is not None and folder.is_open(locator.md5sum)

    def read_on(self, locator: KeepLocator, begin: int) -> bool:
        """Read the next 16 MiB of a block into the page cache, for a sequential reader. Blocks.

        Args:
            locator: The block's locator.
            begin: The offset of the next byte that the reader needs; at the block's end
                nothing is read.

        Returns:
            Whether the block is on the disk.
        """
        folder = self._disk.folder()
        return folder is not None and folder.read_on(locator.md5sum, begin)

    def _counted(self, part: memoryview | None) -> memoryview | None:
        if part is not None:
            self._counters.gets.add(1)
            self._counters.hits.add(1)
        return part
