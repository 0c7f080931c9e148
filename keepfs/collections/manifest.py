"""Manifest: the files of a collection and where their bytes are, as an immutable value.

Any number of threads may use it concurrently.

Names and paths are `str` as `os.fsdecode` returns them: bytes that are not UTF-8 are lone
surrogates. Paths have neither `./` in front nor slashes at the ends; the root's is empty.
"""

from __future__ import annotations

from array import array
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from keepfs.collections.assembly import checked_locator
from keepfs.collections.escapes import decoded, encoded
from keepfs.collections.manifest_errors import EntryError
from keepfs.collections.portable import portable_data_hash
from keepfs.collections.printing import print_pieces
from keepfs.collections.tables import Blocks, Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Range(NamedTuple):
    """Consecutive bytes of a file in one block.

    Attributes:
        locator: The locator of the block, with its size and all hints.
        offset: The offset of the first byte in the block.
        length: The number of bytes, at least 1.
    """

    locator: str
    offset: int
    length: int


class Manifest:
    """The files and directories of a collection.

    `parsing.parse` and `builder.ManifestBuilder` make them. Manifests are equal if they have the
    same normal form, hints of locators included; how segments are cut does not count.
    Comparing and printing walk all files. Lookups take logarithmic time.
    """

    __slots__ = ("_tables",)

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def __repr__(self) -> str:
        return f"<Manifest of {self.file_count} files in {self.directory_count} directories>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Manifest):
            return NotImplemented
        if self.file_count != other.file_count or self.directory_count != other.directory_count:
            return False
        return all(ours == theirs for ours, theirs in zip_longest(self.pieces(), other.pieces()))

    def __hash__(self) -> int:
        return hash((self.file_count, self.directory_count))

    @property
    def file_count(self) -> int:
        """The number of files."""
        return len(self._tables.files)

    @property
    def directory_count(self) -> int:
        """The number of directories, including the root."""
        return len(self._tables.directories)

    @property
    def memory_size(self) -> int:
        """Bytes of memory, estimated in constant time."""
        return self._tables.memory_size

    @property
    def root(self) -> Directory:
        """The root directory."""
        return Directory(self._tables, 0)

    def lookup(self, path: str) -> Directory | File | None:
        """Return the directory or file at a path, or None. The empty path is the root."""
        found: Directory | File | None = self.root
        for name in path.split("/") if path else ():
            if not isinstance(found, Directory):
                return None
            found = found.lookup(name)
        return found

    def directories(self) -> Iterator[Directory]:
        """Yield all directories in normal order: each before its children, which are sorted."""
        for number in self._tables.depth_first():
            yield Directory(self._tables, number)

    def files(self) -> Iterator[File]:
        """Yield all files: those of each directory sorted, the directories in normal order."""
        for directory in self.directories():
            yield from directory.files()

    def blocks(self) -> Iterator[str]:
        """Yield the distinct locators that files use, in order of first use in `files()`."""
        seen = bytearray(len(self._tables.blocks.locators))
        for block in self._used_blocks():
            if not seen[block]:
                seen[block] = True
                yield self._tables.blocks.locators[block].decode()

    def _used_blocks(self) -> Iterator[int]:
        for file in self.files():
            for block, _, _ in self._tables.ranges(file.number, 0, file.size):
                yield block

    def pieces(self) -> Iterator[bytes]:
        """Yield the text in normal form, in pieces of about 64 KiB that may end within a line."""
        return print_pieces(self._tables)

    def text(self) -> str:
        """Return the text in normal form, hints included."""
        return b"".join(self.pieces()).decode()

    def portable_data_hash(self) -> str:
        """Compute the portable data hash of the normal form."""
        return portable_data_hash(self.stripped().pieces())

    def stripped(self) -> Manifest:
        """Return the same manifest with each locator cut to digest and size."""
        return self._with(_portable)

    def with_locators(self, locators: Iterable[str]) -> Manifest:
        """Return the same manifest with other hints, such as new signatures.

        Args:
            locators: Locators that replace those of the same digest and size; of several for
                one block, the last is used. Locators of other blocks are ignored. Blocks of
                the manifest without a new locator keep theirs.

        Raises:
            EntryError: One of them isn't a locator, or has no size.
        """
        new: dict[bytes, bytes] = {}
        for text in locators:
            locator, _ = checked_locator(text)
            new[_portable(locator)] = locator
        return self._with(lambda locator: new.get(_portable(locator), locator))

    def counterpart(self, file: File) -> File:
        """Return the same file of this manifest, with its locators, in constant time.

        Args:
            file: A file of this manifest, or of the one from which `with_locators` made it.
        """
        return File(self._tables, file.parent, file.number)

    def _with(self, change: Callable[[bytes], bytes]) -> Manifest:
        tables, blocks = self._tables, self._tables.blocks
        locators = tuple(change(locator) for locator in blocks.locators)
        changed = Blocks(locators, blocks.sizes, blocks.starts, blocks.pieces)
        if len(set(locators)) < len(locators):
            changed = _joined(changed)
        return Manifest(
            Tables(
                tables.directories,
                tables.parents,
                tables.children,
                tables.files,
                tables.first_files,
                tables.last_files,
                tables.segments,
                changed,
            )
        )


