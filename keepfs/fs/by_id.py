"""by_id/: a locator, or several joined by commas, is the name of a file.

A name that isn't a locator fails at once. The store is queried for a locator
until its block was seen. After that, everything but the bytes follows from the
name, until its signature expires.

A listing shows names that were found or uploaded; each user sees those that the user
has looked up or may read in upload/.

For the trio thread only.
"""

from __future__ import annotations

import bisect
import collections
import errno
import itertools
import re
import time
from typing import TYPE_CHECKING

from keepfs.fs.errnos import RefusedError
from keepfs.fs.lookups import Lookups
from keepfs.fs.nodes import (
    ENDLESS,
    TIMELESS_NS,
    Attributes,
    Caller,
    DirectoryNode,
    FileNode,
    Metadata,
    Node,
    Validity,
    file_mode,
)
from keepfs.fs.owners import Owners
from keepfs.fs.reading import BlockReader
from keepfs.keep.errors import Cause, KeepReadError
from keepfs.keep.locator import MAX_BLOCK_SIZE, KeepLocator, parse_list

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from keepfs.fs.bridge import AsyncBlocks
    from keepfs.fs.known_signatures import KnownSignatures
    from keepfs.keep.store import Receipt

#: Seconds for which the kernel caches that a name wasn't found: the block may be
#: stored at any time.
NOT_FOUND_TIMEOUT = 1.0
#: Seconds for which the kernel caches a name whose block was not seen yet.
TRUSTED_TIMEOUT = 2.0
#: Seconds for which the kernel caches the permissions of an uploaded block: they follow those
#: of its file, which may change.
UPLOADED_TIMEOUT = 1.0
#: Any hint of a locator except the size. Signatures are secrets of their user.
_HINTS = re.compile(r"\+[A-Z][^+,]*")
#: Most names listed, those used last. They take 2 MB of memory.
MAX_KNOWN_NAMES = 10_000


