"""The Keep client: a drop-in replacement for the Python SDK's.

Blocking and thread-safe; independent of trio and FUSE. The names exported here
are its public interface.
"""

from keepfs.keep.caching.cache import KeepBlockCache
from keepfs.keep.client import KeepClient
from keepfs.keep.errors import (
    ArgumentError,
    Cause,
    HttpError,
    KeepCacheError,
    KeepReadError,
    KeepRequestError,
    KeepWriteError,
    NoKeepServersError,
    NotFoundError,
)
from keepfs.keep.local import LocalStore
from keepfs.keep.locator import MAX_BLOCK_SIZE, KeepLocator
from keepfs.keep.store import Receipt

__all__ = [
    "MAX_BLOCK_SIZE",
    "ArgumentError",
    "Cause",
    "HttpError",
    "KeepBlockCache",
    "KeepCacheError",
    "KeepClient",
    "KeepLocator",
    "KeepReadError",
    "KeepRequestError",
    "KeepWriteError",
    "LocalStore",
    "NoKeepServersError",
    "NotFoundError",
    "Receipt",
]
