"""Content: the slots, stored bytes and holes of a file of upload/.

For the trio thread only; nothing here blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.fs.upload.slot import Slot
from keepfs.fs.upload.stored import NOTHING, StoredBytes, StoredRange
from keepfs.fs.upload.unsaved import Piece

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from keepfs.fs.upload.renewal import Relabelled
    from keepfs.fs.upload.staging import Staging
    from keepfs.keep.locator import KeepLocator


class Content:
    """The bytes of a file: slots that were used, bytes of the stored version, and holes.

    Invariant: the bytes of a slot are those of the used slot if there is one, else
    those at its place in `base`, followed by zeros. So a sparse file of any length has few
    slots, and an imported file has none until it is changed. Unchanged bytes keep their
    place, also in the middle of a block.

    Args:
        staging: Provides the memory of the slots.
        size: The size of the file, in bytes.
        version: The bytes of the stored version; nothing without one.

    Attributes:
        size: The size of the file, in bytes.
        used: The slots that were used, by their numbers.
        base: The stored bytes of the slots that aren't in `used`.
        version: The bytes of the last stored version.
        cuts: The number of cuts: a version whose store began before a cut must not
            become the base.
    """

    __slots__ = ("_staging", "base", "cuts", "size", "used", "version")

    def __init__(self, staging: Staging, size: int = 0, version: StoredBytes = NOTHING) -> None:
        self._staging = staging
        self.size = size
        self.used: dict[int, Slot] = {}
        self.base = self.version = version
        self.cuts = 0

    @classmethod
    def restored(cls, staging: Staging, pieces: Sequence[Piece]) -> Content:
        """Make the content of a spill record.

        Raises:
            MemoryError: No memory for the staged bytes; nothing remains staged.
        """
        made = cls(staging, sum(piece.length for piece in pieces))
        try:
            for number, piece in enumerate(pieces):
                if piece.stored or piece.staged is not None:  # no hole
                    made.used[number] = Slot(staging, piece.length)
                    made.used[number].restore(piece)
        except BaseException:
            made.drop()
            raise
        return made

    def __repr__(self) -> str:
        return f"<Content of {self.size} bytes, {self.base.size} stored, used {self.used}>"

    @property
    def count(self) -> int:
        """The number of slots of the file; 1 if it is empty."""
        return max(1, -(-self.size // self._staging.block_size))

    @property
    def is_sending(self) -> bool:
        """Whether a block of it is being sent."""
        return any(slot.is_storing for slot in self.used.values())

    @property
    def is_at_rest(self) -> bool:
        """Whether all slots are stored, and none is being sent."""
        return all(slot.is_stored and not slot.is_storing for slot in self.used.values())

    @property
    def failure(self) -> Exception | None:
        """The error of the last attempt to store one of the slots, or None."""
        failures = (slot.failure for slot in self.used.values())
        return next((each for each in failures if each is not None), None)

    def spans(self, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Split a range at the borders of slots: (slot's number, begin and end in the slot)."""
        block_size = self._staging.block_size
        while offset < end:
            number, begin = divmod(offset, block_size)
            stop = min(block_size, begin + end - offset)
            yield number, begin, stop
            offset += stop - begin

    def slot(self, number: int) -> Slot:
        """Return a slot; create it if it wasn't used."""
        slot = self.used.get(number)
        if slot is None:
            stored = self._base_at(number)
            slot = self.used[number] = Slot(self._staging, self._length_at(number), stored)
        return slot

    def may_have_bytes(self, number: int) -> bool:
        """Return whether a slot may be other than a hole."""
        return number in self.used or number < self.base_count

    def stored_at(self, offset: int) -> StoredRange | None:
        """Return the stored bytes from `offset` on, to the end of their block or slot at most.

        None if the byte there is not stored: it is staged, or a zero.
        """
        number, begin = divmod(offset, self._staging.block_size)
        slot = self.used.get(number)
        stored, begin = (self.base, offset) if slot is None else (slot.stored, begin)
        return stored.range_at(begin, self._staging.block_size - offset % self._staging.block_size)

    def locators(self, number: int) -> list[KeepLocator]:
        """Return the locators of the blocks with stored bytes of a slot."""
        slot = self.used.get(number)
        stored = self._base_at(number) if slot is None else slot.stored
        return [each.locator for each in stored.receipts()]

    def block_at(self, offset: int) -> int:
        """Return the number of the block with a byte, to recognize sequential reads.

        Blocks of `base` are numbered by their ranges; behind them each slot is one. The numbers
        stay while `base` does: a slot that was changed has the number of the range it replaced.
        """
        if offset < self.base.size:
            return self.base.number_at(offset)
        return len(self.base) + offset // self._staging.block_size - self.base_count

    def locator_of(self, block: int) -> KeepLocator | None:
        """Return the locator of a block by its number; None if it is not stored."""
        if block < len(self.base):
            found = self.stored_at(self.base.start_of(block))
        else:
            slot = block - len(self.base) + self.base_count
            found = self.stored_at(slot * self._staging.block_size)
        return None if found is None else found.locator

    @property
    def base_count(self) -> int:
        """The number of slots with bytes of `base`."""
        return max(-(-self.base.size // self._staging.block_size), 1 if self.base else 0)

    def _base_at(self, number: int) -> StoredBytes:
        block_size = self._staging.block_size
        return self.base.slice(number * block_size, (number + 1) * block_size)

    def slots_to_store(self) -> dict[int, Slot]:
        """Return, by number, the slots that were used or may have more bytes than are stored."""
        count = self.count
        numbers = {number for number in self.used if number < count}
        numbers |= {count - 1, *([self.base_count - 1] if self.base else [])}
        return {number: self.slot(number) for number in sorted(numbers)}

    def pieces(self) -> list[Piece]:
        """Return the content of each slot; staged bytes aren't copied."""
        slots = self.slots_to_store()
        block_size = self._staging.block_size
        hole, pieces = Piece(block_size), []
        whole: dict[int, Piece] = {}  # by the range: a sparse file has one for all its holes
        for number in range(self.count):
            part = self.base.range_at(number * block_size, block_size)
            if number in slots:
                piece = slots[number].piece()
            elif part is None:
                piece = hole
            elif part.length < block_size:
                piece = Piece(block_size, self._base_at(number))
            else:
                piece = whole.get(id(part)) or Piece(block_size, StoredBytes([part]))
                whole[id(part)] = piece
            pieces.append(piece)
        return pieces

    def assembled(
        self,
        base: StoredBytes,
        slots: Mapping[int, StoredBytes | None],
        hole: StoredBytes,
    ) -> StoredBytes | None:
        """Return the bytes of a version: of stored slots, of `base`, and of holes.

        Args:
            base: The base when the store began.
            slots: The stored slots by number, ascending; the last one is the file's last.
            hole: A slot of zeros.

        Returns:
            None if they make up no version: a slot was cut off meanwhile.
        """
        block_size = self._staging.block_size
        ranges: list[StoredRange] = []
        size = 0
        last = max(slots)
        for number, stored in slots.items():
            begin = number * block_size
            ranges += base.parts(size, begin)
            size = max(size, min(base.size, begin))
            if size < begin:
                ranges += hole.ranges * ((begin - size) // block_size)
            if stored is None or (stored.size != block_size and number != last):
                return None
            ranges += stored.ranges
            size = begin + block_size
        return StoredBytes(ranges)

    def extend(self, size: int) -> None:
        """Pad the content with zeros to `size`, if it is shorter."""
        if size > self.size:
            self.size = size
            for number, slot in self.used.items():
                slot.extend(self._length_at(number))

    def note_written(self, begin: int, end: int) -> None:
        """Update the sizes after a write to a slot, at these offsets in the file."""
        self.extend(begin)
        self.size = max(self.size, end)

    def cut(self, size: int) -> None:
        """Drop all bytes beyond `size`; the caller has cut the slot that contains `size`."""
        block_size = self._staging.block_size
        for number in [each for each in self.used if each * block_size >= size]:
            self.used.pop(number).drop()
        self.base = self.base.slice(0, -(-size // block_size) * block_size)
        self.cuts += 1
        self.size = size

    def take_version(self, version: StoredBytes, cuts: int) -> None:
        """Set the stored version; it becomes the base unless the content was cut since.

        Args:
            version: The version's bytes.
            cuts: The value of `cuts` when its store began.
        """
        self.version = version
        if self.cuts == cuts:
            self.base = version

    def take_locators(self, relabelled: Relabelled) -> None:
        """Use newer locators of the same blocks."""
        self.version = relabelled.stored(self.version)
        self.base = relabelled.stored(self.base)
        for slot in self.used.values():
            slot.take_locator(relabelled)

    def drop(self) -> None:
        """Release the staged bytes for good."""
        for slot in self.used.values():
            slot.drop()

    def _length_at(self, number: int) -> int:
        block_size = self._staging.block_size
        return min(max(self.size - number * block_size, 0), block_size)
