"""Losses: stored files with blocks that can't be had any more."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from keepfs.keep.locator import KeepLocator
from keepfs.retention import rows, signatures

if TYPE_CHECKING:
    from pathlib import Path

    from keepfs.fs.upload.catalog import Catalog

_log = logging.getLogger(__name__)

#: Lost files that are named in the log one by one.
_MOST_NAMED = 20


def expired(locator: KeepLocator) -> str:
    """Say that nothing can read a block any more."""
    expiry = locator.perm_expiry
    when = "" if expiry is None else f" at {expiry:%Y-%m-%d %H:%M:%S} UTC"
    return (
        f"the signature of block {locator.stripped()} ended{when}, and nothing renewed it: the"
        " mount was not up in time, and no collection of its own has the file"
    )


def expired_files(catalog: Path) -> dict[int, str]:
    """Return, by number, why files can't be read whose signatures have ended. Blocks.

    Raises:
        CatalogError: The catalog can't be read.
    """
    now, lost = signatures.wall_clock(), {}
    for number, content in rows.contents(catalog):
        if signatures.first_expiry([content]) <= now:
            for text in signatures.locators_of_row(content):
                locator = KeepLocator(text.decode())
                if signatures.is_expired(locator, now):
                    lost[number] = expired(locator)
                    break
    return lost


def first_expiry_after(catalog: Path, now: float) -> float:
    """Return when the first signature of a file ends that holds at `now`; infinite without any.

    Blocks.

    Raises:
        CatalogError: The catalog can't be read.
    """
    ends = (signatures.first_expiry([content]) for _, content in rows.contents(catalog))
    return min((each for each in ends if each > now), default=float("inf"))


def mark(catalog: Catalog, reasons: dict[int, str]) -> None:
    """Record and log lost files that aren't recorded yet. For the thread of the catalog.

    Raises:
        OSError: It couldn't be written.
    """
    new = {number: reason for number, reason in reasons.items() if not catalog.lost(number)}
    if not new:
        return
    catalog.mark_lost(new.items())
    for number, reason in list(new.items())[:_MOST_NAMED]:
        _log.error("LOST: upload/%s: %s", catalog.path_of(number), reason)
    if len(new) > _MOST_NAMED:
        _log.error("LOST: %d further files of upload/", len(new) - _MOST_NAMED)
