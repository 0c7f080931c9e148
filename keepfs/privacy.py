"""Keeping others out: directories and files of this user alone, and no core dumps.

What lies in these files (names, signed locators, unsaved bytes) is this user's. A
file or directory that somebody else could have put there is refused: through a
symbolic link keepfs would write, or change the mode of, a file of their choice.
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

#: Of prctl(2).
_PR_SET_DUMPABLE = 4


class NotPrivateError(OSError):
    """A file or directory isn't this user's alone; one line says which, and what to do."""

    def __str__(self) -> str:
        return str(self.args[0])


def make_directory(path: Path) -> None:
    """Make a directory for this user alone if it isn't there; nothing is changed if it is.

    A new directory survives a power cut.

    Raises:
        NotPrivateError: It is somebody else's, or behind a symbolic link of theirs.
        OSError: It can't be made.
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
    """Return when the entries of a directory survive a power cut. Blocks.

    Raises:
        OSError: They couldn't be written.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_file(path: str | os.PathLike[str], flags: int) -> int:
    """Open a regular file of this user's, made if need be; its mode is 0600 then.

    Args:
        path: The file.
        flags: Of open(2), without `O_CREAT`.

    Returns:
        The descriptor; it is closed on exec.

    Raises:
        NotPrivateError: It is somebody else's, or a symbolic link, or no regular file.
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
    """Check that a file, if it is there, is this user's and no symbolic link.

    Raises:
        NotPrivateError: It isn't.
    """
    with contextlib.suppress(FileNotFoundError):
        _check_private(path, path.lstat())


def _check_private(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotPrivateError(f"{path} is no regular file: remove it")
    if status.st_uid != os.geteuid():
        raise NotPrivateError(f"{path} belongs to user {status.st_uid}: remove it")


def forbid_core_dumps() -> None:
    """Have the kernel write no core dump of this process: it holds the token and blocks.

    The limit keeps files from being written. It does not hold for a program that the
    system pipes core dumps to, so the process is marked as not to be dumped too; other
    processes of the same user can't trace it then.
    """
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
