"""Opens the disk cache that the options of a mount or command select."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.config.options import AUTOMATIC
from keepfs.keep.caching.disk.disk_cache import DiskCache, default_directory
from keepfs.keep.errors import ArgumentError

if TYPE_CHECKING:
    from pathlib import Path

    from keepfs.config.options import StoreOptions


def disk_cache_of(options: StoreOptions, patience: float = 0.0) -> DiskCache | None:
    """Open the disk cache; return None if the options turn it off. Blocks.

    Args:
        options: The options of a mount or command.
        patience: Seconds that a fetch waits for the disk.

    Raises:
        ArgumentError: No directory is given, and the user has no home directory.
    """
    directory = directory_of(options)
    if directory is None:
        return None
    budget = None if options.disk_cache == AUTOMATIC else options.disk_cache
    return DiskCache(directory, budget, patience=patience)


def directory_of(options: StoreOptions) -> Path | None:
    """Return the directory of the disk cache; None if the options turn it off.

    Raises:
        ArgumentError: No directory is given, and the user has no home directory.
    """
    if not options.disk_cache:
        return None
    try:
        return options.disk_cache_dir or default_directory()
    except RuntimeError as error:
        raise ArgumentError(
            "can't choose the directory of the disk cache: there is no home directory; set HOME,"
            " or give --disk-cache-dir"
        ) from error
