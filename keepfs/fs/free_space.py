"""How full the store is, as statfs says it; asked now and then only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from pyfuse3 import StatvfsData

from keepfs.fs.nodes import BLOCK_SIZE_HINT
from keepfs.fs.upload.directory import MAX_NAME

if TYPE_CHECKING:
    from keepfs.fs.blocks import AsyncBlocks

#: Seconds for which an answer is repeated: df asks often, disks answer slowly.
_AGE = 10.0
# A store of blocks has no table of inodes that could run full.
_MANY_FILES = 2**40


class FreeSpace:
    """The store's size, and what is free of it.

    Args:
        blocks: Whose store.
    """

    def __init__(self, blocks: AsyncBlocks) -> None:
        self._blocks = blocks
        self._size = self._free = 0
        self._valid_until = -1.0

    async def answer(self) -> StatvfsData:
        """Return what statfs says."""
        if trio.current_time() >= self._valid_until:
            self._size, self._free = await self._blocks.free_space()
            self._valid_until = trio.current_time() + _AGE
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = BLOCK_SIZE_HINT
        answer.f_blocks = self._size // BLOCK_SIZE_HINT
        answer.f_bfree = answer.f_bavail = self._free // BLOCK_SIZE_HINT
        answer.f_files = answer.f_ffree = answer.f_favail = _MANY_FILES
        answer.f_namemax = MAX_NAME
        return answer
