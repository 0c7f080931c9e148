"""Recorder: who is told what becomes of a file, wherever the file is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepfs.fs.nodes import Metadata
    from keepfs.keep.receipt import Receipt


class Recorded(Protocol):
    """A file, as far as it is recorded.

    Attributes:
        number: The catalog's; None until a version is stored.
        metadata: What `stat` says, but for the size.
    """

    number: int | None
    metadata: Metadata


class Recorder(Protocol):
    """Who is told what becomes of a file."""

    @property
    def path(self) -> str:
        """The file's path below upload/."""

    def record_version(self, file: Recorded, receipts: Sequence[Receipt]) -> None:
        """Note that a version is stored, in one step."""

    def record_metadata(self, number: int | None, metadata: Metadata) -> None:
        """Note new modes and times, if the catalog knows the file."""

    def sync(self) -> None:
        """Make what is noted survive a power cut. Blocks; any thread may call it."""
