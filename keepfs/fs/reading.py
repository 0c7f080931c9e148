"""BlockReader: how a file of several blocks is read, and what is fetched ahead of it.

Who goes through a file in order has the next blocks fetched while they read
one; who reads here and there hasn't. For the trio thread only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from keepfs.fs.bridge import PATIENCE
from keepfs.keep.errors import Cause, KeepReadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.fs.bridge import AsyncBlocks
    from keepfs.keep.locator import KeepLocator

#: Blocks fetched ahead: so that two are received and hashed side by side.
_DEPTH = 2
#: Bytes by which a read in order may miss the end of the last: the kernel reads
#: ahead by 1 MiB, and its requests may overtake each other.
_SLACK = 4 * 1024 * 1024
#: Bytes of a block after which who reads it in order is believed to go on.
_PROOF = 2 * 1024 * 1024
#: Seconds for which a block is kept for others: some look at heads of files only.
_UNPROVEN_PATIENCE = 0.1
#: Places that are remembered of one file, for readers at different ones.
_MOST_PLACES = 64


class BlockReader:
    """Reads one file's blocks.

    Args:
        blocks: Where they are.
        locator_at: Returns the locator of a block by its number in the file;
            None where the file has none.
    """

    def __init__(
        self, blocks: AsyncBlocks, locator_at: Callable[[int], KeepLocator | None]
    ) -> None:
        self._blocks = blocks
        self._locator_at = locator_at
        # Where the last read in a block ended, by the block's number.
        self._ends: OrderedDict[int, int] = OrderedDict()
        #: The block behind which everything is on its way that is to be.
        self._fetched_ahead_of = -1

    async def read(
        self, number: int, locator: KeepLocator, size: int, begin: int, end: int
    ) -> memoryview:
        """Return bytes of one block, without a copy where it is in memory.

        Args:
            number: Of the block in the file.
            locator: Its name.
            size: Its bytes.
            begin: Where to begin in it.
            end: Where to end in it, at most `size`.

        Raises:
            KeepReadError: It couldn't be read, or hasn't that size.
        """
        in_order = self._is_in_order(number, begin, end)
        patience = PATIENCE if self._ends[number] > _PROOF else _UNPROVEN_PATIENCE
        if in_order and self._fetched_ahead_of != number:
            self._fetch_ahead(number)
        block = await self._blocks.get(locator, patience if in_order and end < size else 0.0)
        if len(block) != size:  # fewer bytes would be taken for the end
            raise KeepReadError(
                f"{locator.stripped()} has {len(block)} bytes, was said to have {size}",
                cause=Cause.CORRUPT,
            )
        return block[begin:end]

    def _is_in_order(self, number: int, begin: int, end: int) -> bool:
        last = self._ends.get(number, 0) if begin else 0  # who begins anew is in order
        in_order = abs(begin - last) <= _SLACK
        self._ends[number] = max(end, last) if in_order else end
        if len(self._ends) > _MOST_PLACES:
            self._ends.popitem(last=False)
        return in_order

    def _fetch_ahead(self, number: int) -> None:
        for ahead in range(number + 1, number + 1 + _DEPTH):
            locator = self._locator_at(ahead)
            if locator is not None and not self._blocks.fetch_ahead(locator):
                return  # there is no room now; the next read will try again
        self._fetched_ahead_of = number
