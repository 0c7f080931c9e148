"""Finds the mount of a path in upload/, and has its unstored files stored, for commands."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from keepfs.fs.upload.snapshot import CATALOG
from keepfs.messages import of_uploads
from keepfs.messages.message import MessageError
from keepfs.mount import mountpoint, runtime
from keepfs.mount.control_requests import MOST_NAMES, ControlConnection

#: Files stored concurrently. Guessed.
_AT_ONCE = 8


class UploadedError(MessageError):
    """A path that is not in upload/ of a running mount; the message has a reason and a remedy."""


@dataclass(frozen=True, slots=True)
class UploadedPath:
    """A file or directory in upload/ of a running mount.

    Attributes:
        path: Absolute, without symbolic links except perhaps in the last name.
        below: The path below upload/; empty for upload/ itself.
        mountpoint: The mount point.
        state_dir: The state directory of the mount.
    """

    path: Path
    below: str
    mountpoint: Path
    state_dir: Path

    @property
    def catalog(self) -> Path:
        """The catalog of the mount."""
        return self.state_dir / CATALOG


def find_uploaded(path: Path, *, follow: bool = False) -> UploadedPath:
    """Find the mount whose upload/ has a path, also through a bind mount.

    It accesses the path, so it blocks while the mount hangs.

    Args:
        path: The path of a file, directory or symbolic link.
        follow: Whether a symbolic link is replaced by what it points to.

    Raises:
        UploadedError: The path is not in upload/ of a running mount of this user.
        OSError: There is no such path.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() follows the last name
    name = "" if follow or Path(path).name in {"", ".."} else absolute.name
    absolute = Path(os.path.realpath(absolute.parent if name else path)) / name
    absolute.lstat()
    found = mountpoint.containing(absolute)
    inner = found[1].parts if found else ()
    if found is None or found[0].kind != mountpoint.FILE_SYSTEM_TYPE or inner[1:2] != ("upload",):
        raise UploadedError(
            of_uploads.NOT_IN_MOUNT(
                path=path, where="upload/ of a mount of keepfs: copy it there first"
            )
        )
    running = runtime.find_device(found[0].device)
    if running is None or not running.state_dir:
        raise UploadedError(of_uploads.NOT_SERVED(path=path))
    below = "/".join(inner[2:])
    return UploadedPath(absolute, below, Path(running.mountpoint), Path(running.state_dir))


def store_all(where: UploadedPath, timeout: float) -> list[tuple[str, str]]:
    """Store the unstored files of a path, through the mount. Blocks.

    A file that is changed meanwhile is stored with its content at some moment of the call.

    Args:
        where: A file, or a directory with all files below it.
        timeout: Seconds to wait. After them the mount continues to store the files.

    Returns:
        (path, reason) of each file that is not stored; paths below `where`, which itself is ".".

    Raises:
        ControlError: The mount refused to list its unstored files, or did not answer.
    """
    deadline = time.monotonic() + timeout
    failures: list[tuple[str, str]] = []
    with ControlConnection(runtime.control_socket(where.mountpoint)) as mount:
        while not failures:
            names = [_relative(name, where.below) for name in mount.unstored(where.below)]
            reasons = _store_each(where.path, names, deadline)
            late = f"not stored within {timeout:g} s"
            found = ((name, reasons.get(name, late)) for name in names)
            failures = [(name, reason) for name, reason in found if reason]
            if len(names) < MOST_NAMES:
                break
    return failures


def _relative(name: str, top: str) -> str:
    return "." if name == top else name[len(top) + 1 :] if top else name


def _store_each(path: Path, names: list[str], deadline: float) -> dict[str, str]:
    """Store files concurrently; return the error of each that ended in time, empty if stored."""
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    results: dict[str, str] = {}
    done = threading.Semaphore(0)

    def work() -> None:
        while (name := waiting.get()) is not None:
            results[name] = _store(path / name)
            done.release()

    for name in names:
        waiting.put(name)
    for _ in range(min(_AT_ONCE, len(names))):
        waiting.put(None)
        # A daemon thread, so that the command can end while the thread waits for a hung mount.
        threading.Thread(target=work, daemon=True).start()
    for _ in names:
        if not done.acquire(timeout=max(0.0, deadline - time.monotonic())):
            break
    return dict(results)


def _store(path: Path) -> str:
    """Store a file by fsync; return the error, empty if it is stored or was removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return ""  # removed meanwhile
    except OSError as error:
        return _xattr(path, "error") or error.strerror or str(error)
    return ""


def _xattr(path: Path, name: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        try:
            return os.getxattr(path, f"user.keep.{name}", follow_symlinks=False).decode()
        except OSError as error:
            if error.errno not in {errno.ENODATA, errno.ENOTSUP, errno.EIO}:
                raise
    return ""
