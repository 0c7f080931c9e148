"""Rows: reads the contents of a catalog's files while it is in use, and computes new ones.

All functions block; they are not for the trio thread.
"""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from typing import TYPE_CHECKING, TypeAlias

from keepfs.fs.upload.catalog import CatalogError
from keepfs.fs.upload.sqlite_errors import reason
from keepfs.messages import of_mounts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keepfs.retention.signatures import Signatures

#: Number of an entry, its content as it was read, and the new one.
Rewrite: TypeAlias = tuple[int, bytes, bytes]

#: Most rows of one transaction, which takes about 2 ms of the trio thread.
BATCH = 256


def contents(catalog: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each file, all from one state of the catalog.

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
        raise CatalogError(
            of_mounts.CATALOG_UNUSABLE(path=f" {catalog}", reason=reason(error))
        ) from error


def rewrites(catalog: Path, newer: Signatures) -> Iterator[list[Rewrite]]:
    """Yield the rows that get other locators, in batches of at most `BATCH`.

    Raises:
        CatalogError: The catalog can't be read.
    """
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
