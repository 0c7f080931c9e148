"""Signatures: newer locators of blocks, put in place of the older ones. Pure.

Texts are handled as bytes, without parsing them: a tree may have millions of locators.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING

from keepfs.keep.locator import KeepLocator

if TYPE_CHECKING:
    from collections.abc import Iterable

# In a manifest: a position and a size are digits and colons, so no file is mistaken for one.
_IN_MANIFEST = re.compile(rb" ([0-9a-f]{32}\+[0-9]+)((?:\+[A-Z][-A-Za-z0-9@_]*)*)(?=[ \n])")
# In a row of the catalog: the first value of a JSON list, which nothing else looks like.
_IN_CONTENT = re.compile(rb'"([0-9a-f]{32}\+[0-9]+)((?:\+[A-Z][-A-Za-z0-9@_]*)*)"')
_EXPIRY = re.compile(rb"\+A[0-9a-f]{40}@([0-9A-Fa-f]{8})")


class Signatures:
    """Locators by digest and size."""

    def __init__(self) -> None:
        self._hints: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._hints)

    def take_manifest(self, manifest: bytes) -> None:
        """Take the locators of a manifest as the server signed them."""
        self._hints.update((match[1], match[2]) for match in _IN_MANIFEST.finditer(manifest))

    def take(self, locator: KeepLocator) -> None:
        """Take a locator that a service signed."""
        portable = locator.stripped()
        self._hints[portable.encode()] = str(locator)[len(portable) :].encode()

    def newer(self, locator: KeepLocator) -> KeepLocator | None:
        """Return the locator of the same block; None if it is not here, or not signed."""
        portable = locator.stripped().encode()
        hints = self._hints.get(portable)
        return KeepLocator((portable + hints).decode()) if hints else None

    def rewritten(self, content: bytes) -> bytes:
        """Return the content of a catalog's row with these locators."""

        def replaced(match: re.Match[bytes]) -> bytes:
            hints = self._hints.get(match[1])
            return match[0] if not hints else b'"' + match[1] + hints + b'"'

        return _IN_CONTENT.sub(replaced, content)

    def expiry(self) -> float:
        """Return when the first of them ends, in seconds since 1970; infinity if none does."""
        return min(map(_expiry_of, self._hints.values()), default=float("inf"))


def locators_of_row(content: bytes) -> list[bytes]:
    """Return the locators in the content of a catalog's row."""
    return [match[1] + match[2] for match in _IN_CONTENT.finditer(content)]


def first_expiry(contents: Iterable[bytes]) -> float:
    """Return when the first signature ends, in seconds since 1970; infinity if none does."""
    return min(
        (int(match[1], 16) for content in contents for match in _EXPIRY.finditer(content)),
        default=float("inf"),
    )


def wall_clock() -> float:
    """Return the seconds since 1970: signatures end by the clock."""
    return dt.datetime.now(dt.UTC).timestamp()


def is_expired(locator: KeepLocator, now: float | None = None) -> bool:
    """Tell whether a locator's signature has ended."""
    expiry = locator.perm_expiry
    return expiry is not None and expiry.timestamp() <= (wall_clock() if now is None else now)


def _expiry_of(hints: bytes) -> float:
    match = _EXPIRY.search(hints)
    return float("inf") if match is None else int(match[1], 16)
