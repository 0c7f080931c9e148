"""Assembly: takes files and directories in any order, and makes the columns of a manifest.

Files that arrive in normal order, as in most manifests, are not sorted or copied.
"""

from __future__ import annotations

from array import array
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from keepfs.collections.escapes import check_component, decoded
from keepfs.collections.manifest_errors import ConflictError, EntryError
from keepfs.collections.tables import MAX_SIZE, Blocks, Names, Segments, Tables
from keepfs.keep.locator import KeepLocator, without_signatures

if TYPE_CHECKING:
    from collections.abc import Sequence


class Assembly:
    """The columns of a manifest while entries are added.

    A `place` is any number that identifies an entry for the caller; see `ConflictError`.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, bytes], int] = {}
        self._names: list[bytes] = [b""]
        self._parents = array("I", [0])
        self._places = array("Q", [0])
        # The first entry of each directory, -1 without one.
        self._first_entries = array("q", [-1])
        self._files = Names()
        self._segments = Segments()
        self._file_directories = array("I")
        self._file_places = array("Q")
        self._sorted = True
        self._directory, self._name, self._size = -1, b"", 0
        self._blocks: dict[bytes, int] = {}
        self._space = Blocks()

    def directory(self, path: bytes, place: int = 0) -> int:
        """Add a directory and those above it, unless they are there.

        Args:
            path: Names joined by slashes; empty for the root.
            place: The caller's number for it.

        Returns:
            Its number, for `file`.

        Raises:
            EntryError: No manifest can hold one of the names.
        """
        number = 0
        for name in path.split(b"/") if path else ():
            key = (number, name)
            known = self._numbers.get(key)
            if known is None:
                check_component(name, path)
                known = self._numbers[key] = len(self._names)
                self._names.append(name)
                self._parents.append(number)
                self._places.append(place)
                self._first_entries.append(-1)
            number = known
        return number

    def file(self, directory: int, name: bytes, place: int = 0) -> None:
        """Begin a file, or continue it: the segments added next belong to it.

        The caller must have checked the name.
        """
        if directory == self._directory:
            if name <= self._name:
                if name == self._name:
                    return
                self._sorted = False
        elif self._first_entries[directory] >= 0:
            self._sorted = False
        else:
            self._first_entries[directory] = len(self._file_places)
        self._directory, self._name, self._size = directory, name, 0
        self._files.append(name)
        self._file_directories.append(directory)
        self._file_places.append(place)
        self._segments.firsts.append(len(self._segments.ends))

    def segment(self, start: int, length: int) -> None:
        """Add bytes at the end of the file that was begun last.

        Args:
            start: An address: the result of `lay` plus an offset.
            length: The number of bytes; 0 adds nothing.

        Raises:
            EntryError: The file would be too large.
        """
        if not length:
            return
        starts, ends = self._segments.starts, self._segments.ends
        before = self._size
        self._size = after = before + length
        if after > MAX_SIZE:
            raise EntryError(f"{decoded(self._name)!r} has more than 2**63 - 1 bytes")
        if before and starts[-1] + before - self._segment_begin() == start:
            ends[-1] = after
        else:
            starts.append(start)
            ends.append(after)
            self._segments.firsts[-1] = len(ends)

    def _segment_begin(self) -> int:
        """Return where the last segment begins in its file."""
        first, last = self._segments.firsts[-2], len(self._segments.ends) - 1
        return self._segments.ends[last - 1] if last > first else 0

    def lay(self, locator: bytes, size: int) -> int:
        """Lay a block at the end of the address space.

        Args:
            locator: The locator of the block. A block may be laid several times.
            size: The size of the block in bytes.

        Returns:
            The address of its first byte.

        Raises:
            EntryError: The address space would be too large.
        """
        space, blocks = self._space, self._blocks
        start = space.starts[-1]
        end = start + size
        if end > MAX_SIZE:
            raise EntryError("the blocks have more than 2**63 - 1 bytes together")
        number = blocks.setdefault(locator, len(blocks))
        if number == len(space.sizes):
            space.sizes.append(size)
        space.starts.append(end)
        space.pieces.append(number)
        return start

    def finish(self) -> Tables:
        """Return the sorted columns. The assembly can't be used afterwards.

        Raises:
            ConflictError: A file and a directory have the same path.
        """
        self._space.locators = tuple(self._blocks)
        order, children = self._breadth_first()
        numbers = array("I", bytes(4 * len(order)))
        for new, old in enumerate(order):
            numbers[old] = new
        if not self._sorted:
            self._sort_files()
        directories = Names()
        for old in order:
            directories.append(self._names[old])
        first_files, last_files = array("I", bytes(4 * len(order))), array("I")
        last_files.extend(first_files)
        entry = 0
        for directory, group in groupby(self._file_directories):
            count = sum(1 for _ in group)
            first_files[numbers[directory]] = entry
            entry += count
            last_files[numbers[directory]] = entry
        tables = Tables(
            directories,
            array("I", (numbers[self._parents[old]] for old in order)),
            children,
            self._files,
            first_files,
            last_files,
            self._segments,
            self._space,
        )
        self._check_conflicts(tables, order)
        return tables

    def _breadth_first(self) -> tuple[Sequence[int], array[int]]:
        below: dict[int, list[int]] = {}
        for number, parent in enumerate(self._parents):
            if number:
                below.setdefault(parent, []).append(number)
        order = [0]
        children = array("I", [1])
        for number in order:  # grows meanwhile
            order.extend(sorted(below.pop(number, ()), key=self._names.__getitem__))
            children.append(len(order))
        return order, children

    def _sort_files(self) -> None:
        """Sort the files by directory and name, and join those of the same path."""
        files, segments = self._files, self._segments
        directories, places = self._file_directories, self._file_places
        self._files, self._segments = Names(), Segments()
        self._file_directories, self._file_places = array("I"), array("Q")
        self._directory = -1
        order = sorted(range(len(files)), key=directories.__getitem__)
        for directory, group in groupby(order, key=directories.__getitem__):
            for entry in sorted(group, key=files.__getitem__):
                self._first_entries[directory] = -1
                self.file(directory, files[entry], places[entry])
                begin = 0
                for number in range(segments.firsts[entry], segments.firsts[entry + 1]):
                    self.segment(segments.starts[number], segments.ends[number] - begin)
                    begin = segments.ends[number]

    def _check_conflicts(self, tables: Tables, order: Sequence[int]) -> None:
        for parent, (first, last) in enumerate(pairwise(tables.children)):
            first_file, last_file = tables.first_files[parent], tables.last_files[parent]
            if first_file == last_file:
                continue
            for directory in range(first, last):
                name = tables.directories[directory]
                file = tables.files.find(name, first_file, last_file)
                if file is not None:
                    place = max(self._file_places[file], self._places[order[directory]])
                    raise ConflictError(decoded(tables.path(directory)), place)


def checked_locator(text: str) -> tuple[bytes, int]:
    """Return a locator as it is written in a manifest, and the size of the block.

    Raises:
        EntryError: The text isn't a locator, or its size is missing or above 63 bits.
    """
    try:
        locator = KeepLocator(text)
    except ValueError as error:
        raise EntryError(str(error)) from None
    if locator.size is None:
        raise EntryError(f"{without_signatures(text)!r} has no size, which a manifest needs")
    if locator.size > MAX_SIZE:
        raise EntryError(f"{locator.stripped()!r} has more than 2**63 - 1 bytes")
    return str(locator).encode(), locator.size
