"""SQLite errors: conversion to OSError, and messages."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The disk is full. The index of the write-ahead log has a separate code for it.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextlib.contextmanager
def as_os_errors() -> Iterator[None]:
    """Convert errors of the catalog's database to OSError: ENOSPC or EIO."""
    try:
        yield
    except sqlite3.Error as error:
        number = errno.ENOSPC if _code(error) in _FULL else errno.EIO
        raise OSError(number, f"the catalog can't be written or read: {reason(error)}") from error


def reason(error: sqlite3.Error) -> str:
    """Return the message of an error, with the remedy if one is known."""
    if _code(error) in _FULL:
        return "its disk is full"
    if _code(error) in _DAMAGED:
        return f"{error}; move it away to begin a new one"
    return str(error)


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's extended code; 0 for errors of Python's own module."""
    return getattr(error, "sqlite_errorcode", 0)
