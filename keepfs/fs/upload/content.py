"""Content: the slots, stored blocks and holes of a file of upload/.

For the trio thread only; nothing here blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.fs.upload.slot import Slot
from keepfs.fs.upload.unsaved import Piece
from keepfs.fs.upload.version import distinct

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keepfs.fs.upload.renewal import Relabelled
    from keepfs.fs.upload.staging import Staging
    from keepfs.keep.locator import KeepLocator
    from keepfs.keep.store import Receipt


class Content:
    """The bytes of a file: slots that were used, blocks of the stored version, and holes.

    Invariant: the bytes of a slot are those of the used slot if there is one, else
    those of the block in `base` if there is one, else zeros. Only the last block of
    `base` may be shorter than its slot: it is padded with zeros. So a sparse file of
    any length has few slots.

    Args:
        staging: Provides the memory of the slots.
        size: The size of the file, in bytes.
        receipts: The blocks of the stored version; empty without one.

    Attributes:
        size: The size of the file, in bytes.
        used: The slots that were used, by their numbers.
        base: The stored blocks of the slots that aren't in `used`.
        receipts: The blocks of the last stored version.
        cuts: The number of cuts: a version whose store began before a cut must not
            become the base.
    """

    __slots__ = ("_staging", "base", "cuts", "receipts", "size", "used")

    def __init__(
        self, staging: Staging, size: int = 0, receipts: tuple[Receipt, ...] = ()
    ) -> None:
        self._staging = staging
        self.size = size
        self.used: dict[int, Slot] = {}
        self.base = self.receipts = receipts
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
                if piece.receipt is not None or piece.staged is not None:  # no hole
                    made.used[number] = Slot(staging, piece.length)
                    made.used[number].restore(piece)
        except BaseException:
            made.drop()
            raise
        return made

    def __repr__(self) -> str:
        return f"<Content of {self.size} bytes, {len(self.base)} stored blocks, used {self.used}>"

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

    def ranges(self, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
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
            receipt = self.base[number] if number < len(self.base) else None
            slot = self.used[number] = Slot(self._staging, self._length_at(number), receipt)
        return slot

    def may_have_bytes(self, number: int) -> bool:
        """Return whether a slot may be other than a hole."""
        return number in self.used or number < len(self.base)

    def locator_at(self, number: int) -> KeepLocator | None:
        """Return the locator of the block with a slot's bytes, or with the first ones, or None."""
        slot = self.used.get(number)
        if slot is not None:
            return slot.locator
        return self.base[number].locator if number < len(self.base) else None

    def slots_to_store(self) -> dict[int, Slot]:
        """Return, by number, the slots that were used or may not be a whole block."""
        count = self.count
        numbers = {number for number in self.used if number < count}
        numbers |= {count - 1, *([len(self.base) - 1] if self.base else [])}
        return {number: self.slot(number) for number in sorted(numbers)}

    def pieces(self) -> list[Piece]:
        """Return the content of each slot; staged bytes aren't copied."""
        slots = self.slots_to_store()
        block_size = self._staging.block_size
        whole = {id(each): Piece(block_size, each) for each in distinct(self.base)}
        pieces = [whole[id(receipt)] for receipt in self.base]
        pieces += [Piece(block_size)] * (self.count - len(pieces))
        for number, slot in slots.items():
            pieces[number] = slot.piece()
        return pieces

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
        self.base = self.base[: -(-size // block_size)]
        self.cuts += 1
        self.size = size

    def take_version(self, receipts: tuple[Receipt, ...], cuts: int) -> None:
        """Set the stored version; it becomes the base unless the content was cut since.

        Args:
            receipts: The version's blocks.
            cuts: The value of `cuts` when its store began.
        """
        self.receipts = receipts
        if self.cuts == cuts:
            self.base = receipts

    def take_locators(self, relabelled: Relabelled) -> None:
        """Use newer locators of the same blocks."""
        self.receipts = tuple(map(relabelled.receipt, self.receipts))
        self.base = tuple(map(relabelled.receipt, self.base))
        for slot in self.used.values():
            slot.take_locator(relabelled)

    def drop(self) -> None:
        """Release the staged bytes for good."""
        for slot in self.used.values():
            slot.drop()

    def _length_at(self, number: int) -> int:
        block_size = self._staging.block_size
        return min(max(self.size - number * block_size, 0), block_size)
