"""Paths in upload/ of running mounts, for commands: found, and stored before they are read."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keepfs.fs.upload.snapshot import CATALOG
from keepfs.mount import mountpoint, runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Files that are asked to be stored at once.
_AT_ONCE = 8


class UploadedError(Exception):
    """A path that is not in upload/ of a running mount; says why, and what to do."""


@dataclass(frozen=True, slots=True)
class UploadedPath:
    """A file or directory in upload/ of a running mount.

    Attributes:
        path: Absolute, without symbolic links but perhaps the last name.
        below: The path below upload/; empty for upload/ itself.
        state_dir: Of the mount.
    """

    path: Path
    below: str
    state_dir: Path

    @property
    def catalog(self) -> Path:
        """The catalog of the mount."""
        return self.state_dir / CATALOG


def find_uploaded(path: Path, *, follow: bool = False) -> UploadedPath:
    """Find the mount whose upload/ has a path, also through a bind mount.

    It looks at the path, so it waits for a mount that hangs.

    Args:
        path: Of a file, directory or symbolic link.
        follow: Whether to take what a symbolic link points to.

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
        raise UploadedError(f"{path} isn't in upload/ of a mount of keepfs: copy it there first")
    running = runtime.find_device(found[0].device)
    if running is None or not running.state_dir:
        raise UploadedError(
            f"{path} is in a mount that no process of this user serves: run the command as the"
            " user that mounted it, on that machine"
        )
    return UploadedPath(absolute, "/".join(inner[2:]), Path(running.state_dir))


def store_all(path: Path, timeout: float) -> list[tuple[str, str]]:
    """Have each file below a path stored that is not. Blocks.

    Files that are changed meanwhile are stored as they are at some moment of the call.

    Args:
        path: A file, or a directory with all that is in it; symbolic links are not followed.
        timeout: Seconds until no more is waited for. The requests go on in the mount.

    Returns:
        (path, reason) of what is not stored; names below `path`, which itself is ".".

    Raises:
        OSError: A directory can't be read.
    """
    deadline = time.monotonic() + timeout
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    names = [name for name in _files(path) if _attribute(path / name, "state") != "stored"]
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
        # A daemon: one that waits for a hung mount must not keep the command from ending.
        threading.Thread(target=work, daemon=True).start()
    for _ in names:
        if not done.acquire(timeout=max(0.0, deadline - time.monotonic())):
            break
    late = f"not stored within {timeout:g} s"
    reasons = ((name, results.get(name, late)) for name in names)
    return [(name, reason) for name, reason in reasons if reason]


def _files(path: Path) -> Iterator[str]:
    """Yield the regular files below a path."""
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode):
        yield "."
    directories = [""] if stat.S_ISDIR(mode) else []
    while directories:
        directory = directories.pop()
        with os.scandir(path / directory) as entries:
            for entry in entries:
                name = f"{directory}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    directories.append(f"{name}/")
                elif entry.is_file(follow_symlinks=False):
                    yield name


def _store(path: Path) -> str:
    """Have a file stored; return why it is not."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return ""  # removed meanwhile
    except OSError as error:
        return _attribute(path, "error") or error.strerror or str(error)
    return ""


def _attribute(path: Path, name: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        try:
            return os.getxattr(path, f"user.keep.{name}", follow_symlinks=False).decode()
        except OSError as error:
            if error.errno not in {errno.ENODATA, errno.ENOTSUP, errno.EIO}:
                raise
    return ""
