"""Renewal: the interface by which a file of upload/ gets new signatures for its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.fs.upload.stored import StoredBytes
    from keepfs.keep.locator import KeepLocator
    from keepfs.keep.store import Receipt

#: Returns the newest locator of a block; None if no newer one is known.
Newer: TypeAlias = "Callable[[KeepLocator], KeepLocator | None]"


class Renewal(Protocol):
    """Keeps stored blocks readable. For the trio thread only."""

    def retained(self, number: int | None) -> str:
        """Return what keeps the stored version of a file: a collection's uuid, `put` or `no`.

        Empty if blocks are never removed.

        Args:
            number: The number of the file in the catalog.
        """

    async def refused(self, locator: KeepLocator, number: int | None) -> bool:
        """Get new signatures after a refusal; return whether there are any.

        Before it returns, it updates the files in memory. Waits for the API server.

        Args:
            locator: The locator that the services refused.
            number: The number of the file in the catalog.
        """

    def missing(self, number: int | None, reason: str) -> None:
        """Record that a block of a file is in no service."""

    def lost(self, number: int | None) -> str:
        """Return why a file can't be read any more; empty if nothing is known to be lost."""


class NoRenewal:
    """The renewal of a store whose blocks need no signatures and are never removed."""

    def retained(self, number: int | None) -> str:  # noqa: ARG002 - the same for all
        """Return an empty text."""
        return ""

    async def refused(
        self,
        locator: KeepLocator,  # noqa: ARG002 - the same for all
        number: int | None,  # noqa: ARG002 - the same for all
    ) -> bool:
        """Return False: there are no new signatures."""
        return False

    def missing(self, number: int | None, reason: str) -> None:
        """Do nothing."""

    def lost(self, number: int | None) -> str:  # noqa: ARG002 - the same for all
        """Return an empty text: no file is known to be lost."""
        return ""


class Relabelled:
    """Replaces receipts by ones with newer locators, one object by one object.

    Args:
        newer: Returns the newer locators.
    """

    def __init__(self, newer: Newer) -> None:
        self._newer = newer
        self._known: dict[int, tuple[Receipt, Receipt]] = {}

    def stored(self, old: StoredBytes) -> StoredBytes:
        """Return the same bytes with the newest locators of their blocks."""
        return old.with_receipts(self.receipt)

    def receipt(self, old: Receipt) -> Receipt:
        """Return a receipt of the same block with its newest locator."""
        known = self._known.get(id(old))
        if known is None:
            locator = self._newer(old.locator)
            new = old if locator is None else _with_locator(old, locator)
            known = self._known[id(old)] = (old, new)  # `old` stays alive, and so its id
        return known[1]


def _with_locator(receipt: Receipt, locator: KeepLocator) -> Receipt:
    return type(receipt)(locator, receipt.copies, receipt.services, receipt.classes)
