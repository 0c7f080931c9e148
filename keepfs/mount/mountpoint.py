"""Mount points: list mounts, find the processes that use one, unmount.

Nothing here accesses a mount, which may hang, except `is_dead`: the mounts are
read from /proc/self/mountinfo, and paths are resolved up to the mount point only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from keepfs.messages import of_mounts
from keepfs.messages.message import MessageError

#: The type of a keepfs mount in /proc/self/mountinfo.
FILE_SYSTEM_TYPE = "fuse.keepfs"

# The kernel's limit on symlinks in a path.
_MAX_SYMLINKS = 40
# Seconds; unmounting either is quick or hangs.
_UNMOUNT_TIMEOUT = 30.0
# The kernel's directory of FUSE connections, named by minor device numbers. Their files belong
# to the user that mounted.
_CONNECTIONS = Path("/sys/fs/fuse/connections")
# The user that mounted, among the options of a FUSE mount in mountinfo.
_USER_ID = re.compile(rb"(?:\A|,)user_id=([0-9]+)(?:,|\Z)")


class MountpointError(MessageError):
    """A mount point can't be used; the message has the reason and a remedy."""


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One mount.

    Attributes:
        mountpoint: Its path.
        device: `major:minor`; the minor number identifies a FUSE connection.
        kind: The file system's type.
        root: The path in the file system that is mounted there: `/` except for bind mounts.
        user_id: The number of the user that mounted, for FUSE; None for other file systems.
    """

    mountpoint: Path
    device: str
    kind: str
    root: str = "/"
    user_id: int | None = None


@dataclass(frozen=True, slots=True)
class BusyProcess:
    """A process that uses a mount, so that the mount is busy.

    Attributes:
        pid: The process id.
        command: The name of its command.
        path: A path that it uses: an open or mapped file, or a directory.
    """

    pid: int
    command: str
    path: str


def resolve(path: Path) -> Path:
    """Return the absolute path of a mount point, without access to the mount itself.

    Symlinks are followed, as in the path that the kernel lists.
    """
    for _ in range(_MAX_SYMLINKS):
        absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() looks into the mount
        if absolute == absolute.parent:
            return absolute
        path = Path(os.path.realpath(absolute.parent)) / absolute.name
        try:
            # For a mount point the kernel itself answers that it isn't a symlink.
            target = os.readlink(path)  # noqa: PTH115 - the text, not a path
        except OSError:
            return path
        path = path.parent / target
    return path  # a loop: using the path will fail with ELOOP


def mounts() -> list[MountEntry]:
    """Return every mount that this process sees; a mount on top of another comes later."""
    found = []
    # Split at newlines only: any other character may be part of a path.
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n"):
        fields, separator, rest = line.partition(b" - ")
        if separator:
            columns = fields.split(b" ")
            root, path = (
                os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda it: bytes([int(it[1], 8)]), each))
                for each in columns[3:5]
            )
            kind = rest.split(b" ")[0].decode()
            owner = _USER_ID.search(rest.rpartition(b" ")[2])
            user_id = int(owner[1]) if owner and kind.startswith("fuse") else None
            found.append(MountEntry(Path(path), columns[2].decode(), kind, root, user_id))
    return found


def containing(path: Path) -> tuple[MountEntry, Path] | None:
    """Return the mount that a resolved path is in, and the path in its file system, or None.

    For a path in a bind mount, the second is the path below the bound directory's own.
    """
    found = None
    for entry in mounts():
        if path.is_relative_to(entry.mountpoint) and (
            found is None or len(entry.mountpoint.parts) >= len(found.mountpoint.parts)
        ):
            found = entry
    if found is None:
        return None
    return found, Path(found.root) / path.relative_to(found.mountpoint)


def mounted_at(mountpoint: Path) -> MountEntry | None:
    """Return the topmost mount at a resolved path, or None."""
    here = [entry for entry in mounts() if entry.mountpoint == mountpoint]
    return here[-1] if here else None


def places_of(device: str) -> list[Path]:
    """Return the mount points of a keepfs mount (`major:minor`), its bind mounts included."""
    return [
        entry.mountpoint
        for entry in mounts()
        if entry.device == device and entry.kind == FILE_SYSTEM_TYPE
    ]


def still_mounted(places: list[Path], device: str) -> list[Path]:
    """Return which former places of a keepfs mount it is still mounted at.

    The kernel gives the number of an unmounted device to the next mount, so the places that a
    number has later may be those of another mount.

    Args:
        places: What `places_of` returned while the mount existed; each place is tested once.
        device: Its device.
    """
    now = places_of(device)
    return [place for place in dict.fromkeys(places) if place in now]


def kind_of_device(device: int) -> str | None:
    """Return the type of the mounted file system with this st_dev, or None."""
    number = f"{os.major(device)}:{os.minor(device)}"
    return next((entry.kind for entry in mounts() if entry.device == number), None)


def check_usable(mountpoint: Path, *, nonempty: bool) -> None:
    """Check that a resolved path can be mounted on; no keepfs mount may be there.

    Raises:
        MountpointError: It can't be used; the message has a remedy.
    """
    try:
        status = mountpoint.stat()
        # Listing an automount point waits for the mount that is being made; stat does not.
        is_listed = stat.S_ISDIR(status.st_mode) and not is_automount_point(mountpoint)
        entries = is_listed and any(mountpoint.iterdir())
    except FileNotFoundError:
        raise MountpointError(of_mounts.NO_MOUNT_POINT(path=mountpoint)) from None
    except OSError as error:
        said = of_mounts.UNUSABLE_MOUNT_POINT(path=mountpoint, reason=error.strerror)
        raise MountpointError(said) from None
    if not stat.S_ISDIR(status.st_mode):
        raise MountpointError(
            of_mounts.UNUSABLE_MOUNT_POINT(path=mountpoint, reason="it isn't a directory")
        )
    if entries and not nonempty:
        raise MountpointError(of_mounts.NONEMPTY_MOUNT_POINT(path=mountpoint))


def is_automount_point(mountpoint: Path) -> bool:
    """Return whether a resolved path is an automount point (autofs) without a mount on it."""
    found = mounted_at(mountpoint)
    return found is not None and found.kind == "autofs"


def check_fuse() -> None:
    """Check that this machine can mount FUSE file systems.

    Raises:
        MountpointError: It can't; the message has a remedy.
    """
    if not Path("/dev/fuse").exists():
        raise MountpointError(of_mounts.NO_FUSE_DEVICE())
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise MountpointError(of_mounts.NO_FUSERMOUNT())
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountpointError(of_mounts.FUSE_DEVICE_CLOSED())


def is_dead(mountpoint: Path) -> bool:
    """Return whether a mount's process has ended and left the mount behind.

    Call it only if the mount's process doesn't run: a process that hangs would
    block this call.
    """
    try:
        os.statvfs(mountpoint)  # not stat: the kernel may answer that from its cache
    except OSError as error:
        # A live mount of another user fails with EACCES.
        return error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    return False


def waiting_requests(device: int) -> int | None:
    """Return the requests of a mount that the kernel has sent and that are not answered.

    Args:
        device: The minor number of its device.

    Returns:
        None if the kernel does not report them.
    """
    try:
        return int((_CONNECTIONS / str(device) / "waiting").read_text())
    except (OSError, ValueError):
        return None


def other_owner(entry: MountEntry) -> str | None:
    """Return the name of the user that mounted; None if it is this user, or not known.

    A user without a name has its number.
    """
    try:
        # It is right in other user namespaces too.
        owner = (_CONNECTIONS / entry.device.partition(":")[2]).stat().st_uid
    except OSError:  # the kernel's control file system is not mounted
        if entry.user_id is None:
            return None
        owner = entry.user_id
    if owner == os.geteuid():
        return None
    try:
        return pwd.getpwuid(owner).pw_name
    except KeyError:
        return str(owner)


def check_ours(path: Path) -> None:
    """Check that a resolved path isn't a keepfs mount of another user.

    Raises:
        MountpointError: It is; the message names the user.
    """
    entry = mounted_at(path)
    if entry is not None and entry.kind == FILE_SYSTEM_TYPE:
        owner = other_owner(entry)
        if owner is not None:
            raise MountpointError(of_mounts.MOUNT_OF_OTHER_USER(path=path, owner=owner))


def abort(entry: MountEntry) -> bool:
    """End the kernel's connection of a mount: all its requests fail at once.

    Doesn't block, unless the kernel's control files are missing, as in a container: then
    root aborts by `umount -f`, which takes at most 30 s.

    Returns:
        Whether the connection was ended.
    """
    try:
        (_CONNECTIONS / entry.device.partition(":")[2] / "abort").write_text("1")
    except FileNotFoundError:  # the kernel's control file system is not mounted
        return os.geteuid() == 0 and not _run(["umount", "-i", "-c", "-f", str(entry.mountpoint)])
    except OSError:
        return False
    return True


def detach(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount; with `lazy`, even if the mount is busy: open files can still be used.

    Blocks, at most 30 s, also if the mount hangs.

    Raises:
        MountpointError: It is busy, or this user may not unmount it.
    """
    if os.geteuid() == 0:
        # -i: run no umount helper; keepfs needs none.
        command = ["umount", "-i", *(["-l"] if lazy else []), str(mountpoint)]
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), str(mountpoint)]
    complaint = _run(command)
    if complaint:
        raise MountpointError(of_mounts.UNMOUNT_FAILED(path=mountpoint, reason=complaint))