class BlockFile(FileNode):
    """One block, or several joined, as a file.

    Args:
        locators: The locators of the blocks, in order.
        sizes: The size of each, in bytes.
        blocks: The block store.
        owner: Its user and group are used, unless the block was uploaded.
        owners: The owners of uploaded blocks.

    Attributes:
        is_seen: Whether the store has confirmed that it has the first block.
    """

    def __init__(
        self,
        locators: tuple[KeepLocator, ...],
        sizes: tuple[int, ...],
        blocks: AsyncBlocks,
        owner: Metadata,
        owners: Owners,
    ) -> None:
        super().__init__(Metadata(file_mode(0o444), owner.uid, owner.gid, TIMELESS_NS))
        self.is_seen = False
        self._owners = owners
        self._finders: set[int] = set()
        self._blocks = blocks
        self._reader = BlockReader(blocks, self._locator_at)
        self._locators = locators
        self._sizes = sizes
        #: The offset at which each block ends.
        self._ends = list(itertools.accumulate(sizes))

    @property
    def mount_path(self) -> str:
        """The path from the mount's root, without signatures."""
        return "by_id/" + ",".join(each.stripped() for each in self._locators)

    @property
    def size(self) -> int:
        """Bytes of all its blocks."""
        return self._ends[-1]

    def xattrs(self) -> Mapping[str, str]:
        """Return `user.keep.…`: the locator, the services that sent it, the signature's expiry."""
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

    @property
    def is_current(self) -> bool:
        """Whether no request is needed: the block was seen and no signature has expired."""
        return self.is_seen and not any(it.permission_expired() for it in self._locators)

    def attributes(self) -> Attributes:
        """Return the attributes, valid until a signature expires.

        2 s if the block wasn't seen; 1 s for the permissions of an uploaded block.
        """
        uploaded = self._owners.metadata(self._locators)
        if uploaded is not None:
            self.metadata = uploaded
        attributes = super().attributes()
        if not self.is_current:
            return attributes._replace(validity=Validity(TRUSTED_TIMEOUT, TRUSTED_TIMEOUT))
        ends = [it.perm_expiry.timestamp() for it in self._locators if it.perm_expiry is not None]
        now = time.time_ns() / 1e9
        entry = min([ENDLESS, *(max(0.0, end - now) for end in ends)])
        return attributes._replace(
            validity=Validity(entry, ENDLESS if uploaded is None else UPLOADED_TIMEOUT)
        )

    def use(self, locators: tuple[KeepLocator, ...]) -> None:
        """Use these locators of the same blocks from now on; their signatures may be newer."""
        self._locators = locators

    def found_by(self, caller: Caller) -> None:
        """Record that the caller looked it up or opened it."""
        self._finders.add(caller.uid)

    def is_listed_for(self, caller: Caller) -> bool:
        """Return whether the caller looked it up, or may read its blocks' files in upload/."""
        return (
            caller.uid == 0
            or caller.uid in self._finders
            or self._owners.may_all_be_read(self._locators, caller)
        )

    def read_nowait(self, offset: int, size: int) -> memoryview | None:
        """Return what `read` would, if it is of one block in memory; else None."""
        end = min(offset + size, self.size)
        index = bisect.bisect_right(self._ends, offset)
        if offset >= end or end > self._ends[index]:
            return None
        begin = self._ends[index] - self._sizes[index]
        content = self._reader.read_nowait(
            index, self._locators[index], self._sizes[index], offset - begin, end - begin
        )
        if content is not None and index == 0:
            self.is_seen = True
        return content

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return the bytes from `offset` on, `size` at most, from verified blocks."""
        try:
            content = await self._read(offset, size)
        except KeepReadError as error:
            if error.cause in {Cause.NOT_FOUND, Cause.DENIED}:
                self.is_seen = False
            raise
        if content and offset < self._ends[0]:
            self.is_seen = True
        return content

    async def _read(self, offset: int, size: int) -> bytes | memoryview:
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
        metadata: Its owner, mode and times.
        blocks: The block store.
        lookups: Looks names up; None for `Lookups` with its defaults.
        signatures: Signatures for names without one. None: such names are requested unsigned,
            which services that sign refuse.
    """

    def __init__(
        self,
        metadata: Metadata,
        blocks: AsyncBlocks,
        lookups: Lookups | None = None,
        *,
        signatures: KnownSignatures | None = None,
    ) -> None:
        super().__init__(metadata)
        self._blocks = blocks
        self._lookups = lookups or Lookups(blocks)
        self._signatures = signatures
        self._owners = Owners(Metadata(file_mode(0o444), metadata.uid, metadata.gid, TIMELESS_NS))
        self._known: collections.OrderedDict[str, BlockFile] = collections.OrderedDict()

    @property
    def mount_path(self) -> str:
        """The path from the mount's root."""
        return "by_id"

    def path_of_entry(self, name: str) -> str:
        """Return the path of a name in it, without signatures and other hints."""
        return f"by_id/{_HINTS.sub('', name)}"

    @property
    def not_found_timeout(self) -> float:
        """Seconds for which the kernel may cache that a name wasn't found."""
        return NOT_FOUND_TIMEOUT

    def lookup_nowait(self, name: str) -> Node | None:
        """Return a block that was seen before, if its signature hasn't expired; else None."""
        known = self._known.get(name)
        if known is None or not known.is_current:
            return None
        self._known.move_to_end(name)
        return known

    async def lookup(self, name: str) -> Node:
        """Find a block by its locator; if it was seen before, without a request.

        Raises:
            RefusedError: ENOENT, the name isn't a locator.
            KeepReadError: No service has the block, or they refuse the locator.
        """
        current = self.lookup_nowait(name)
        if current is not None:
            return current
        known = self._known.get(name)
        try:
            locators = parse_list(name)
        except ValueError:
            raise RefusedError(errno.ENOENT) from None
        if any(each.size is not None and each.size > MAX_BLOCK_SIZE for each in locators):
            raise RefusedError(errno.ENOENT)
        if self._signatures is not None:
            locators = tuple(map(self._signatures.signed, locators))
        try:
            # Of a list only the first block is fetched, and the size of blocks without one is
            # requested: all blocks might fill the cache.
            findings = [
                await self._lookups.find(locator)
                for number, locator in enumerate(locators)
                if number == 0 or locator.size is None
            ]
        except KeepReadError as error:
            if known is not None and error.cause in {Cause.NOT_FOUND, Cause.DENIED}:
                self._known.pop(name, None)
            raise
        asked = iter(findings)
        sizes = tuple(
            next(asked).size if number == 0 or locator.size is None else locator.size
            for number, locator in enumerate(locators)
        )
        file = self._remember(name, locators, sizes)
        file.use(locators)
        file.is_seen = file.is_seen or findings[0].is_seen
        if findings[0].is_seen:
            self._note(locators[0])
        self._known.move_to_end(name)
        return file

    def names(self) -> Iterable[str]:
        """Return the names that were found or uploaded; sends no request."""
        return list(self._known)

    def entry_nowait(self, name: str) -> Node | None:
        """Return the file of a block that was found before, or None."""
        return self._known.get(name)

    def stored(self, receipt: Receipt, file: Metadata) -> None:
        """Record a block that was stored, or whose file changed its permissions.

        Args:
            receipt: The block's receipt.
            file: Owner and mode of the file in upload/ that has the block.
        """
        locator = receipt.locator
        if locator.size is None:
            return
        name = str(locator)
        self._owners.add(locator, file)
        self._note(locator)
        self._remember(name, (locator,), (locator.size,)).is_seen = True

    def _note(self, locator: KeepLocator) -> None:
        if self._signatures is not None:
            self._signatures.add(locator)

    def _remember(
        self, name: str, locators: tuple[KeepLocator, ...], sizes: tuple[int, ...]
    ) -> BlockFile:
        # A concurrent lookup may have made the file: a name must have one inode.
        file = self._known.get(name)
        if file is None:
            file = BlockFile(locators, sizes, self._blocks, self.metadata, self._owners)
            self._known[name] = file
            if len(self._known) > MAX_KNOWN_NAMES:
                self._known.popitem(last=False)
        return file
