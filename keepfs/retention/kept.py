"""The modes of retention, its statistics, and its interfaces to store and files."""

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
    """The interface of the store for retention."""

    @property
    def api_token(self) -> str:
        """The current token."""

    def put_again(self, locator: KeepLocator, copies: int) -> KeepLocator:
        """Read a block and store it again; return its new locator. Blocks.

        Raises:
            KeepRequestError: The block couldn't be read or stored.
        """

    def renew(self) -> bool:
        """Read the token again; return whether it has changed. Blocks."""


class KeptFiles(Protocol):
    """The files of upload/ that are in memory."""

    def files(self) -> Iterable[UploadFile]:
        """Return the files."""


class KeeperStatistics(NamedTuple):
    """The state of retention.

    Attributes:
        mode: A value of `Mode`, or `local`.
        collections: Uuids of the collections that keep the blocks.
        updated_at: When they were last brought up to date, on trio's clock; None if never.
        next_expiry: When the first signature expires, in seconds since 1970; None if unknown
            or without signatures.
        waiting: The number of stored files that no collection has yet.
        failures: The number of consecutive failures.
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
        """Make statistics from the state of a keeper.

        Args:
            mode: See the attribute.
            parts: The collections.
            updated_at: See the attribute.
            earliest: When the first signature expires; 0 if unknown, infinite without any.
            waiting: See the attribute.
            failures: See the attribute.
        """
        uuids = tuple(each.uuid for each in parts if each.uuid)
        expiry = earliest if 0 < earliest < float("inf") else None
        return cls(mode, uuids, updated_at, expiry, waiting, failures)
