"""A file of upload/: written in any order, cut into blocks, stored when closed.

Close is no single event: dup and fork flush a file several times, a shell
flushes before the first write, and mmap writes after the last close. So
`store` may be called at any time; it does what there is to do, and later
changes are stored by later calls.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from typing import TYPE_CHECKING

import trio

from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import Changes, Metadata, changed_metadata
from keepfs.fs.reading import BlockReader
from keepfs.fs.upload.slot import Slot, store_slots
from keepfs.fs.upload.staged import zeros
from keepfs.fs.upload.storing import StoringFile
from keepfs.fs.upload.unsaved import Piece
from keepfs.fs.upload.version import distinct, is_whole, name_of, xattrs_of
from keepfs.keep.errors import KeepWriteError
from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from keepfs.fs.upload.place import OnStored, Place, Spilled
    from keepfs.fs.upload.staging import Staging
    from keepfs.keep.locator import KeepLocator
    from keepfs.keep.store import Receipt

#: Largest file, in bytes: 65,536 blocks, whose locators make 6 MB: enough for one name.
MAX_FILE_SIZE = 65536 * MAX_BLOCK_SIZE


class UploadFile(StoringFile):
    """A file whose bytes are in Keep, or on the way there.

    Args:
        metadata: What `stat` says of it.
        staging: Where its bytes are until they are stored.
        on_stored: Called with each block's receipt and the file's metadata, once it is stored.
    """

    __slots__ = (
        "_base", "_block_size", "_cuts", "_is_loaded", "_mutating", "_on_stored", "_reader",
        "_receipts", "_size", "_slots", "_staging", "number", "place", "spilled",
    )  # fmt: skip

    def __init__(self, metadata: Metadata, staging: Staging, on_stored: OnStored) -> None:
        super().__init__(metadata, staging.blocks, staging.failed)
        self._staging = staging
        self._block_size = staging.block_size
        self._on_stored = on_stored
        self._size = 0
        #: Those that were used; the others are in `_base`, or holes.
        self._slots: dict[int, Slot] = {}
        #: The stored blocks of the slots that aren't in `_slots`. Only the last may be shorter
        #: than its slot: zeros follow.
        self._base: tuple[Receipt, ...] = ()
        #: How often the file was cut.
        self._cuts = 0
        self._mutating: trio.Lock | None = None  # until it is needed, as is the next
        self._reader: BlockReader | None = None
        self._receipts: tuple[Receipt, ...] = ()
        #: Whether slots and receipts are here; else the catalog has them.
        self._is_loaded = True
        #: Where it is recorded; None once it has no name.
        self.place: Place | None = None
        #: The catalog's; None until a version is stored.
        self.number: int | None = None
        #: The spill record that has its unstored bytes, if there is one.
        self.spilled: Spilled | None = None

    def take_version(self, size: int) -> None:
        """Be a file that is stored, of so many bytes, as the catalog has it."""
        self._size, self._is_loaded = size, False
        self._tried = self._stored = self._changes

    @property
    def size(self) -> int:
        """Bytes of its content."""
        return self._size

    @property
    def failure(self) -> Exception | None:
        """Why the last attempt to store it, or one of its blocks, failed; or None."""
        if self._failure is not None:
            return self._failure
        failures = (slot.failure for slot in self._slots.values())
        return next((each for each in failures if each is not None), None)

    @property
    def is_overwriting(self) -> bool:
        """Whether a stored version has its name in the catalog; True where it can't be read."""
        try:
            return self.place is not None and self.place.has_version
        except OSError:
            return True

    @property
    def is_half_written(self) -> bool:
        """Whether storing it now would replace its stored version by half of a new one."""
        return self.is_being_changed and self.is_overwriting

    def xattrs(self) -> Mapping[str, str]:
        """Return `user.keep.…`: the state, and the locator and copies of what is stored."""
        found = {"user.keep.state": self.state.value}
        if self._stored == self._changes:
            found |= xattrs_of(self._stored_receipts())
        elif self.failure is not None:
            found["user.keep.error"] = self.error
        return found

    @property
    def path(self) -> str:
        """The path below upload/; empty once it has no name."""
        return "" if self.place is None else self.place.path

    @property
    def version(self) -> str:
        """Name the stored version that the catalog has under its name; empty without one.

        A damaged entry of the catalog is no version that there is.
        """
        try:
            return "" if self.place is None else name_of(self.place.version())
        except OSError:
            return "damaged"

    def pieces(self) -> list[Piece]:
        """Return what the file consists of, slot by slot; staged bytes aren't copied."""
        self.load()
        count = self._slot_count()
        whole = {id(it): Piece(self._block_size, it) for it in distinct(self._base)}
        pieces = [whole[id(receipt)] for receipt in self._base]
        pieces += [Piece(self._block_size)] * (count - len(pieces))
        for index, slot in self._used_slots(count).items():
            pieces[index] = slot.piece()
        return pieces

    def restore(self, metadata: Metadata, pieces: Sequence[Piece]) -> None:
        """Be the file that an earlier mount could not store; it is queued for a retry at once."""
        self.load()
        slots = {
            number: Slot(self._staging, piece.length)
            for number, piece in enumerate(pieces)
            if piece.receipt is not None or piece.staged is not None  # no hole
        }
        try:
            for number, slot in slots.items():
                slot.restore(pieces[number])
        except BaseException:  # no memory, perhaps: the file stays as it was
            for slot in slots.values():
                slot.drop()
            raise
        for slot in self._slots.values():
            slot.drop()
        self._slots = slots
        self._base = ()
        self._size = sum(piece.length for piece in pieces)
        self.metadata = metadata
        self._changes += 1
        self._tried = self._changes
        self._staging.failed.add(self, at_once=True)

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
        in_use = self._openings or self._attempt is not None or self.has_unstored_changes
        if self.place is not None and not in_use:
            self.place.leave()

    def removed(self) -> None:
        """Note that no directory names it any more."""
        self.links = 0
        self.metadata.changed()
        self._staging.failed.discard(self)
        if self.spilled is not None:
            self.spilled.remove()
            self.spilled = None
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
        if not self._has_content(index):
            return zeros(end - begin)
        locator = self._locator_at(index)
        if locator is None or locator.size is None or locator.size < end:
            return await self._slot(index).read(begin, end)
        if self._reader is None:
            self._reader = BlockReader(self._staging.blocks, self._locator_at)
        return await self._reader.read(index, locator, locator.size, begin, end)

    def _locator_at(self, index: int) -> KeepLocator | None:
        slot = self._slots.get(index)
        if slot is not None:
            return slot.locator
        return self._base[index].locator if index < len(self._base) else None

    async def write(self, offset: int, content: bytes) -> None:
        """Put bytes at `offset`; a whole block leaves for the store at once.

        Raises:
            RefusedError: EFBIG, the file would be larger than a file may be.
            KeepWriteError: There is no room for the bytes, since storing failed.
        """
        end = offset + len(content)
        if end > MAX_FILE_SIZE:
            raise RefusedError(errno.EFBIG)
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
            RefusedError: EFBIG, the size is larger than a file may be.
            KeepReadError: The block that is cut can't be read.
        """
        if size > MAX_FILE_SIZE:
            raise RefusedError(errno.EFBIG)
        async with self._changing():
            if size == self._size:
                # Nothing is stored anew, so nothing else would record the time.
                metadata = dataclasses.replace(self.metadata)
                metadata.changed(content=True)
                if self.place is not None:
                    self.place.record_metadata(self.number, metadata)
                self.metadata = metadata
                return
            self._extend(size)
            if size < self._size:
                last, length = divmod(size, self._block_size)
                if length and self._has_content(last):
                    await self._slot(last).cut(length)
                for index in [i for i in self._slots if i * self._block_size >= size]:
                    self._slots.pop(index).drop()
                self._base = self._base[: last + bool(length)]
                self._cuts += 1
                self._size = size
            self._changed()

    async def _store_once(self, changes: int) -> None:
        count, base, cuts = self._slot_count(), self._base, self._cuts
        used = self._used_slots(count)
        # The other slots behind the base are holes; one block is stored for all of them.
        behind = count - len(base)
        has_holes = sum(index >= len(base) for index in used) < behind
        hole = [Slot(self._staging, self._block_size)] if has_holes else []
        stored = await store_slots([*used.values(), *hole])
        if not self.links:
            return
        found: list[Receipt | None] = [*base, *(stored[len(used) :] or [None]) * behind]
        for index, receipt in zip(used, stored, strict=False):
            found[index] = receipt
        receipts = [each for each in found if each is not None]  # None: cut meanwhile
        if not is_whole(receipts, count, self._block_size):
            if self._changes == changes:
                raise KeepWriteError("the blocks that were stored make up no version")
            return  # cut meanwhile
        spilled = self.spilled
        if self.place is not None:
            self.place.record_version(self, receipts, "" if spilled is None else spilled.name)
        self._stored, self._receipts = changes, tuple(receipts)
        if spilled is not None:
            self.spilled = None
            spilled.remove()
        if self._cuts == cuts:
            self._base = self._receipts
        for receipt in distinct(receipts):
            self._on_stored(receipt, self.metadata)

    def _is_sending(self) -> bool:
        return any(slot.is_storing for slot in self._slots.values())

    def _attempt_ended(self) -> None:
        self._discard_if_unreachable()
        self._rest()
        if not self.lookups:  # the kernel forgot it while it was stored
            self.forgotten()

    async def change(self, changes: Changes) -> None:
        """Do what a setattr asks for; the owner stays who it is.

        Raises:
            RefusedError: EPERM, another owner is asked for.
        """
        metadata = changed_metadata(self.metadata, changes)
        if changes.size is not None:
            await self.truncate(changes.size)
            metadata = changed_metadata(self.metadata, changes)
        is_last = (
            changes.size is not None and not self._openings
        )  # of truncate(2): no close follows
        try:
            if self.place is not None:
                self.place.record_metadata(self.number, metadata)
            self.metadata = metadata
        finally:
            if is_last and self.has_untried_changes:
                self.begin_store()
        if is_last:
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
        self._base = self._receipts

    def _stored_receipts(self) -> tuple[Receipt, ...]:
        """Return the stored version's receipts, from here or from the catalog."""
        if self._is_loaded or self.place is None:
            return self._receipts
        return self.place.receipts(self.number)

    def _rest(self) -> None:
        """Let go of slots and receipts, if the catalog has them and nobody uses them."""
        is_changing = self._mutating is not None and self._mutating.locked()
        in_use = self._openings or self._attempt is not None or is_changing
        if in_use or self.has_unstored_changes or self.number is None:
            return
        if all(slot.is_stored and not slot.is_storing for slot in self._slots.values()):
            self._slots, self._receipts, self._base = {}, (), ()
            self._mutating = self._reader = None
            self._is_loaded = False

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
            receipt = self._base[index] if index < len(self._base) else None
            slot = self._slots[index] = Slot(self._staging, length, receipt)
        return slot

    def _slot_count(self) -> int:
        return max(1, -(-self._size // self._block_size))

    def _has_content(self, index: int) -> bool:
        """Tell whether a slot may be other than a hole."""
        return index in self._slots or index < len(self._base)

    def _used_slots(self, count: int) -> dict[int, Slot]:
        """Return, of the first `count` slots, those that were used or may be no whole block.

        So a sparse file of any length has few.
        """
        indices = {index for index in self._slots if index < count}
        indices |= {count - 1, *([len(self._base) - 1] if self._base else [])}
        return {index: self._slot(index) for index in sorted(indices)}

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
