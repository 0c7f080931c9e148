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
        """Say what keeps the stored version of a file: a collection's uuid, `put` or `no`.

        Empty where blocks are never removed.

        Args:
            number: The catalog's, of the file.
        """

    async def refused(self, locator: KeepLocator, number: int | None) -> bool:
        """Get new signatures after a refusal; return whether there are any.

        When it returns, the files in memory have the new ones.

        Args:
            locator: The refused one.
            number: The catalog's, of the file.
        """

    def missing(self, number: int | None, reason: str) -> None:
        """Record that a block of a file is in no service."""

    def lost(self, number: int | None) -> str:
        """Return why a file can't be read any more; empty if nothing is known to be lost."""


class NoRenewal:
    """Nothing keeps the blocks."""

    def retained(self, number: int | None) -> str:  # noqa: ARG002 - the same for all
        """Say nothing: the blocks need nothing."""
        return ""

    async def refused(
        self,
        locator: KeepLocator,  # noqa: ARG002 - the same for all
        number: int | None,  # noqa: ARG002 - the same for all
    ) -> bool:
        """Get nothing."""
        return False

    def missing(self, number: int | None, reason: str) -> None:
        """Record nothing."""

    def lost(self, number: int | None) -> str:  # noqa: ARG002 - the same for all
        """Know nothing."""
        return ""


class Relabelled:
    """Receipts with newer locators; what was one object stays one object.

    Args:
        newer: Where the locators come from.
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
