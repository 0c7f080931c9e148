"""Checks that the files and directories a mount uses are not inside the mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.config.arvados import ca_file, load_settings
from keepfs.keep.caching.disk.opening import directory_of
from keepfs.messages import of_mounts
from keepfs.mount import runtime
from keepfs.mount.fuse import MountError

if TYPE_CHECKING:
    from pathlib import Path

    from keepfs.config.options import MountOptions


def check_outside(options: MountOptions, log_file: Path | None) -> None:
    """Check that no path that the process uses is inside the mount: it would deadlock.

    The configuration file isn't one of them: it is read only before the mount.

    Args:
        options: The options of the mount.
        log_file: The log file in use; None for standard error.

    Raises:
        MountError: One of them is inside the mount point.
        ArgumentError: The disk cache has no directory, since there is no home directory.
        OSError: The settings file or the runtime directory can't be used.
    """
    for what, path in _own_paths(options, log_file).items():
        if path is not None and path.resolve().is_relative_to(options.mountpoint):
            raise MountError(
                of_mounts.PATH_IN_MOUNT(what=what, path=path, mountpoint=options.mountpoint)
            )


def _own_paths(options: MountOptions, log_file: Path | None) -> dict[str, Path | None]:
    """Return each path by its name in messages; None for a path that isn't used."""
    store = options.store
    paths = {
        "the local store": store.local_store,
        "the state directory": options.state_dir,
        "the log file": log_file,
        "the metrics file": options.metrics_file,
        "the directory of the disk cache": directory_of(store),
        "the directory of run files": runtime.runtime_directory(),
    }
    if store.local_store is None:
        paths["the token file"] = store.token_file
        paths["the settings file"] = load_settings().source
        paths["the bundle of certificates"] = ca_file()
    return paths
