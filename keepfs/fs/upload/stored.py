"""StoredBytes: bytes of a file that are in the store, as ranges of blocks; an immutable value.

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

#: Most ranges of a file that are taken from others.
MOST_RANGES = 65536
#: Most ranges in a row. A file of 65,536 slots may get two more with each slot that is changed.
_MOST_RECORDED = 3 * MOST_RANGES


@dataclass(frozen=True, slots=True)
class StoredRange:
    """A range of a stored block: a manifest's `Range`, with the receipt of its block.

    Attributes:
        receipt: What is known of the block; its locator has a size.
        offset: The first byte, in the block.
        length: How many; 0 only for the block of an empty file.
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
        """Whether it is all of the block."""
        return self.length == self.receipt.locator.size

    def as_range(self) -> Range:
        """Return it as manifests have it."""
        return Range(str(self.receipt.locator), self.offset, self.length)

    def part(self, begin: int, end: int) -> StoredRange:
        """Return the bytes from `begin` up to `end`, counted in this range and cut to it."""
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
    """Ranges of blocks, one after another. Ranges that meet are joined.

    It is false without ranges: then nothing is stored. The bytes of an empty file are stored,
    as a range of length 0.

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
        """Make the bytes of whole blocks."""
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
        """How many bytes there are."""
        return self._ends[-1] if self._ends else 0

    def number_at(self, offset: int) -> int:
        """Return the number of the range with a byte; the number of ranges beyond the end."""
        return bisect_right(self._ends, offset)

    def start_of(self, number: int) -> int:
        """Return the offset at which a range begins."""
        return self._ends[number - 1] if number else 0

    def range_at(self, offset: int, most: int) -> StoredRange | None:
        """Return the bytes from `offset` on in its range, `most` at most; None beyond the end."""
        number = bisect_right(self._ends, offset)
        if number == len(self.ranges):
            return None
        begin = offset - self.start_of(number)
        return self.ranges[number].part(begin, begin + most)

    def slice(self, begin: int, end: int) -> StoredBytes:
        """Return the bytes from `begin` up to `end`; fewer where they end before.

        Of an empty file's, the slice from 0 on is all.
        """
        if not self.size and not begin:
            return self
        return StoredBytes(self.parts(begin, end))

    def parts(self, begin: int, end: int) -> list[StoredRange]:
        """Return where the bytes from `begin` up to `end` are; fewer where they end before."""
        end = min(end, self.size)
        if begin >= end:
            return []
        first, last = self.number_at(begin), self.number_at(end - 1)
        found = list(self.ranges[first : last + 1])
        found[-1] = found[-1].part(0, end - self.start_of(last))
        found[0] = found[0].part(begin - self.start_of(first), found[0].length)
        return found

    def is_same_as(self, other: StoredBytes) -> bool:
        """Return whether they are the same ranges of the same blocks, whatever the signatures."""
        return len(self) == len(other) and all(
            one.receipt.names_block_of(two.receipt)
            and (one.offset, one.length) == (two.offset, two.length)
            for one, two in zip(self.ranges, other.ranges, strict=True)
        )

    def whole_blocks(self) -> Iterable[Receipt]:
        """Return the distinct receipt objects of whole blocks: all holes of a file have one."""
        return {id(it.receipt): it.receipt for it in self._distinct() if it.is_whole}.values()

    def receipts(self) -> Iterable[Receipt]:
        """Return the distinct receipt objects."""
        return {id(each.receipt): each.receipt for each in self._distinct()}.values()

    def _distinct(self) -> Iterable[StoredRange]:
        """Return the distinct range objects: equal slots of a sparse file have one."""
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


#: The bytes of what has no version, and of a hole.
NOTHING = StoredBytes()


def as_rows(stored: StoredBytes) -> list[list[Any]]:
    """Return the ranges as values of JSON.

    A row is `[locator, copies, services]` of a whole block; a fourth value counts equal whole
    blocks in a row. A part of a block has 1 there, and then offset and length.
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
    """Return the ranges of rows as `as_rows` makes them.

    Raises:
        ValueError, TypeError: They are damaged.
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
    """Make a range that is within its block.

    Raises:
        ValueError: It isn't, or the block has no size, or one over 64 MiB.
    """
    size = receipt.locator.size
    if size is None or size > MAX_BLOCK_SIZE:
        raise ValueError(f"{receipt.locator} has no size of a block")
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
