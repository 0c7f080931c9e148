"""Rows: the contents of a catalog's files, read beside a mount, and what is to replace them.

Blocking; not for the trio thread.
"""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from typing import TYPE_CHECKING, TypeAlias

from keepfs.fs.upload.catalog import CatalogError
from keepfs.fs.upload.sqlite_errors import reason
from keepfs.retention import signatures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keepfs.retention.signatures import Signatures

#: Number of an entry, its content as it was read, and the new one.
Rewrite: TypeAlias = tuple[int, bytes, bytes]

#: Rows of one transaction: it takes the trio thread some 2 ms.
BATCH = 256


def contents(catalog: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each file.

    Raises:
        CatalogError: The catalog can't be read.
    """
    query = "SELECT number, content FROM entries WHERE mode & ? = ? ORDER BY number"
    uri = f"{catalog.absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as database:
            database.execute("BEGIN")
            for number, content in database.execute(query, (stat.S_IFMT(0o777777), stat.S_IFREG)):
                if isinstance(number, int) and isinstance(content, bytes):
                    yield number, content
    except sqlite3.Error as error:
        raise CatalogError(f"the catalog {catalog} can't be read: {reason(error)}") from error


def next_expiry(catalog: Path, now: float) -> float:
    """Return when the next signature ends, in seconds since 1970; infinity if none does.

    A file one of whose signatures has ended already is left out: nothing is to be renewed of it.
    """
    firsts = (signatures.first_expiry([content]) for _, content in contents(catalog))
    return min((first for first in firsts if first > now), default=float("inf"))


def rewrites(catalog: Path, newer: Signatures) -> Iterator[list[Rewrite]]:
    """Yield, in batches, the rows that have other locators now."""
    batch: list[Rewrite] = []
    for number, content in contents(catalog):
        new = newer.rewritten(content)
        if new != content:
            batch.append((number, content, new))
        if len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
