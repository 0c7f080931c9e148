"""Version: name, attributes and completeness of a stored version, from its receipts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keepfs.keep.store import Receipt


def name_of(receipts: Sequence[Receipt]) -> str:
    """Return the version's name in by_id/: the locators, joined by commas."""
    return ",".join(str(each.locator) for each in receipts)


def xattrs_of(receipts: Sequence[Receipt]) -> dict[str, str]:
    """Return the attributes `user.keep.…`, without the state."""
    services = dict.fromkeys(name for each in receipts for name in each.services)
    found = {
        "user.keep.locator": name_of(receipts),
        "user.keep.copies": copies_of(receipts),
        "user.keep.services": " ".join(services),
    }
    expiries = [expiry for each in receipts if (expiry := each.locator.perm_expiry) is not None]
    if expiries:
        found["user.keep.expires"] = min(expiries).isoformat()
    return found


def copies_of(receipts: Sequence[Receipt]) -> str:
    """Return how many copies of each block were confirmed; `unknown` if nothing confirmed any.

    An imported file has blocks that another client stored: their receipts count no copies.
    """
    return str(min((each.copies for each in receipts), default=0) or "unknown")


def distinct(receipts: Iterable[Receipt]) -> Iterable[Receipt]:
    """Return the distinct receipt objects: a sparse file has one for all its holes."""
    return {id(each): each for each in receipts}.values()


def is_whole(receipts: Sequence[Receipt], blocks: int, block_size: int) -> bool:
    """Return whether receipts make a version: none is missing, all but the last are full.

    The version has all bytes written before the store, and may have later ones.
    """
    sizes = [receipt.locator.size for receipt in receipts]
    return len(sizes) == blocks and all(size == block_size for size in sizes[:-1])
