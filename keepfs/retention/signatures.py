"""Signatures: replaces locators by newer ones of the same blocks. No I/O.

Texts are handled as bytes, without parsing: a tree may have millions of locators.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING

from keepfs.keep.locator import KeepLocator

if TYPE_CHECKING:
    from collections.abc import Iterable

# In a manifest. No segment matches: its first colon comes before any `+`.
_IN_MANIFEST = re.compile(rb" ([0-9a-f]{32}\+[0-9]+)((?:\+[A-Z][-A-Za-z0-9@_]*)*)(?=[ \n])")
# In a row of the catalog, where only locators match.
_IN_CONTENT = re.compile(rb'"([0-9a-f]{32}\+[0-9]+)((?:\+[A-Z][-A-Za-z0-9@_]*)*)"')
_EXPIRY = re.compile(rb"\+A[0-9a-f]{40}@([0-9A-Fa-f]{8})")


class Signatures:
    """The newest locators, by digest and size."""

    def __init__(self) -> None:
        self._hints: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._hints)

    def take_manifest(self, manifest: bytes) -> None:
        """Add the locators of a manifest that the API server signed."""
        self._hints.update((match[1], match[2]) for match in _IN_MANIFEST.finditer(manifest))

    def take(self, locator: KeepLocator) -> None:
        """Add a locator that a service signed."""
        portable = locator.stripped()
        self._hints[portable.encode()] = str(locator)[len(portable) :].encode()

    def newer(self, locator: KeepLocator) -> KeepLocator | None:
        """Return the newest locator of the same block; None if it is unknown or unsigned."""
        portable = locator.stripped().encode()
        hints = self._hints.get(portable)
        return KeepLocator((portable + hints).decode()) if hints else None

    def rewritten(self, content: bytes) -> bytes:
        """Return the content of a catalog's row with the newest locators."""

        def replaced(match: re.Match[bytes]) -> bytes:
            hints = self._hints.get(match[1])
            return match[0] if not hints else b'"' + match[1] + hints + b'"'

        return _IN_CONTENT.sub(replaced, content)

    def expiry(self) -> float:
        """Return when the first signature expires, in seconds since 1970; infinity without any."""
        return min(map(_expiry_of, self._hints.values()), default=float("inf"))


def locators_of_row(content: bytes) -> list[bytes]:
    """Return the locators in the content of a catalog's row."""
    return [match[1] + match[2] for match in _IN_CONTENT.finditer(content)]


def first_expiry(contents: Iterable[bytes]) -> float:
    """Return when the first signature expires, in seconds since 1970; infinity without any."""
    return min(
        (int(match[1], 16) for content in contents for match in _EXPIRY.finditer(content)),
        default=float("inf"),
    )


def wall_clock() -> float:
    """Return the seconds since 1970: signatures expire by the wall clock."""
    return dt.datetime.now(dt.UTC).timestamp()


def is_expired(locator: KeepLocator, now: float | None = None) -> bool:
    """Return whether a locator's signature has expired at `now` (seconds since 1970)."""
    expiry = locator.perm_expiry
    return expiry is not None and expiry.timestamp() <= (wall_clock() if now is None else now)


def _expiry_of(hints: bytes) -> float:
    match = _EXPIRY.search(hints)
    return float("inf") if match is None else int(match[1], 16)
