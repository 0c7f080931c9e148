"""Losses: stored files with blocks that can't be read any more."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from keepfs.keep.errors import Cause, KeepRequestError
from keepfs.keep.locator import KeepLocator
from keepfs.messages import of_retention
from keepfs.retention import rows, signatures

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keepfs.fs.upload.catalog import Catalog

_log = logging.getLogger(__name__)

#: Most lost files that are logged one by one.
_MOST_NAMED = 20


def expired(locator: KeepLocator) -> str:
    """Return the reason why a block with an expired signature can't be read, as text."""
    expiry = locator.perm_expiry
    when = "" if expiry is None else f" at {expiry:%Y-%m-%d %H:%M:%S} UTC"
    return (
        f"the signature of block {locator.stripped()} ended{when}, and nothing renewed it: the"
        " mount was not up in time, and no collection of its own has the file"
    )


def expired_files(catalog: Path) -> dict[int, str]:
    """Return the reason for each file with an expired signature, by its number. Blocks.

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
    """Return when the first signature expires of the files whose signatures are all valid.

    Infinite without any. Times are in seconds since 1970. Blocks.

    Raises:
        CatalogError: The catalog can't be read.
    """
    ends = (signatures.first_expiry([content]) for _, content in rows.contents(catalog))
    return min((each for each in ends if each > now), default=float("inf"))


def first_to_expire(catalog: Path) -> tuple[int, KeepLocator] | None:
    """Return the locator whose signature expires first, and the number of its file.

    Only files whose signatures are all valid are considered; None if there are none. Blocks.

    Raises:
        CatalogError: The catalog can't be read.
    """
    now, first, found = signatures.wall_clock(), float("inf"), None
    for number, content in rows.contents(catalog):
        if now < signatures.first_expiry([content]) < first:
            first, found = signatures.first_expiry([content]), (number, content)
    if found is None:
        return None
    locators = [KeepLocator(text.decode()) for text in signatures.locators_of_row(found[1])]
    signed = [(each.perm_expiry, each) for each in locators if each.perm_expiry is not None]
    return found[0], min(signed, key=lambda each: each[0])[1]


def warn_of_former_token(
    catalog: Path, head: Callable[[KeepLocator], object], path_of: Callable[[int], str]
) -> None:
    """Log a warning if the services refuse a signature of a stored file that hasn't expired.

    The block whose signature expires first is requested by HEAD: it is the oldest, so it is
    the likeliest to have the signature of a former token. Failures other than a refusal are
    ignored. Blocks.

    Args:
        catalog: The path of the mount's catalog.
        head: Requests a block by HEAD.
        path_of: Returns the path of a file in upload/, by its number.

    Raises:
        CatalogError: The catalog can't be read.
    """
    found = first_to_expire(catalog)
    if found is None:
        return
    number, locator = found
    try:
        head(locator)
    except KeepRequestError as error:
        if error.cause is Cause.DENIED and locator.perm_expiry is not None:
            _log.warning(
                "%s",
                of_retention.SIGNED_BY_FORMER_TOKEN(
                    path=path_of(number), time=f"{locator.perm_expiry:%Y-%m-%d %H:%M:%S}"
                ),
            )


def mark(catalog: Catalog, reasons: dict[int, str]) -> None:
    """Record and log lost files that aren't recorded yet. For the thread of the catalog.

    Raises:
        OSError: The catalog couldn't be written.
    """
    new = {number: reason for number, reason in reasons.items() if not catalog.lost(number)}
    if not new:
        return
    catalog.mark_lost(new.items())
    for number, reason in list(new.items())[:_MOST_NAMED]:
        path = catalog.path_of(number)
        _log.error("%s", of_retention.FILE_LOST(path=path, reason=reason))
    if len(new) > _MOST_NAMED:
        _log.error("%s", of_retention.MORE_FILES_LOST(count=len(new) - _MOST_NAMED))
