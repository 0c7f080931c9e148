"""Run files: record which mounts of this user run, and which process serves each.

Each mount has a file in the runtime directory, named for its mount point. The
mount's process locks the file while it runs, so the lock, not the text, shows
whether it runs. Reading a run file never accesses the mount.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keepfs import privacy
from keepfs.messages import of_mounts
from keepfs.mount.mountpoint import places_of

if TYPE_CHECKING:
    from collections.abc import Iterator


#: What a run file has as the device of a mount that its process has stopped serving. The
#: kernel gives the number of an unmounted device to the next mount.
NO_DEVICE = -1

#: Seconds between two attempts to lock a run file that another process is checking, and
#: between two looks at one that is locked although its process has ended.
_LOOKING = 0.01


#: Seconds between two checks whether a process has ended.
_LOOK_AGAIN = 0.02
#: Seconds that a process may take to exit after it has released its mount point.
_EXITING = 10.0


class AlreadyServedError(Exception):
    """Another process serves this mount point."""


@dataclass(frozen=True, slots=True)
class RunningMount:
    """A mount and its process.

    Attributes:
        mountpoint: Its path.
        pid: The id of its process.
        device: The minor number of its device, which names its connection
            under /sys/fs/fuse/connections; 0 while it is being mounted, `NO_DEVICE`
            after it was unmounted.
        log_file: Its log file; empty for standard error.
        state_dir: Its state directory: the catalog and the spilled files.
    """

    mountpoint: str
    pid: int
    device: int
    log_file: str
    state_dir: str = ""


def runtime_directory() -> Path:
    """Return the directory of run files; create it with mode 0700 if it is missing.

    `/run/keepfs` for root, `$XDG_RUNTIME_DIR/keepfs` or `/tmp/keepfs-<uid>` for others.

    Raises:
        PermissionError: The directory belongs to another user.
    """
    uid = os.geteuid()
    home = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if uid == 0:
        directory = Path("/run/keepfs")
    elif home.is_absolute() and os.access(home, os.W_OK):
        directory = home / "keepfs"
    else:
        directory = Path(f"/tmp/keepfs-{uid}")  # noqa: S108 - the owner is checked below
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if status.st_uid != uid or not stat.S_ISDIR(status.st_mode):
        raise PermissionError(f"{directory} belongs to another user; remove it")
    return directory


@contextlib.contextmanager
def claim(
    mountpoint: Path, log_file: Path | None, state_dir: Path | None = None
) -> Iterator[Claim]:
    """Register this process as the one that serves a mount point, until exit.

    Removes the run files of killed processes.

    Raises:
        AlreadyServedError: Another process serves, mounts or unmounts it; the message has its pid.
        OSError: The run file can't be created, or belongs to another user.
    """
    path = _run_file(mountpoint)
    _remove_stale(path)
    while True:
        descriptor = privacy.open_file(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if not _is_locked(path):
                time.sleep(_LOOKING)
                continue  # the lock was a short check by another process
            raise AlreadyServedError(_who_serves(mountpoint, _read_run_file(path))) from None
        # The previous owner unlinks the file when it ends; then this isn't the run file any more.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:  # noqa: PTH116 - paired
                break
        os.close(descriptor)
    mine = Claim(descriptor, mountpoint, str(log_file or ""), str(state_dir or ""))
    try:
        mine.write(0)
        yield mine
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _who_serves(path: Path, other: RunningMount | None) -> str:
    """Return the message for a mount point that another process has claimed."""
    if other is None:
        return of_mounts.ALREADY_MOUNTED(path=path, owner="another process")
    if other.device > 0:
        return of_mounts.ALREADY_MOUNTED(path=path, owner=f"process {other.pid}")
    done = "unmounted" if other.device == NO_DEVICE else "mounted"
    return of_mounts.BEING_MOUNTED(path=path, done=done, pid=other.pid)


def _remove_stale(mine: Path) -> None:
    """Remove the run files and sockets of processes that have ended."""
    for path in mine.parent.glob("*.json"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if path != mine:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # While locked, so that no process can claim it.
                path.with_suffix(".sock").unlink(missing_ok=True)
                path.unlink()


class Claim:
    """This process's registration for a mount point; made by `claim`."""

    def __init__(
        self, descriptor: int, mountpoint: Path, log_file: str, state_dir: str = ""
    ) -> None:
        self._descriptor = descriptor
        self._mountpoint = mountpoint
        self._log_file = log_file
        self._state_dir = state_dir

    def write(self, device: int) -> None:
        """Write the process and the minor device number of its mount to the run file.

        Args:
            device: As `RunningMount.device`.
        """
        mount = RunningMount(
            str(self._mountpoint), os.getpid(), device, self._log_file, self._state_dir
        )
        text = json.dumps(asdict(mount)).encode() + b"\n"
        # One write of one length: a reader never sees an end of the former text.
        length = len(text) + len(str(2**20)) - len(str(device))  # minor numbers have 20 bits
        os.pwrite(self._descriptor, text.ljust(length), 0)
        os.ftruncate(self._descriptor, length)  # after a killed process of other options


