"""DiskParts: verified parts of blocks in the disk cache, without the rest of the block."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keepfs.keep.caching.disk.disk_cache import DiskCache
    from keepfs.keep.caching.grants import Grants
    from keepfs.keep.counters import Counters
    from keepfs.keep.locator import KeepLocator


class DiskParts:
    """What a client reads from its disk cache in parts. Any thread may call it.

    `_disk`, `_grants` and `counters` are those of the client.
    """

    _disk: DiskCache | None
    _grants: Grants
    counters: Counters

    def _ensure_name(self, locator: KeepLocator) -> None:
        """Ask the services about a name that they have not accepted; raises if they refuse it."""
        raise NotImplementedError

    def has_disk_cache(self) -> bool:
        """Return whether parts of blocks may be on the disk. Doesn't wait."""
        return self._disk is not None

    def get_part(self, locator: KeepLocator, begin: int, end: int, size: int) -> memoryview | None:
        """Return verified bytes of a block. Blocks.

        Args:
            locator: The block's name.
            begin: The first byte.
            end: The end of the range.
            size: The size that the block should have, in bytes.

        Returns:
            None if the block isn't on the disk: `get_block` fetches it.

        Raises:
            KeepReadError: The services refuse the name, or don't answer.
        """
        if self._disk is None:
            return None
        if not self._grants.allows(locator):
            if locator.permission_expired() or not self._disk.has(locator.md5sum):
                return None
            self._ensure_name(locator)
        return self._counted(self._disk.read_part(locator.md5sum, begin, end, size))

    def part_nowait(
        self, locator: KeepLocator, begin: int, end: int, size: int
    ) -> memoryview | None:
        """Return what `get_part` would, if nothing has to be waited for; else None."""
        if self._disk is None or not self._grants.allows(locator):
            return None
        return self._counted(self._disk.read_part_nowait(locator.md5sum, begin, end, size))

    def read_on(self, locator: KeepLocator, begin: int) -> bool:
        """Have the kernel read a block from the disk, which a reader will read in order. Blocks.

        Args:
            locator: The block's name.
            begin: The first byte that will be read; at the block's end nothing is read.

        Returns:
            Whether the block is on the disk.
        """
        return self._disk is not None and self._disk.read_on(locator.md5sum, begin)

    def _counted(self, part: memoryview | None) -> memoryview | None:
        if part is not None:
            self.counters.gets.add(1)
            self.counters.hits.add(1)
        return part
