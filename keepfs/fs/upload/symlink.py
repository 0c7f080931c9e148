"""A symbolic link of upload/."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.fs.metadata_changes import changed_metadata
from keepfs.fs.nodes import Changes, Metadata, SymlinkNode

if TYPE_CHECKING:
    from keepfs.fs.upload.place import Place


class UploadSymlink(SymlinkNode):
    """A symbolic link in upload/."""

    __slots__ = ("number", "place")

    def __init__(self, metadata: Metadata, target: bytes) -> None:
        super().__init__(metadata, target)
        self.place: Place | None = None
        self.number: int | None = None

    @property
    def mount_path(self) -> str:
        """The path from the mount's root; empty if it has no name. For any thread."""
        place = self.place
        return "" if place is None else f"upload/{place.path}"

    async def change(self, changes: Changes) -> None:
        """Apply a setattr."""
        metadata = changed_metadata(self.metadata, changes)
        if self.place is not None:
            self.place.record_metadata(self.number, metadata)
        self.metadata = metadata

    def forgotten(self) -> None:
        """Drop the node from memory: the catalog has all of it."""
        if self.place is not None:
            self.place.leave()
