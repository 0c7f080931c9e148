"""Privacy: directories and files that only this user can access, and no core dumps.

These files hold names, signed locators and unsaved bytes. Files and directories of
another user, and symbolic links, are refused: through a link another user could
make keepfs write, or change the mode of, any file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: An option of prctl(2).
_PR_SET_DUMPABLE = 4


class NotPrivateError(OSError):
    """A file or directory isn't private to this user; the message names it and a remedy."""

    def __str__(self) -> str:
        return str(self.args[0])


def make_directory(path: Path) -> None:
    """Create a directory with mode 0700; if it exists, change nothing.

    A new directory survives a power cut.

    Raises:
        NotPrivateError: It belongs to another user, or is a link of another user than root.
        OSError: It can't be created.
    """
    made = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in made:
        sync_directory(each.parent)
    for status in (path.lstat(), path.stat()):
        if status.st_uid != os.geteuid() and not (
            stat.S_ISLNK(status.st_mode) and not status.st_uid
        ):
            raise NotPrivateError(
                f"the directory {path} belongs to user {status.st_uid}: take another, or remove it"
            )


def sync_directory(path: Path) -> None:
    """Flush the entries of a directory to disk (fsync). Blocks.

    Raises:
        OSError: They couldn't be written.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_file(path: str | os.PathLike[str], flags: int) -> int:
    """Open a regular file of this user, create it if missing, and set its mode to 0600.

    Args:
        path: The file.
        flags: Flags of open(2); `O_CREAT` is added.

    Returns:
        The descriptor; it is closed on exec.

    Raises:
        NotPrivateError: It belongs to another user, or is not a regular file.
        OSError: It can't be opened.
    """
    try:
        descriptor = os.open(
            path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600
        )
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotPrivateError(f"{path} is a symbolic link: remove it") from error
        raise
    try:
        _check_private(path, os.fstat(descriptor))
        os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_file(path: Path) -> None:
    """Check that a file, if it exists, is a regular file of this user.

    Raises:
        NotPrivateError: It isn't.
    """
    with contextlib.suppress(FileNotFoundError):
        _check_private(path, path.lstat())


def _check_private(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotPrivateError(f"{path} is not a regular file: remove it")
    if status.st_uid != os.geteuid():
        raise NotPrivateError(f"{path} belongs to user {status.st_uid}: remove it")


def forbid_core_dumps() -> None:
    """Disable core dumps of this process: its memory holds the token and blocks.

    A limit of 0 prevents core files. It does not apply if the system pipes core dumps
    to a program, so the process is marked as not dumpable too. Other processes of the
    same user can't trace it then.
    """
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