def find(mountpoint: Path) -> RunningMount | None:
    """Return the running mount at a resolved mount point, or None."""
    return _running(_run_file(mountpoint))


def control_socket(mountpoint: Path) -> Path:
    """Return the path of the socket on which a mount takes control requests."""
    return _run_file(mountpoint).with_suffix(".sock")


def find_all() -> list[RunningMount]:
    """Return the running mounts of this user, by mount point."""
    found = map(_running, runtime_directory().glob("*.json"))
    return sorted((it for it in found if it is not None), key=lambda it: it.mountpoint)


def find_device(device: str) -> RunningMount | None:
    """Return the running mount of a device, as `major:minor`, or None.

    Another mount of this user that was unmounted a moment ago may still have the same number
    in its run file. The one that is mounted where its run file says is preferred.
    """
    found = [it for it in find_all() if it.device > 0 and device == f"0:{it.device}"]
    places = {str(place) for place in places_of(device)}
    return min(found, key=lambda it: it.mountpoint not in places, default=None)


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped, by a signal or a debugger."""
    return process_state(pid) in {"T", "t"}


def process_state(pid: int) -> str:
    """Return the state of a process, a letter as in proc_pid_stat(5); empty without a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]


def is_served_by(running: RunningMount) -> bool:
    """Return whether the process of a mount still serves its mount point.

    Another process that serves it by now does not count.
    """
    now = find(Path(running.mountpoint))
    return now is not None and now.pid == running.pid


def wait_until_ended(running: RunningMount, patience: float = math.inf) -> bool:
    """Block until the process of a mount does not serve it any more, and has exited.

    Returns False if `patience` ran out.

    Args:
        running: The mount, as it was found before.
        patience: Seconds to wait at most.
    """
    deadline = time.monotonic() + patience
    while is_served_by(running):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_AGAIN)
    # A process exits shortly after its registration has ended.
    deadline = min(deadline, time.monotonic() + _EXITING)
    while process_state(running.pid) not in {"", "Z"} and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN)
    return True


def _run_file(mountpoint: Path) -> Path:
    name = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
    return runtime_directory() / f"{name}.json"


def _running(path: Path) -> RunningMount | None:
    """Return the mount of a run file if its process runs."""
    found = _read_run_file(path) if _is_locked(path) else None
    if found is None or process_state(found.pid) not in {"", "Z"}:
        return found
    # The lock is that of another process, which removes the file of an ended process, or has
    # claimed it and not written it yet. Or this process does not see those of a container.
    time.sleep(_LOOKING)
    return _read_run_file(path) if _is_locked(path) else None


def _read_run_file(path: Path) -> RunningMount | None:
    try:
        return RunningMount(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