def _run(command: list[str]) -> str:
    """Run a program for at most 30 s; return its error, or an empty text for success."""
    try:
        process = subprocess.Popen(  # noqa: S603 - fixed commands
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return str(error)
    try:
        _, complaint = process.communicate(timeout=_UNMOUNT_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        # Not awaited: while its request to the mount hangs, it can't even be killed.
        process.kill()
        return str(error)
    if process.returncode == 0:
        return ""
    return " ".join(complaint.split()) or str(process.returncode)


def holders(entry: MountEntry) -> list[BusyProcess]:
    """Return the processes with open files or working directories in a mount.

    Without root, the processes of other users are left out.
    """
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        for path in _held_paths(process):
            if _is_in(entry, path):
                found.append(BusyProcess(int(process.name), _command(process), path))
                break
    return sorted(found, key=lambda holder: holder.pid)


def has_working_directory(entry: MountEntry) -> bool:
    """Return whether the working directory of this process is in a mount."""
    try:
        path = os.readlink("/proc/self/cwd")  # noqa: PTH115 - the text, not a path
    except OSError:
        return False
    return _is_in(entry, path)


def _is_in(entry: MountEntry, path: str) -> bool:
    return path == str(entry.mountpoint) or path.startswith(f"{entry.mountpoint}/")


def _held_paths(process: Path) -> list[str]:
    """Return the links of a process. Reading a link doesn't touch its target."""
    links = [process / "cwd", process / "root", process / "exe"]
    with contextlib.suppress(OSError):
        links += list((process / "fd").iterdir())
    paths = []
    for link in links:
        with contextlib.suppress(OSError):
            paths.append(os.readlink(link))  # noqa: PTH115 - the text, not a path
    with contextlib.suppress(OSError):
        # Mapped files, which may be closed.
        for line in (process / "maps").read_bytes().split(b"\n"):
            _, slash, path = line.partition(b"/")
            if slash:
                paths.append(os.fsdecode(slash + path))
    return paths


def _command(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


def why_ended(path: Path) -> str:
    """Return why the kernel sends no more requests, as text."""
    if mounted_at(path) is None:
        return f"{path} has been unmounted"
    return f"the kernel ended the connection of {path}: it was aborted"
