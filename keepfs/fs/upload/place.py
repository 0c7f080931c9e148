"""Place: the directory and name of a node of upload/, and its records in the catalog."""

from __future__ import annotations

import contextlib
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from keepfs.fs.upload.stored import NOTHING, StoredBytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.fs.nodes import Metadata
    from keepfs.fs.upload.catalog import Catalog
    from keepfs.fs.upload.entries import Entry
    from keepfs.keep.store import Receipt


#: Called with the receipt of a stored block that is all in one file, and its owner and mode.
OnStored: TypeAlias = "Callable[[Receipt, Metadata], None]"


class Recorded(Protocol):
    """A file that can be recorded in the catalog.

    Attributes:
        number: Its number in the catalog; None until a version is stored.
        metadata: Its mode, owner and times.
    """

    number: int | None
    metadata: Metadata


class ParentDirectory(Recorded, Protocol):
    """The interface of a directory for places.

    Attributes:
        catalog: Records its entries.
        on_stored: Called with a block's receipt and its file's metadata, if either is new.
        place: Its own place; None for upload/ itself, and after its removal.
        unrecorded: The names of its files that aren't in the catalog yet.
    """

    catalog: Catalog
    on_stored: OnStored
    place: Place | None
    unrecorded: dict[str, None]

    def let_go(self, name: str) -> bool:
        """Drop an entry from memory; return whether this directory can be dropped too."""


@dataclass(frozen=True, slots=True)
class Spilled:
    """The spill record of a file: its unstored bytes on the local disk.

    Attributes:
        name: The name of the record.
        path: The path below upload/ in the record.
        changes: The file's count of changes that the record has; see `StoringFile.changes`.
        is_partial: Whether it must not replace the stored version.
        remove: Deletes the record, after the catalog has marked it as obsolete.
            Doesn't wait.
    """

    name: str
    path: str
    changes: int
    remove: Callable[[], None]
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a node.

    Attributes:
        directory: Its directory.
        name: Its name in the directory.
    """

    directory: ParentDirectory
    name: str

    @property
    def path(self) -> str:
        """The path below upload/.

        For any thread: each step reads one attribute once, whose value is an immutable place.
        If directories are renamed meanwhile, parts of it may be of before and of after.
        """
        names, above = [self.name], self.directory.place
        while above is not None:
            names.append(above.name)
            above = above.directory.place
        return "/".join(reversed(names))

    def leave(self) -> None:
        """Drop the node from memory, and the parent directories that are no longer needed."""
        place: Place | None = self  # not recursive: a tree may exceed the recursion limit
        while place is not None and place.directory.let_go(place.name):
            place = place.directory.place

    @property
    def has_version(self) -> bool:
        """Whether the catalog has a stored version under this name."""
        return self._entry() is not None

    def version(self) -> StoredBytes:
        """Return the catalog's version of this name."""
        return self.version_of(entry.number if (entry := self._entry()) else None)

    def _entry(self) -> Entry | None:
        """Return the catalog's entry of this name: the file, or the one that it will replace."""
        number = self.directory.number
        return None if number is None else self.directory.catalog.child(number, self.name)

    def record_version(self, file: Recorded, stored: StoredBytes, spilled: str = "") -> None:
        """Record a stored version of a file in the catalog.

        Args:
            file: The file.
            stored: Where its bytes are.
            spilled: The name of the spill record that this makes obsolete.

        Raises:
            OSError: It couldn't be written.
        """
        directory, catalog = self.directory, self.directory.catalog
        number = file.number
        with catalog.change():
            if number is None:
                parent = directory.number or 0
                number = catalog.add_file(parent, self.name, file.metadata, stored)
                catalog.set_metadata(parent, directory.metadata)
            else:
                catalog.set_version(number, file.metadata, stored)
            if spilled:
                catalog.mark_obsolete(spilled)
        file.number = number
        directory.unrecorded.pop(self.name, None)

    def version_of(self, number: int | None) -> StoredBytes:
        """Return the stored version of a file by its number; nothing if it has none."""
        return NOTHING if number is None else self.directory.catalog.version(number)

    def record_metadata(self, number: int | None, metadata: Metadata) -> None:
        """Record a node's mode, owner and times, if the node is in the catalog.

        Calls `on_stored` for the blocks of a file whose mode or group has changed.

        Raises:
            OSError: They couldn't be written.
        """
        if number is None:
            return
        catalog = self.directory.catalog
        before = catalog.access(number)
        with catalog.change():
            catalog.set_metadata(number, metadata)
        if before != (metadata.mode, metadata.gid) and stat.S_ISREG(metadata.mode):
            with contextlib.suppress(OSError):  # the blocks of a damaged entry are unknown
                for receipt in catalog.version(number).whole_blocks():
                    self.directory.on_stored(receipt, metadata)

    def sync(self) -> None:
        """Sync the catalog to disk. Blocks; any thread may call it."""
        self.directory.catalog.sync()
