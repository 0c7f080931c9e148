"""A file of upload/: written in any order, cut into blocks, stored when closed.

Close is no single event: dup and fork flush a file several times, a shell
flushes before the first write, and mmap writes after the last close. So
`store` may be called at any time; it does what there is to do, and later
changes are stored by later calls.
"""

from __future__ import annotations

import contextlib
import enum
import errno
from typing import TYPE_CHECKING

import trio
from pyfuse3 import FUSEError

from keepfs.fs.nodes import Changes, FileNode, Metadata, changed_metadata
from keepfs.fs.reading import BlockReader
from keepfs.fs.staged import zeros
from keepfs.fs.staging import Slot, Staging, store_slots
from keepfs.fs.version import is_whole, name_of, xattrs_of
from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from keepfs.fs.place import OnStored, Place
    from keepfs.keep.locator import KeepLocator
    from keepfs.keep.receipt import Receipt
    from keepfs.unsaved import Piece

#: Largest file, in bytes: 65,536 blocks, whose locators make 6 MB: enough for one name.
MAX_FILE_SIZE = 65536 * MAX_BLOCK_SIZE


class State(enum.Enum):
    """What `user.keep.state` says."""

    STORED = "stored"
    DIRTY = "dirty"
    STORING = "storing"
    FAILED = "failed"


