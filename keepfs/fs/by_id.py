"""by_id/: any locator is the name of a file, and so are several joined by commas.

A name that isn't a locator is answered at once. One that is, is asked for
once; after that everything but the bytes is known from the name alone, and
never changes. The listing shows the names that were found.

For the trio thread only.
"""

from __future__ import annotations

import bisect
import collections
import errno
import itertools
from typing import TYPE_CHECKING

from pyfuse3 import FUSEError

from keepfs.fs.nodes import DirectoryNode, FileNode, Metadata, Node, file_mode
from keepfs.fs.reading import BlockReader
from keepfs.keep.locator import MAX_BLOCK_SIZE, KeepLocator, parse_list

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from keepfs.fs.blocks import AsyncBlocks
    from keepfs.keep.receipt import Receipt

#: Seconds for which the kernel remembers that a name wasn't found: it may be
#: stored any moment.
NOT_FOUND_TIMEOUT = 1.0
#: Names listed at most, the ones found last; 2 MB of memory.
MAX_KNOWN_NAMES = 10_000

# Blocks have no time of their own. The first that every archive format can
# hold (1980-01-01 UTC): a moving one would make the kernel drop its pages.
_TIME_NS = 315_532_800 * 10**9


class BlockFile(FileNode):
    """One block, or several joined, as a file.

    Args:
        locators: Of the blocks, in order.
        sizes: Bytes of each.
        blocks: Where the blocks are.
        owner: Whose user and group it has.
    """

    def __init__(
        self,
        locators: tuple[KeepLocator, ...],
        sizes: tuple[int, ...],
        blocks: AsyncBlocks,
        owner: Metadata,
    ) -> None:
        super().__init__(Metadata(file_mode(0o444), owner.uid, owner.gid, _TIME_NS))
        self._blocks = blocks
        self._reader = BlockReader(blocks, self._locator_at)
        self._locators = locators
        self._sizes = sizes
        #: Where each block ends.
        self._ends = list(itertools.accumulate(sizes))

    @property
    def size(self) -> int:
        """Bytes of all its blocks."""
        return self._ends[-1]

    def xattrs(self) -> Mapping[str, str]:
        """Return `user.keep.…`: the locator, who sent it, and when its signature ends."""
        found = {
            "user.keep.state": "stored",
            "user.keep.locator": ",".join(map(str, self._locators)),
        }
        expiries = [each.perm_expiry for each in self._locators if each.perm_expiry is not None]
        if expiries:
            found["user.keep.expires"] = min(expiries).isoformat()
        senders = dict.fromkeys(
            name for each in self._locators for name in self._blocks.services_of(each)
        )
        if senders:
            found["user.keep.services"] = " ".join(senders)
        return found

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return the bytes there are from `offset` on, out of verified blocks."""
        end = min(offset + size, self.size)
        pieces = []
        while offset < end:
            index = bisect.bisect_right(self._ends, offset)
            begin = self._ends[index] - self._sizes[index]
            stop = min(end, self._ends[index])
            pieces.append(
                await self._reader.read(
                    index,
                    self._locators[index],
                    self._sizes[index],
                    offset - begin,
                    stop - begin,
                )
            )
            offset = stop
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _locator_at(self, number: int) -> KeepLocator | None:
        return self._locators[number] if number < len(self._locators) else None


class ByIdDirectory(DirectoryNode):
    """The directory of all blocks.

    Args:
        metadata: What `stat` says of it.
        blocks: Where the blocks are.
    """

    def __init__(self, metadata: Metadata, blocks: AsyncBlocks) -> None:
        super().__init__(metadata)
        self._blocks = blocks
        self._known: collections.OrderedDict[str, BlockFile] = collections.OrderedDict()

    @property
    def not_found_timeout(self) -> float:
        """Seconds for which the kernel may remember that a name wasn't found."""
        return NOT_FOUND_TIMEOUT

    async def lookup(self, name: str) -> Node:
        """Find a block by its locator; one that was found before without asking.

        Raises:
            FUSEError: ENOENT, the name isn't a locator.
            KeepReadError: No service has the block, or they couldn't say.
        """
        known = self._known.get(name)
        if known is not None:
            self._known.move_to_end(name)
            return known
        try:
            locators = parse_list(name)
        except ValueError:
            raise FUSEError(errno.ENOENT) from None
        if any(each.size is not None and each.size > MAX_BLOCK_SIZE for each in locators):
            raise FUSEError(errno.ENOENT)
        # Of a list the first block tells: fetching all of it might fill the cache.
        sizes = [
            await self._blocks.find(locator)
            if number == 0 or locator.size is None
            else locator.size
            for number, locator in enumerate(locators)
        ]
        return self._remember(name, locators, tuple(sizes))

    def names(self) -> Iterable[str]:
        """Return the names that were found, or uploaded; nobody is asked."""
        return list(self._known)

    def entry_nowait(self, name: str) -> Node | None:
        """Return a block that was found before, or None."""
        return self._known.get(name)

    def stored(self, receipt: Receipt) -> None:
        """Note a block that has just been stored."""
        locator = receipt.locator
        if str(locator) not in self._known and locator.size is not None:
            self._remember(str(locator), (locator,), (locator.size,))

    def _remember(
        self, name: str, locators: tuple[KeepLocator, ...], sizes: tuple[int, ...]
    ) -> BlockFile:
        # Another lookup of the name may have come first: the kernel is to see one file.
        file = self._known.get(name)
        if file is None:
            file = BlockFile(locators, sizes, self._blocks, self.metadata)
            self._known[name] = file
            if len(self._known) > MAX_KNOWN_NAMES:
                self._known.popitem(last=False)
        return file
