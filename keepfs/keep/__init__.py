"""The Keep client: a drop-in replacement for the Python SDK's.

Blocking and thread-safe; independent of trio and FUSE. The names exported here
are its public interface. A name is imported on its first use, so that a command which
needs the errors alone does not load requests.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

#: Each public name: the module that has it.
_MODULES = {
    "MAX_BLOCK_SIZE": "keepfs.keep.locator",
    "ArgumentError": "keepfs.keep.errors",
    "Cause": "keepfs.keep.errors",
    "HttpError": "keepfs.keep.errors",
    "KeepBlockCache": "keepfs.keep.caching.cache",
    "KeepCacheError": "keepfs.keep.errors",
    "KeepClient": "keepfs.keep.client",
    "KeepLocator": "keepfs.keep.locator",
    "KeepReadError": "keepfs.keep.errors",
    "KeepRequestError": "keepfs.keep.errors",
    "KeepWriteError": "keepfs.keep.errors",
    "LocalStore": "keepfs.keep.local",
    "NoKeepServersError": "keepfs.keep.errors",
    "NotFoundError": "keepfs.keep.errors",
    "Receipt": "keepfs.keep.store",
}


def __getattr__(name: str) -> object:
    """Import a public name on its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
