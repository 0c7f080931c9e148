"""Free space of the store, for statfs; cached for 10 s."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import trio

if TYPE_CHECKING:
    from keepfs.fs.bridge import AsyncBlocks

#: Seconds for which an answer is cached: df queries often, disks answer slowly.
_AGE = 10.0


class Space(NamedTuple):
    """The capacity of a store, in bytes.

    Attributes:
        size: The capacity.
        free: The free part of it.
    """

    size: int
    free: int


class FreeSpace:
    """The capacity and free space of a store.

    Args:
        blocks: The block store.
    """

    def __init__(self, blocks: AsyncBlocks) -> None:
        self._blocks = blocks
        self._space = Space(0, 0)
        self._valid_until = -1.0

    async def answer(self) -> Space:
        """Return the space; query the store if the last answer is older than 10 s."""
        if trio.current_time() >= self._valid_until:
            self._space = Space(*await self._blocks.free_space())
            self._valid_until = trio.current_time() + _AGE
        return self._space
