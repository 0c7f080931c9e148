"""BlockReader: reads of a file of several blocks, with read-ahead.

Sequential readers get read-ahead; random readers do not. If the kernel has cached most pages
of the file, only reads of the other pages arrive here. A sequential reader is then recognized
by the consecutive blocks that it reads from.
For the trio thread only.
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

#: Number of blocks fetched ahead: two are received and hashed concurrently.
_DEPTH = 2
#: Bytes by which a sequential read may miss the end of the last: the kernel reads
#: ahead by 1 MiB, and its requests may arrive out of order.
SLACK = 4 * 1024 * 1024
#: Bytes read of a block after which a sequential reader is expected to continue.
_PROOF = 2 * 1024 * 1024
#: Bytes after which the disk is asked again to read ahead of a sequential reader.
_STRIDE = 8 * 1024 * 1024
#: Bytes read in order after which the disk reads ahead: small reads near each other, which a
#: random reader makes too, are no stream.
_STREAM = 512 * 1024
#: Seconds for which a block is kept for a reader before `_PROOF` bytes were read: some
#: programs read only the beginnings of files.
_UNPROVEN_PATIENCE = 0.1
#: Consecutive blocks, of which any part was read, that make a sequential reader.
_RUN = 3
#: Most read positions recorded for one file, for concurrent readers.
_MOST_PLACES = 64


class BlockReader:
    """Reads one file's blocks.

    Args:
        blocks: The block store.
        locator_at: Returns the locator of a block by its number in the file, or
            None if there is no such block. It may have blocks after those of the file, that
            are fetched ahead for the reader of the next file.
    """

    def __init__(
        self, blocks: AsyncBlocks, locator_at: Callable[[int], KeepLocator | None]
    ) -> None:
        self._blocks = blocks
        self._locator_at = locator_at
        # The end of the last read in a block, by the block's number.
        self._ends: OrderedDict[int, int] = OrderedDict()
        #: The block whose read-ahead was started last.
        self._fetched_ahead_of = -1
        # Bytes read in order since the last read that was not.
        self._streamed = 0
        # The block entered last, and the number of consecutive blocks up to it.
        self._current = self._run = -1
        # Blocks that the cache keeps for readers of this file, as far as known; and those
        # of them that were fetched ahead and not read yet.
        self._kept: OrderedDict[int, KeepLocator] = OrderedDict()
        self._unread: set[int] = set()

    def read_nowait(
        self, number: int, locator: KeepLocator, size: int, begin: int, end: int
    ) -> memoryview | None:
        """Return what `read` would, if the bytes are in memory; else None. Arguments as there."""
        part = self._blocks.part_nowait(locator, begin, end, size)
        if part is not None:
            keep_for = self._note(number, locator, size, begin, end)
            self._blocks.note_read(locator, keep_for)
            self._read_on(locator, begin, end)
        return part

    async def read(
        self, number: int, locator: KeepLocator, size: int, begin: int, end: int
    ) -> memoryview:
        """Return bytes of one block, as a view into the cached block.

        Args:
            number: The block's number in the file.
            locator: Its locator.
            size: Its size, in bytes.
            begin: The first byte to return.
            end: The end of the range, at most `size`.

        Raises:
            KeepReadError: It couldn't be read, or has another size.
        """
        keep_for = self._note(number, locator, size, begin, end)
        self._read_on(locator, begin, end)
        part = await self._blocks.get_part(locator, begin, end, size, keep_for)
        if part is not None:
            return part
        block = await self._blocks.get(locator, keep_for)
        if len(block) != size:  # fewer bytes would mean the end of the file
            raise KeepReadError(
                f"{locator.stripped()} has {len(block)} bytes, expected {size}",
                cause=Cause.CORRUPT,
            )
        return block[begin:end]

    def fetch_ahead_again(self) -> None:
        """Ask `locator_at` again at the next sequential read: more blocks may follow now."""
        self._fetched_ahead_of = -1

    def _note(self, number: int, locator: KeepLocator, size: int, begin: int, end: int) -> float:
        """Record a read; return the seconds for which its block should be kept."""
        if number != self._current:
            self._enter(number)
        in_order = self._is_in_order(number, begin, end)
        if not in_order and self._run < _RUN:
            return 0.0
        self._go_on(number, locator)
        if end >= size:
            return 0.0
        return PATIENCE if in_order and self._ends[number] > _PROOF else _UNPROVEN_PATIENCE

    def _read_on(self, locator: KeepLocator, begin: int, end: int) -> None:
        """Have the disk read ahead in a block that is read as a stream."""
        if self._streamed > _STREAM and (not begin or begin // _STRIDE != end // _STRIDE):
            self._blocks.read_on(locator, end)

    def _go_on(self, number: int, locator: KeepLocator) -> None:
        """Fetch the next blocks, and keep this one: its reader is sequential."""
        if self._fetched_ahead_of != number:
            self._fetch_ahead(number)
        self._keep(number, locator, is_read=True)

    def _enter(self, number: int) -> None:
        """Record the first read of a block, and release the blocks that its reader has left.

        The block before it and the block of the last read are kept, since reads of their ends
        may arrive later. If the block was not fetched ahead, only blocks that were fetched
        ahead elsewhere and not read are released.
        """
        if number in self._kept and number not in self._unread:
            return  # concurrent readers alternate
        previous, self._current = self._current, number
        self._run = self._run + 1 if number == previous + 1 else 1
        if number in self._kept:
            passed = [*range(number - 1 - _DEPTH, number - 1)]
        else:  # the kernel had cached the blocks fetched ahead, or this is another reader
            ahead = range(number - 1, number + 1 + _DEPTH)
            passed = [each for each in self._unread if each not in ahead]
        for each in passed:
            locator = self._kept.pop(each, None) if each != previous else None
            self._unread.discard(each)
            if locator is not None:
                self._blocks.release(locator)

    def _keep(self, number: int, locator: KeepLocator, *, is_read: bool) -> None:
        if is_read:
            self._unread.discard(number)
        elif number not in self._kept:
            self._unread.add(number)
        self._kept[number] = locator
        self._kept.move_to_end(number)
        if len(self._kept) > _MOST_PLACES:
            self._unread.discard(self._kept.popitem(last=False)[0])

    def _is_in_order(self, number: int, begin: int, end: int) -> bool:
        last = self._ends.get(number, 0) if begin else 0  # a read at 0 is sequential
        in_order = abs(begin - last) <= SLACK
        self._streamed = self._streamed + end - begin if in_order else 0
        self._ends[number] = max(end, last) if in_order else end
        if len(self._ends) > _MOST_PLACES:
            self._ends.popitem(last=False)
        return in_order

    def _fetch_ahead(self, number: int) -> None:
        for ahead in range(number + 1, number + 1 + _DEPTH):
            locator = self._locator_at(ahead)
            if locator is not None and not self._blocks.fetch_ahead(
                locator, streams=self._streamed > _STREAM
            ):
                return  # no memory now; the next read retries
            if locator is not None:
                self._keep(ahead, locator, is_read=False)
        self._fetched_ahead_of = number