class UploadFile(FileNode):
    """A file whose bytes are in Keep, or on the way there.

    Args:
        metadata: What `stat` says of it.
        staging: Where its bytes are until they are stored.
        on_stored: Called with each block's receipt and the file's metadata, once it is stored.
    """

    __slots__ = (
        "_block_size", "_changes", "_is_loaded", "_mutating", "_on_stored", "_openings",
        "_reader", "_receipts", "_size", "_slots", "_staging", "_stored", "_tried", "_unrecorded",
        "number", "place",
    )  # fmt: skip

    def __init__(self, metadata: Metadata, staging: Staging, on_stored: OnStored) -> None:
        super().__init__(metadata)
        self._staging = staging
        self._block_size = staging.block_size
        self._on_stored = on_stored
        self._size = 0
        self._slots: dict[int, Slot] = {}
        self._mutating: trio.Lock | None = None  # until it is needed, as is the next
        self._reader: BlockReader | None = None
        self._openings = 0
        # Changes so far; how many of them a store was tried for, and succeeded for.
        self._changes = 1
        self._tried = self._stored = 0
        self._receipts: tuple[Receipt, ...] = ()
        #: Whether slots and receipts are here; else the catalog has them.
        self._is_loaded = True
        #: Why what is stored isn't recorded, if that is so.
        self._unrecorded: OSError | None = None
        #: Where it is recorded; None once it has no name.
        self.place: Place | None = None
        #: The catalog's; None until a version is stored.
        self.number: int | None = None

    def take_version(self, size: int) -> None:
        """Be a file that is stored, of so many bytes, as the catalog has it."""
        self._size, self._is_loaded = size, False
        self._tried = self._stored = self._changes

    @property
    def size(self) -> int:
        """Bytes of its content."""
        return self._size

    @property
    def state(self) -> State:
        """Whether all of it is in the store."""
        if self._stored == self._changes:
            return State.STORED
        if any(slot.is_storing for slot in self._slots.values()):
            return State.STORING
        if self._failure is not None:
            return State.FAILED
        return State.DIRTY

    @property
    def needs_store(self) -> bool:
        """Whether there are changes that no store has been tried for."""
        return self.links > 0 and self._tried < self._changes

    @property
    def is_being_changed(self) -> bool:
        """Whether somebody has it open who changed it since the last attempt to store it."""
        return self._openings > 0 and self.needs_store

    @property
    def needs_saving(self) -> bool:
        """Whether it would be missed, and isn't all in the store."""
        return self.links > 0 and self._stored < self._changes

    def xattrs(self) -> Mapping[str, str]:
        """Return `user.keep.…`: the state, and the locator and copies of what is stored."""
        found = {"user.keep.state": self.state.value}
        if self._stored == self._changes:
            found |= xattrs_of(self._stored_receipts())
        elif self._failure is not None:
            found["user.keep.error"] = str(self._failure)
        return found

    @property
    def path(self) -> str:
        """The path below upload/; empty once it has no name."""
        return "" if self.place is None else self.place.path

    @property
    def error(self) -> str:
        """Why the last attempt to store it failed; empty if it didn't."""
        return "" if self._failure is None else str(self._failure)

    @property
    def version(self) -> str:
        """Name the stored version, if there is one."""
        return name_of(self._stored_receipts())

    def pieces(self) -> list[Piece]:
        """Return what the file consists of, slot by slot; staged bytes aren't copied."""
        self.load()
        slots = [self._slot(i) for i in range(max(1, -(-self._size // self._block_size)))]
        return [slot.piece() for slot in slots]

    def restore(self, metadata: Metadata, pieces: Sequence[Piece]) -> None:
        """Be the file that an earlier mount couldn't store."""
        self.load()
        for slot in self._slots.values():
            slot.drop()
        self._slots.clear()
        self._size = sum(piece.length for piece in pieces)
        for index, piece in enumerate(pieces):
            slot = self._slot(index)
            slot.restore(piece)
        self.metadata = metadata
        self._changes += 1
        self._staging.failed.add(self)

    @property
    def may_change(self) -> bool:
        """It may."""
        return True

    def check_open(self, flags: int) -> None:
        """Allow every way of opening it."""

    def opened(self) -> None:
        """Count an opening."""
        self._openings += 1

    def closed(self) -> None:
        """Count an opening less; the last one of a removed file lets its bytes go."""
        self._openings -= 1
        self._discard_if_unreachable()
        self._rest()

    def forgotten(self) -> None:
        """Leave memory, if the catalog has all of it and nobody has it open."""
        if self.place is not None and not self._openings and not self.needs_saving:
            self.place.leave()

    def removed(self) -> None:
        """Note that no directory names it any more."""
        self.links = 0
        self.metadata.changed()
        self._staging.failed.discard(self)
        self._discard_if_unreachable()

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return the bytes there are from `offset` on, written but unstored ones included."""
        self.load()
        end = min(offset + size, self._size)
        pieces = [
            await self._read_slot(index, begin, stop)
            for index, begin, stop in self._cut(offset, end)
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _read_slot(self, index: int, begin: int, end: int) -> bytes | memoryview:
        slot = self._slots.get(index)
        if slot is None:
            return zeros(end - begin)
        locator = slot.locator
        if locator is None or locator.size is None or locator.size < end:
            return await slot.read(begin, end)
        if self._reader is None:
            self._reader = BlockReader(self._staging.blocks, self._locator_at)
        return await self._reader.read(index, locator, locator.size, begin, end)

    def _locator_at(self, index: int) -> KeepLocator | None:
        slot = self._slots.get(index)
        return None if slot is None else slot.locator

    async def write(self, offset: int, content: bytes) -> None:
        """Put bytes at `offset`; a whole block leaves for the store at once.

        Raises:
            FUSEError: EFBIG, the file would be larger than a file may be.
            KeepWriteError: There is no room for the bytes, since storing failed.
        """
        end = offset + len(content)
        if end > MAX_FILE_SIZE:
            raise FUSEError(errno.EFBIG)
        view = memoryview(content)
        async with self._changing():
            for index, begin, stop in self._cut(offset, end):
                slot = self._slot(index)
                taken = index * self._block_size + begin - offset
                await slot.write(begin, view[taken : taken + stop - begin])
                self._extend(index * self._block_size + begin)
                self._size = max(self._size, index * self._block_size + stop)
                self._changed()
                if stop == self._block_size and slot.is_full:
                    slot.start_storing()

    async def truncate(self, size: int) -> None:
        """Set the size; a longer file ends in zeros.

        Raises:
            FUSEError: EFBIG, the size is larger than a file may be.
            KeepReadError: The block that is cut can't be read.
        """
        if size > MAX_FILE_SIZE:
            raise FUSEError(errno.EFBIG)
        async with self._changing():
            if size == self._size:
                self.metadata.changed(content=True)
                # Nothing is stored anew, so nothing else would record the time.
                if self.place is not None:
                    self.place.record_metadata(self.number, self.metadata)
                return
            self._extend(size)
            if size < self._size:
                last, length = divmod(size, self._block_size)
                if length and last in self._slots:
                    await self._slots[last].cut(length)
                for index in [i for i in self._slots if i * self._block_size >= size]:
                    self._slots.pop(index).drop()
                self._size = size
            self._changed()

    async def store(self) -> None:
        """Return when everything written before is stored with the wanted copies.

        Without changes since the last store there is nothing to do; a removed
        file is not stored, as nobody could find it.

        Raises:
            KeepWriteError: A block isn't stored. All bytes are kept, and the
                next call tries again.
        """
        wanted = self._changes
        if self._stored >= wanted or not self.links:
            return
        slots = [self._slot(i) for i in range(max(1, -(-self._size // self._block_size)))]
        try:
            receipts = await store_slots(slots)
        except Exception:
            self._tried = max(self._tried, wanted)
            if self.links:
                self._staging.failed.add(self)
            raise
        # Not before: who gave up waiting hasn't tried, and release does it again.
        self._tried = max(self._tried, wanted)
        whole = is_whole(receipts, len(slots), self._block_size)
        if not self.links or self._stored >= wanted or not whole:
            return  # removed or cut meanwhile, or another has stored it
        if self.place is not None:
            try:
                self.place.record_version(self, receipts)
            except OSError as error:
                self._unrecorded = error.with_traceback(None)
                self._staging.failed.add(self)
                raise
        self._unrecorded = None
        self._stored, self._receipts = wanted, tuple(receipts)
        if self._stored == self._changes:
            self._staging.failed.discard(self)
        for receipt in receipts:
            self._on_stored(receipt, self.metadata)

    async def change(self, changes: Changes) -> None:
        """Do what a setattr asks for; the owner stays who it is.

        Raises:
            FUSEError: EPERM, another owner is asked for.
        """
        metadata = changed_metadata(self.metadata, changes)
        if changes.size is not None:
            await self.truncate(changes.size)
            metadata = changed_metadata(self.metadata, changes)
        if self.place is not None:
            self.place.record_metadata(self.number, metadata)
        self.metadata = metadata
        if changes.size is not None and not self._openings:  # truncate(2): no close will follow
            await self.store()

    async def sync(self) -> None:
        """Return when what `store` recorded survives a power cut."""
        if self.place is not None:
            await self._staging.blocks.run(self.place.sync)

    @contextlib.asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """Have the slots for oneself; only stores go on."""
        self._mutating = self._mutating or trio.Lock()
        async with self._mutating:
            self.load()
            try:
                yield
            finally:
                self._discard_if_unreachable()  # removed meanwhile

    def load(self) -> None:
        """Have the slots of the stored version here, whatever becomes of the catalog's entry."""
        if self._is_loaded:
            return
        self._receipts = self._stored_receipts()
        self._is_loaded = True
        for index, receipt in enumerate(self._receipts):
            self._slot(index).receipt = receipt

    def _stored_receipts(self) -> tuple[Receipt, ...]:
        """Return the stored version's receipts, from here or from the catalog."""
        if self._is_loaded or self.place is None:
            return self._receipts
        return self.place.receipts(self.number)

    def _rest(self) -> None:
        """Let go of slots and receipts, if the catalog has them and nobody uses them."""
        is_changing = self._mutating is not None and self._mutating.locked()
        if self._openings or self.needs_saving or self.number is None or is_changing:
            return
        if all(slot.is_stored and not slot.is_storing for slot in self._slots.values()):
            self._slots, self._receipts, self._mutating, self._reader = {}, (), None, None
            self._is_loaded = False

    @property
    def _failure(self) -> Exception | None:
        failures = [slot.failure for slot in self._slots.values()]
        return next((it for it in [*failures, self._unrecorded] if it is not None), None)

    def _cut(self, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Cut a range at block borders: (slot's number, begin and end in the slot)."""
        while offset < end:
            index, begin = divmod(offset, self._block_size)
            stop = min(self._block_size, begin + end - offset)
            yield index, begin, stop
            offset += stop - begin

    def _slot(self, index: int) -> Slot:
        slot = self._slots.get(index)
        if slot is None:
            length = min(max(self._size - index * self._block_size, 0), self._block_size)
            slot = self._slots[index] = Slot(self._staging, length)
        return slot

    def _extend(self, size: int) -> None:
        """Let the file end in zeros up to `size`, if it is shorter."""
        if size > self._size:
            for index, slot in self._slots.items():
                slot.extend(min(max(size - index * self._block_size, 0), self._block_size))
            self._size = size

    def _changed(self) -> None:
        self._changes += 1
        self.metadata.changed(content=True)

    def _discard_if_unreachable(self) -> None:
        if not self.links and self._openings <= 0:
            for slot in self._slots.values():
                slot.drop()
