"""Place: where a node of upload/ is, and is recorded."""

from __future__ import annotations

import contextlib
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from keepfs.fs.upload.version import distinct

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keepfs.fs.nodes import Metadata
    from keepfs.fs.upload.catalog import Catalog
    from keepfs.fs.upload.entries import Entry
    from keepfs.keep.store import Receipt


#: Takes a stored block's receipt, and owner and mode of the file that has it.
OnStored: TypeAlias = "Callable[[Receipt, Metadata], None]"


class Recorded(Protocol):
    """A file, as far as it is recorded.

    Attributes:
        number: The catalog's; None until a version is stored.
        metadata: What `stat` says, but for the size.
    """

    number: int | None
    metadata: Metadata


class ParentDirectory(Recorded, Protocol):
    """A directory, as far as places go.

    Attributes:
        catalog: Where its entries are recorded.
        on_stored: Called with each stored block's receipt and its file's metadata, if new.
        place: Its own; None for upload/ itself, and once it is removed.
        unrecorded: The names there of files that the catalog doesn't know yet.
    """

    catalog: Catalog
    on_stored: OnStored
    place: Place | None
    unrecorded: dict[str, None]

    def let_go(self, name: str) -> bool:
        """Have an entry in memory no longer; tell whether that was all that kept this there."""


@dataclass(frozen=True, slots=True)
class Spilled:
    """The spill record of a file: its unstored bytes on this machine's disk.

    Attributes:
        name: Of the record.
        path: The path below upload/ that the record names.
        changes: Which changes of the file it has; see `StoringFile.changes`.
        is_partial: Whether it must not replace the stored version.
        remove: Deletes the record, once the catalog says that it is obsolete.
            Doesn't wait.
    """

    name: str
    path: str
    changes: int
    remove: Callable[[], None]
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is, and is recorded.

    Attributes:
        directory: Its directory.
        name: Its name there.
    """

    directory: ParentDirectory
    name: str

    @property
    def path(self) -> str:
        """The path below upload/."""
        names, above = [self.name], self.directory.place
        while above is not None:
            names.append(above.name)
            above = above.directory.place
        return "/".join(reversed(names))

    def leave(self) -> None:
        """Let the node leave memory, and the directories above that were there for it alone."""
        place: Place | None = self  # not by recursion: a tree may be deeper than that can be
        while place is not None and place.directory.let_go(place.name):
            place = place.directory.place

    @property
    def has_version(self) -> bool:
        """Whether the catalog has a stored version under this name."""
        return self._entry() is not None

    def version(self) -> tuple[Receipt, ...]:
        """Return the receipts of the version that the catalog has under this name."""
        entry = self._entry()
        return () if entry is None else self.directory.catalog.receipts(entry.number)

    def _entry(self) -> Entry | None:
        """Return the catalog's entry of this name: the file itself, or the one it will replace."""
        number = self.directory.number
        return None if number is None else self.directory.catalog.child(number, self.name)

    def record_version(
        self, file: Recorded, receipts: Sequence[Receipt], spilled: str = ""
    ) -> None:
        """Note in the catalog that a file is stored.

        Args:
            file: What is stored.
            receipts: Of its blocks.
            spilled: The name of the spill record that this makes obsolete.

        Raises:
            OSError: It couldn't be written.
        """
        directory, catalog = self.directory, self.directory.catalog
        number = file.number
        with catalog.change():
            if number is None:
                parent = directory.number or 0
                number = catalog.add_file(parent, self.name, file.metadata, receipts)
                catalog.set_metadata(parent, directory.metadata)
            else:
                catalog.set_version(number, file.metadata, receipts)
            if spilled:
                catalog.mark_obsolete(spilled)
        file.number = number
        directory.unrecorded.pop(self.name, None)

    def receipts(self, number: int | None) -> tuple[Receipt, ...]:
        """Return the receipts of a file's stored version; none if there isn't one."""
        return () if number is None else self.directory.catalog.receipts(number)

    def record_metadata(self, number: int | None, metadata: Metadata) -> None:
        """Note a node's mode and times, if the catalog knows the node.

        Raises:
            OSError: They couldn't be written.
        """
        if number is None:
            return
        catalog = self.directory.catalog
        before = catalog.mode(number)
        with catalog.change():
            catalog.set_metadata(number, metadata)
        if before != metadata.mode and stat.S_ISREG(metadata.mode):
            with contextlib.suppress(OSError):  # of a damaged entry nobody knows the blocks
                for receipt in distinct(catalog.receipts(number)):
                    self.directory.on_stored(receipt, metadata)

    def sync(self) -> None:
        """Make what is recorded survive a power cut. Blocks; any thread may call it."""
        self.directory.catalog.sync()
