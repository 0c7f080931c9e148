"""StoredBytes: the stored bytes of a file as ranges of blocks; an immutable value.

A file that this mount stored consists of whole blocks. A file of a collection may share its
blocks with other files, as small files of most programs do: then its ranges are parts of blocks.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keepfs.collections.manifest import Range
from keepfs.keep.locator import MAX_BLOCK_SIZE, KeepLocator
from keepfs.keep.store import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

#: Most ranges of an imported file.
MOST_RANGES = 65536
#: Most ranges in a record of the catalog. Each changed slot may add two ranges to those of an
#: imported file, and a file has at most 65,536 slots.
_MOST_RECORDED = 3 * MOST_RANGES


@dataclass(frozen=True, slots=True)
class StoredRange:
    """A range of a stored block: a manifest's `Range`, with the receipt of its block.

    Attributes:
        receipt: The receipt of the block; its locator has a size.
        offset: The offset of the first byte in the block.
        length: The number of bytes; 0 only for the block of an empty file.
    """

    receipt: Receipt
    offset: int
    length: int

    @property
    def locator(self) -> KeepLocator:
        """The locator of the block."""
        return self.receipt.locator

    @property
    def is_whole(self) -> bool:
        """Whether the range is the whole block."""
        return self.length == self.receipt.locator.size

    def as_range(self) -> Range:
        """Return the range in the form of a manifest."""
        return Range(str(self.receipt.locator), self.offset, self.length)

    def part(self, begin: int, end: int) -> StoredRange:
        """Return the part from `begin` to `end`, offsets in this range, cut to this range."""
        begin, end = max(begin, 0), min(end, self.length)
        if end - begin == self.length:
            return self
        return StoredRange(self.receipt, self.offset + begin, end - begin)

    def goes_on_with(self, other: StoredRange) -> bool:
        """Return whether another range begins in the same block where this one ends."""
        return self.offset + self.length == other.offset and self.receipt.names_block_of(
            other.receipt
        )


class StoredBytes:
    """Consecutive ranges of blocks. A range that continues the one before is joined with it.

    Without ranges nothing is stored, and the value is false. A stored empty file has one range
    of length 0.

    Args:
        ranges: The ranges, in order.

    Attributes:
        ranges: The ranges, joined.
    """

    __slots__ = ("_ends", "ranges")

    def __init__(self, ranges: Iterable[StoredRange] = ()) -> None:
        self.ranges: tuple[StoredRange, ...] = tuple(_joined(ranges))
        self._ends = array("Q", itertools.accumulate(each.length for each in self.ranges))

    @classmethod
    def of_blocks(cls, receipts: Iterable[Receipt]) -> StoredBytes:
        """Return the bytes of whole blocks, one after another."""
        runs = itertools.groupby(receipts, id)
        return cls(
            each
            for first, run in ((next(run), run) for _, run in runs)
            for each in itertools.repeat(
                StoredRange(first, 0, first.locator.size or 0), 1 + sum(1 for _ in run)
            )
        )

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __len__(self) -> int:
        """Return the number of ranges."""
        return len(self.ranges)

    def __eq__(self, other: object) -> bool:
        return self.ranges == other.ranges if isinstance(other, StoredBytes) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.ranges)

    def __repr__(self) -> str:
        return f"<StoredBytes {[tuple(each.as_range()) for each in self.ranges[:3]]} ...>"

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self._ends[-1] if self._ends else 0

    def number_at(self, offset: int) -> int:
        """Return the index of the range with a byte; beyond the end the number of ranges."""
        return bisect_right(self._ends, offset)

    def start_of(self, number: int) -> int:
        """Return the offset in the file at which a range begins."""
        return self._ends[number - 1] if number else 0

    def range_at(self, offset: int, most: int) -> StoredRange | None:
        """Return at most `most` bytes from `offset` on, in one range; None beyond the end."""
        number = bisect_right(self._ends, offset)
        if number == len(self.ranges):
            return None
        begin = offset - self.start_of(number)
        return self.ranges[number].part(begin, begin + most)

    def slice(self, begin: int, end: int) -> StoredBytes:
        """Return the bytes from `begin` to `end`, or to the last byte.

        The slice from 0 of an empty file is the range of length 0.
        """
        if not self.size and not begin:
            return self
        return StoredBytes(self.parts(begin, end))

    def parts(self, begin: int, end: int) -> list[StoredRange]:
        """Return the ranges of the bytes from `begin` to `end`, or to the last byte."""
        end = min(end, self.size)
        if begin >= end:
            return []
        first, last = self.number_at(begin), self.number_at(end - 1)
        found = list(self.ranges[first : last + 1])
        found[-1] = found[-1].part(0, end - self.start_of(last))
        found[0] = found[0].part(begin - self.start_of(first), found[0].length)
        return found

    def is_same_as(self, other: StoredBytes) -> bool:
        """Return whether both are the same ranges of the same blocks; signatures may differ."""
        return len(self) == len(other) and all(
            one.receipt.names_block_of(two.receipt)
            and (one.offset, one.length) == (two.offset, two.length)
            for one, two in zip(self.ranges, other.ranges, strict=True)
        )

    def whole_blocks(self) -> Iterable[Receipt]:
        """Return the distinct receipt objects of whole blocks: all holes of a file share one."""
        return {id(it.receipt): it.receipt for it in self._distinct() if it.is_whole}.values()

    def receipts(self) -> Iterable[Receipt]:
        """Return the distinct receipt objects."""
        return {id(each.receipt): each.receipt for each in self._distinct()}.values()

    def _distinct(self) -> Iterable[StoredRange]:
        """Return the distinct range objects: equal slots of a sparse file share one."""
        return {id(each): each for each in self.ranges}.values()

    def with_receipts(self, newer: Callable[[Receipt], Receipt]) -> StoredBytes:
        """Return the same bytes with other receipts of the same blocks."""
        if all(newer(each) is each for each in self.receipts()):
            return self
        new = {
            id(each): StoredRange(newer(each.receipt), each.offset, each.length)
            for each in self._distinct()
        }
        return StoredBytes(new[id(each)] for each in self.ranges)


def _joined(ranges: Iterable[StoredRange]) -> list[StoredRange]:
    found: list[StoredRange] = []
    last: StoredRange | None = None
    for each in ranges:
        if each is last and each.length:  # no range goes on with itself; of a sparse file
            found.append(each)
            continue
        if last is not None and last.goes_on_with(each):
            last = StoredRange(last.receipt, last.offset, last.length + each.length)
            found[-1] = last
        elif each.length or not found:
            if last is not None and not last.length:  # an empty block before others
                found.clear()
            found.append(each)
            last = each
    return found


#: The bytes of a hole, and of a file without a stored version.
NOTHING = StoredBytes()


def as_rows(stored: StoredBytes) -> list[list[Any]]:
    """Return the ranges in the form that the catalog records as JSON.

    A row of a whole block is `[locator, copies, services]`; consecutive equal blocks have one
    row, with their number as the fourth value. A part of a block has 1 as the fourth value, then
    its offset and its length.
    """
    rows: list[list[Any]] = []
    for _, run in itertools.groupby(stored.ranges, id):
        first, *others = run
        row = [str(first.locator), first.receipt.copies, list(first.receipt.services)]
        if not first.is_whole:
            rows += [[*row, 1, first.offset, first.length]] * (1 + len(others))
        elif others:
            rows.append([*row, 1 + len(others)])
        else:
            rows.append(row)
    return rows


def from_rows(rows: Iterable[Sequence[Any]]) -> StoredBytes:
    """Return the ranges of rows that `as_rows` has made.

    Raises:
        ValueError: A value of a row is damaged.
        TypeError: A row has another form.
    """
    receipts: dict[tuple[str, int, tuple[str, ...]], Receipt] = {}
    found: list[StoredRange] = []
    for locator, copies, services, *place in rows:
        key = (locator, _number(copies, "copies", 2**31), _names(services))
        receipt = receipts.get(key)
        if receipt is None:
            receipt = receipts[key] = Receipt(KeepLocator(locator), copies, key[2])
        count, *part = place or (1,)
        each = checked_range(receipt, *(part or (0, receipt.locator.size)))
        found += [each] * _number(count, "a count", _MOST_RECORDED - len(found) + 1)
    return StoredBytes(found)


def checked_range(receipt: Receipt, offset: object, length: object) -> StoredRange:
    """Return a range after a check that it is within its block.

    Raises:
        ValueError: It exceeds the block, or the block has no size or one over 64 MiB.
    """
    size = receipt.locator.size
    if size is None or size > MAX_BLOCK_SIZE:
        raise ValueError(f"{receipt.locator.stripped()} has no size of a block")
    begin = _number(offset, "an offset", size + 1)
    return StoredRange(receipt, begin, _number(length, "a length", size - begin + 1))


def _number(value: object, what: str, end: int) -> int:
    if type(value) is not int or not 0 <= value < end:
        raise ValueError(f"{what} is {str(value)[:40]}, not from 0 to {end - 1}")
    return value


def _names(services: object) -> tuple[str, ...]:
    if not isinstance(services, list) or not all(isinstance(each, str) for each in services):
        raise TypeError("services is not a list of names")
    return tuple(services)
