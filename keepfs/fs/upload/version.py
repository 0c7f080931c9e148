"""Version: names and attributes of a stored version, from the ranges of its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepfs.fs.upload.stored import StoredBytes
    from keepfs.keep.locator import KeepLocator
    from keepfs.keep.store import Receipt


def locators_of(stored: StoredBytes) -> list[KeepLocator]:
    """Return the locators of the blocks, in order.

    If all ranges are whole blocks, the list stands for the bytes, as a name in by_id/. Otherwise
    each block is in it once, as for files in collections/.
    """
    locators = [each.locator for each in stored.ranges]
    if all(each.is_whole for each in stored.ranges):
        return locators
    return list(dict.fromkeys(locators))


def identity_of(stored: StoredBytes) -> str:
    """Return a text that stands for the bytes; it changes if signatures do.

    Of whole blocks it is their name in by_id/; a part of a block is `locator:offset:length`.
    """
    return ",".join(
        str(each.locator) if each.is_whole else f"{each.locator}:{each.offset}:{each.length}"
        for each in stored.ranges
    )


def unsigned(identity: str) -> list[str]:
    """Return the parts of `identity_of` without hints: signatures change."""
    found = []
    for each in identity.split(",") if identity else ():
        locator, colon, place = each.partition(":")
        found.append("+".join(locator.split("+")[:2]) + colon + place)
    return found


def xattrs_of(stored: StoredBytes) -> dict[str, str]:
    """Return the attributes `user.keep.…`, without the state."""
    receipts = list(stored.receipts())
    services = dict.fromkeys(name for each in receipts for name in each.services)
    found = {
        "user.keep.locator": ",".join(map(str, locators_of(stored))),
        "user.keep.copies": copies_as_text(receipts),
        "user.keep.services": " ".join(services),
    }
    expiries = [expiry for each in receipts if (expiry := each.locator.perm_expiry) is not None]
    if expiries:
        found["user.keep.expires"] = min(expiries).isoformat()
    return found


def copies_as_text(receipts: Sequence[Receipt]) -> str:
    """Return how many copies of each block were confirmed; `unknown` if nothing confirmed any.

    An imported file has blocks that another client stored: their receipts count no copies.
    """
    return str(min((each.copies for each in receipts), default=0) or "unknown")