class Directory:
    """A directory of a manifest.

    Its entries are numbered: directories first, then files, each sorted by the bytes of the name.

    Attributes:
        number: Its number among all directories of the manifest; the root's is 0.
    """

    __slots__ = ("_tables", "number")

    def __init__(self, tables: Tables, number: int) -> None:
        self._tables = tables
        self.number = number

    def __repr__(self) -> str:
        return f"<Directory {self.path!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Directory):
            return NotImplemented
        return self._tables is other._tables and self.number == other.number

    def __hash__(self) -> int:
        return hash((id(self._tables), self.number))

    @property
    def name(self) -> str:
        """The last component of the path; the root's is empty."""
        return decoded(self._tables.directories[self.number])

    @property
    def path(self) -> str:
        """The path; the root's is empty."""
        return decoded(self._tables.path(self.number))

    @property
    def parent(self) -> Directory:
        """The directory that it is in; the root's is the root."""
        return Directory(self._tables, self._tables.parents[self.number])

    def __len__(self) -> int:
        """Return the number of entries."""
        children, tables = self._children(), self._tables
        return len(children) + tables.last_files[self.number] - tables.first_files[self.number]

    def __bool__(self) -> bool:
        """Return True, also for a directory without entries."""
        return True

    def entry(self, index: int) -> Directory | File:
        """Return an entry by its number, from 0 to `len() - 1`, in constant time.

        Raises:
            IndexError: There is no such entry.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        children = self._children()
        if index < len(children):
            return Directory(self._tables, children[index])
        return File(
            self._tables, self, self._tables.first_files[self.number] + index - len(children)
        )

    def entries(self, start: int = 0) -> Iterator[Directory | File]:
        """Yield the entries from number `start` on."""
        for index in range(start, len(self)):
            yield self.entry(index)

    def files(self) -> Iterator[File]:
        """Yield the files, sorted."""
        tables = self._tables
        for file in range(tables.first_files[self.number], tables.last_files[self.number]):
            yield File(tables, self, file)

    def lookup(self, name: str) -> Directory | File | None:
        """Return the entry of that name, or None."""
        try:
            wanted = encoded(name)
        except EntryError:
            return None
        tables, children = self._tables, self._children()
        directory = tables.directories.find(wanted, children.start, children.stop)
        if directory is not None:
            return Directory(tables, directory)
        first, last = tables.first_files[self.number], tables.last_files[self.number]
        file = tables.files.find(wanted, first, last)
        return None if file is None else File(tables, self, file)

    def _children(self) -> range:
        children = self._tables.children
        return range(children[self.number], children[self.number + 1])


class File:
    """A file of a manifest.

    Attributes:
        parent: The directory that it is in.
        number: Its number among all files of the manifest.
    """

    __slots__ = ("_tables", "number", "parent")

    def __init__(self, tables: Tables, parent: Directory, number: int) -> None:
        self._tables = tables
        self.parent = parent
        self.number = number

    def __repr__(self) -> str:
        return f"<File {self.path!r} of {self.size} bytes>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, File):
            return NotImplemented
        return self._tables is other._tables and self.number == other.number

    def __hash__(self) -> int:
        return hash((id(self._tables), self.number))

    @property
    def name(self) -> str:
        """The last component of the path."""
        return decoded(self._tables.files[self.number])

    @property
    def path(self) -> str:
        """The path."""
        return f"{self.parent.path}/{self.name}" if self.parent.number else self.name

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self._tables.segments.size(self.number)

    def ranges(self, offset: int = 0, length: int | None = None) -> Iterator[Range]:
        """Yield the ranges of blocks that have the bytes, in order.

        The first is found by bisection. Adjacent ranges are joined.

        Args:
            offset: The first byte, at least 0; beyond the end of the file nothing is yielded.
            length: The number of bytes, at least 0; the end of the file limits it. None: all.
        """
        size = self.size
        stop = size if length is None else min(size, offset + length)
        locators = self._tables.blocks.locators
        for block, start, count in self._tables.ranges(self.number, offset, stop):
            yield Range(locators[block].decode(), start, count)

    def extent(self) -> tuple[int, int]:
        """Return where the file starts and ends among the bytes of all blocks, in their order.

        A file that starts where another ends follows it in the stream. (0, 0) for a file
        without bytes.
        """
        return self._tables.extent(self.number)

    def next_blocks(self) -> Iterator[str]:
        """Yield the locators of the blocks after the one with the file's last byte.

        They are in the order of the manifest: other files have their bytes.
        """
        locators = self._tables.blocks.locators
        for block in self._tables.blocks_from(self.extent()[1]):
            yield locators[block].decode()


def _portable(locator: bytes) -> bytes:
    return b"+".join(locator.split(b"+", 2)[:2])


def _joined(blocks: Blocks) -> Blocks:
    """Return blocks in which equal locators have one number; the address space is unchanged."""
    numbers: dict[bytes, int] = {}
    sizes = array("Q")
    new = array("I")
    for locator, size in zip(blocks.locators, blocks.sizes, strict=True):
        number = numbers.setdefault(locator, len(numbers))
        if number == len(sizes):
            sizes.append(size)
        new.append(number)
    pieces = array("I", (new[block] for block in blocks.pieces))
    return Blocks(tuple(numbers), sizes, blocks.starts, pieces)
