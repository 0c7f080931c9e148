"""What is kept, and how: the modes of retention, and what it needs of store and files."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepfs.fs.upload.file import UploadFile
    from keepfs.keep.locator import KeepLocator
    from keepfs.retention.ledger import Part


class Mode(enum.Enum):
    """How stored blocks are kept: the values of --retain."""

    COLLECTION = "collection"
    PUT = "put"
    OFF = "off"


class KeptStore(Protocol):
    """The store, as far as its token goes."""

    @property
    def api_token(self) -> str:
        """The token at this moment."""

    def put_again(self, locator: KeepLocator, copies: int) -> KeepLocator:
        """Read a block and store it again. Blocks."""

    def renew(self) -> bool:
        """Read the token again; return whether it has changed. Blocks."""


class KeptFiles(Protocol):
    """upload/, as far as it is in memory."""

    def files(self) -> Iterable[UploadFile]:
        """Go through the files."""


class KeeperStatistics(NamedTuple):
    """The state of retention.

    Attributes:
        mode: A value of `Mode`, or `local`.
        collections: Uuids of the collections that keep the blocks.
        updated_at: When they were last brought up to date, on trio's clock; None if never.
        next_expiry: When the first signature ends, in seconds since 1970; None if unknown or
            without signatures.
        waiting: Stored files that no collection has yet.
        failures: Failed attempts in a row.
    """

    mode: str
    collections: tuple[str, ...]
    updated_at: float | None
    next_expiry: float | None
    waiting: int
    failures: int

    @classmethod
    def of(
        cls,
        mode: str,
        parts: Iterable[Part],
        updated_at: float | None,
        earliest: float,
        waiting: int,
        failures: int,
    ) -> KeeperStatistics:
        """Make one.

        Args:
            mode: As `mode`.
            parts: The collections.
            updated_at: As `updated_at`.
            earliest: When the first signature ends; 0 if unknown, infinite without any.
            waiting: As `waiting`.
            failures: As `failures`.
        """
        uuids = tuple(each.uuid for each in parts if each.uuid)
        expiry = earliest if 0 < earliest < float("inf") else None
        return cls(mode, uuids, updated_at, expiry, waiting, failures)
