"""Shares a disk cache between the block caches of a process with one directory and budget.

So clients that come and go, or one for each thread, have one set of descriptors, one thread that
writes, and one queue of blocks that wait in memory. It ends with the last of them.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from keepfs.keep.caching.disk.disk_cache import DiskCache, default_directory

if TYPE_CHECKING:
    import os

_shared = weakref.WeakValueDictionary[tuple[Path, int], DiskCache]()


def shared_disk_cache(directory: str | os.PathLike[str] | None, budget: int) -> DiskCache:
    """Return the disk cache of a directory that is in use, or open one. Blocks.

    Two threads that call this at the same time may open one each.

    Args:
        directory: The directory; None: the user's cache directory.
        budget: Most bytes; 0: `automatic_budget`.

    Raises:
        RuntimeError: No directory is given, and the user has no home directory.
    """
    path = (Path(directory) if directory else default_directory()).absolute()
    found = _shared.get((path, budget))
    if found is None or found.is_closed:
        found = _shared[path, budget] = DiskCache(path, budget or None)
    return found
