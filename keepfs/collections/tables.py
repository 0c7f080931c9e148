"""Tables: the entries of a manifest as packed columns, a few dozen bytes for each file.

The blocks of all streams are laid one after another in one *address space*. A file is a list of
segments, each a start in the address space and an end in the file; so a segment over a
thousand blocks takes as much memory as one inside a block. Names are sorted, and found by
bisection.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The most bytes of a file, and of all blocks of a manifest: what a signed 64-bit number holds.
MAX_SIZE = 2**63 - 1


class Names:
    """Byte strings in one buffer, by number."""

    __slots__ = ("_ends", "_text")

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> bytes:
        return bytes(self._text[self._ends[number] : self._ends[number + 1]])

    @property
    def memory_size(self) -> int:
        """Bytes of memory, estimated."""
        return len(self._text) + self._ends.itemsize * len(self._ends)

    def append(self, name: bytes) -> None:
        """Add a string; its number is the count of those before it."""
        self._text += name
        self._ends.append(len(self._text))

    def find(self, name: bytes, first: int, last: int) -> int | None:
        """Return the number of a name among the sorted names `first` to `last - 1`, or None."""
        place = bisect_left(range(first, last), name, key=self.__getitem__) + first
        return place if place < last and self[place] == name else None


@dataclass(slots=True)
class Blocks:
    """Blocks and the address space that they form.

    Attributes:
        locators: The distinct locators, by number.
        sizes: Bytes of each, by the same number.
        starts: Where each piece of the address space starts, and the end of the last.
        pieces: The number of the block of each piece.
    """

    locators: Sequence[bytes] = ()
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    starts: array[int] = field(default_factory=lambda: array("Q", [0]))
    pieces: array[int] = field(default_factory=lambda: array("I"))


@dataclass(slots=True)
class Segments:
    """The segments of all files; those of one file have consecutive numbers.

    Attributes:
        firsts: The number of each file's first segment, and the count of all.
        starts: Where each segment starts in the address space.
        ends: Where each segment ends in its file; each file begins at 0.
    """

    firsts: array[int] = field(default_factory=lambda: array("Q", [0]))
    starts: array[int] = field(default_factory=lambda: array("Q"))
    ends: array[int] = field(default_factory=lambda: array("Q"))

    def size(self, file: int) -> int:
        """Return the bytes of a file."""
        first, last = self.firsts[file], self.firsts[file + 1]
        return self.ends[last - 1] if last > first else 0


@dataclass(slots=True)
class Tables:
    """The columns of a manifest.

    Directories are numbered breadth first from the root, which is 0. So the children of a
    directory have consecutive numbers, sorted by name. The same is true of its files.

    Attributes:
        directories: The directories' names; the root's is empty.
        parents: The directory that each is in; the root's is the root.
        children: The number of each directory's first child, and the count of directories.
        files: The files' names.
        first_files: The number of each directory's first file.
        last_files: One more than the number of each directory's last file.
        segments: The segments of each file.
        blocks: The blocks that have the bytes.
    """

    directories: Names
    parents: array[int]
    children: array[int]
    files: Names
    first_files: array[int]
    last_files: array[int]
    segments: Segments
    blocks: Blocks

    @property
    def memory_size(self) -> int:
        """Bytes of memory, estimated in constant time: each locator counts as the first."""
        columns = (
            *(self.parents, self.children, self.first_files, self.last_files),
            *(self.segments.firsts, self.segments.starts, self.segments.ends),
            *(self.blocks.sizes, self.blocks.starts, self.blocks.pieces),
        )
        locators = self.blocks.locators
        of_locators = len(locators) * (sys.getsizeof(locators[0]) + 8) if locators else 0
        packed = sum(each.itemsize * len(each) for each in columns)
        return self.directories.memory_size + self.files.memory_size + packed + of_locators

    def ranges(self, file: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the blocks of the bytes `start` to `stop - 1` of a file.

        Args:
            file: The number of the file.
            start: The first byte, at least 0.
            stop: One more than the last, at most the size of the file.

        Yields:
            The number of a block, an offset in it, and a number of bytes, at least 1. Adjacent
            ranges are joined.
        """
        block = offset = length = 0
        for piece, at, count in self._pieces(file, start, stop):
            if length and piece == block and at == offset + length:
                length += count
                continue
            if length:
                yield block, offset, length
            block, offset, length = piece, at, count
        if length:
            yield block, offset, length

    def _pieces(self, file: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        starts, pieces = self.blocks.starts, self.blocks.pieces
        ends, firsts = self.segments.ends, self.segments.firsts
        first, last = firsts[file], firsts[file + 1]
        segment = bisect_right(ends, start, first, last)
        while start < stop:
            begin = ends[segment - 1] if segment > first else 0
            left = min(stop, ends[segment]) - start
            address = self.segments.starts[segment] + start - begin
            start += left
            piece = bisect_right(starts, address) - 1
            while left:
                count = min(left, starts[piece + 1] - address)
                if count:
                    yield pieces[piece], address - starts[piece], count
                address += count
                left -= count
                piece += 1
            segment += 1

    def extent(self, file: int) -> tuple[int, int]:
        """Return where a file's first segment starts in the address space, and its last ends.

        Both are 0 for a file without bytes.
        """
        first, last = self.segments.firsts[file], self.segments.firsts[file + 1] - 1
        starts, ends = self.segments.starts, self.segments.ends
        if last < first:
            return 0, 0
        return starts[first], starts[last] + ends[last] - (ends[last - 1] if last > first else 0)

    def blocks_from(self, address: int) -> Iterator[int]:
        """Yield the number of the block of each piece that starts at an address or after it."""
        starts, pieces = self.blocks.starts, self.blocks.pieces
        for piece in range(bisect_left(starts, address), len(pieces)):
            if starts[piece] < starts[piece + 1]:
                yield pieces[piece]

    def path(self, directory: int) -> bytes:
        """Return the path of a directory without `./`; the root's is empty."""
        names = []
        while directory:
            names.append(self.directories[directory])
            directory = self.parents[directory]
        return b"/".join(reversed(names))

    def depth_first(self) -> Iterator[int]:
        """Yield all directories in normal order: each before its children, which are sorted."""
        stack = [0]
        while stack:
            directory = stack.pop()
            yield directory
            stack.extend(reversed(range(self.children[directory], self.children[directory + 1])))
