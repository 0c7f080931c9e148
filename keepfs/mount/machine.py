"""Checks of the machine: the requirements of a mount on the kernel, fuse3 and AppArmor.

Nothing here accesses a mount, except one whose process has ended.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from keepfs.messages import of_mounts
from keepfs.mount import mountpoint, runtime

_KERNEL_SETTINGS = Path("/proc/sys/fs/fuse")
_APPARMOR = Path("/sys/kernel/security/apparmor/profiles")
#: Directories below which Ubuntu's AppArmor profile for fusermount3 allows mounts.
_ALLOWED = ("/mnt", "/media", "/tmp", "/cvmfs")  # noqa: S108 - a place to mount


def kernel_timeouts(settings: Path = _KERNEL_SETTINGS) -> dict[str, int]:
    """Return the kernel's time limits on FUSE requests, in seconds, by sysctl; only set ones."""
    found = {}
    for name in ("default_request_timeout", "max_request_timeout"):
        try:
            value = int((settings / name).read_text())
        except (OSError, ValueError):  # an older kernel
            continue
        if value:
            found[name] = value
    return found


def fusermount() -> str:
    """Return the path of fusermount3, with a note if it isn't setuid root; empty without it."""
    path = shutil.which("fusermount3")
    if path is None:
        return ""
    status = Path(path).stat()
    is_root = status.st_uid == 0 and bool(status.st_mode & 0o4000)
    return f"{path}{'' if is_root or os.geteuid() == 0 else ' (not setuid root)'}"


def allows_other(settings: Path = Path("/etc/fuse.conf")) -> bool:
    """Return whether this user may mount with --allow-other."""
    if os.geteuid() == 0:
        return True
    try:
        return bool(re.search(r"^\s*user_allow_other\s*$", settings.read_text(), re.MULTILINE))
    except OSError:
        return False


def apparmor(path: Path | None, profiles: Path = _APPARMOR) -> str:
    """Return why AppArmor may refuse a mount by this user on `path`; empty if it allows it."""
    if os.geteuid() == 0:
        return ""
    try:
        is_loaded = "fusermount3" in profiles.read_text()
    except OSError:  # no AppArmor, or only root may read it
        is_loaded = os.path.exists("/etc/apparmor.d/fusermount3")  # noqa: PTH110 - never raises
    if not is_loaded or path is None:
        return ""
    allowed = (*_ALLOWED, os.environ.get("HOME", "/"), os.environ.get("XDG_RUNTIME_DIR", "/tmp"))  # noqa: S108
    if any(path.is_relative_to(each) for each in allowed):
        return ""
    return f"a profile for fusermount3 is loaded, which may refuse mounts on {path}"


def state_of(path: Path) -> str:
    """Return whether a mount point is mounted or free.

    Raises:
        MountpointError: It can't be used, or the mount there is dead.
    """
    entry = mountpoint.mounted_at(path)
    if entry is not None and entry.kind == mountpoint.FILE_SYSTEM_TYPE:
        owner = mountpoint.other_owner(entry)
        if owner is not None:
            return f"{path} is a {entry.kind} mount of user {owner}"
        is_served = runtime.find(path) or runtime.find_device(entry.device)
        if not is_served and mountpoint.is_dead(path):
            raise mountpoint.MountpointError(of_mounts.DEAD_MOUNT(path=path))
    if entry is not None:
        return f"{path} is a {entry.kind} mount"
    mountpoint.check_usable(path, nonempty=False)
    return f"{path} is a free directory"
