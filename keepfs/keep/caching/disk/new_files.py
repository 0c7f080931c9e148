"""NewFiles: adds files to a directory, each with its name only when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

#: How a directory is opened: not through a symbolic link.
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TMP = "tmp"
#: Nanoseconds after which an unfinished file counts as abandoned.
_LEFT_BEHIND = 3600 * 10**9
#: Errors of O_TMPFILE where the kernel or the file system doesn't have it.
_UNSUPPORTED = frozenset((errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL))


class NewFiles:
    """Writes the files of a directory.

    A file is written without a name (O_TMPFILE), so that a killed process leaves nothing. Where
    that is impossible, it is written in the directory `tmp` and renamed.

    Args:
        root: A descriptor of the directory that has the folders; the caller closes it.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._can_be_unnamed = True

    def add(self, folder: int, name: str, *contents: Buffer) -> None:
        """Add a file, last visited now and once; one of that name may be there already. Blocks.

        Args:
            folder: A descriptor of the folder in `root` that it is added to.
            name: Its name there.
            contents: What it has, one after the other.

        Raises:
            OSError: It can't be written; nothing is left.
        """
        if self._can_be_unnamed and not _add_unnamed(folder, name, contents):
            self._can_be_unnamed = False
        if not self._can_be_unnamed:
            self.replace(folder, name, *contents)

    def replace(self, folder: int, name: str, *contents: Buffer) -> None:
        """Add a file, or replace the one of that name; see `add`. Blocks."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(_TMP, 0o700, dir_fd=self._root)
        part = uuid.uuid4().hex
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with opened_directory(self._root, _TMP) as tmp:  # refuses a symbolic link
            file = os.open(part, flags, 0o600, dir_fd=tmp)
            try:
                try:
                    _write(file, contents)
                finally:
                    os.close(file)
                os.rename(part, name, src_dir_fd=tmp, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(part, dir_fd=tmp)
                raise

    def remove_leftovers(self) -> None:
        """Remove files that a killed process left unfinished, an hour ago or earlier."""
        oldest = time.time_ns() - _LEFT_BEHIND
        with (
            contextlib.suppress(OSError),
            opened_directory(self._root, _TMP) as folder,
            os.scandir(folder) as entries,
        ):
            for each in entries:
                with contextlib.suppress(OSError):
                    if each.stat(follow_symlinks=False).st_ctime_ns < oldest:
                        os.unlink(each.name, dir_fd=folder)


def _add_unnamed(folder: int, name: str, contents: tuple[Buffer, ...]) -> bool:
    """Write a file and then give it its name; return False if that is impossible here."""
    try:
        file = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    try:
        _write(file, contents)
        with contextlib.suppress(FileExistsError):
            os.link(f"/proc/self/fd/{file}", name, dst_dir_fd=folder, follow_symlinks=True)
    except FileNotFoundError:  # there is no /proc, or the folder was removed
        return False
    finally:
        os.close(file)
    return True


@contextlib.contextmanager
def opened_directory(parent: int | None, name: str) -> Iterator[int]:
    """Open a directory for the body of `with`; not through a symbolic link.

    Args:
        parent: The directory that it is in; None: `name` is a path.
        name: Its name.

    Raises:
        OSError: It can't be opened.
    """
    descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(file: int, contents: tuple[Buffer, ...]) -> None:
    for content in contents:
        view = memoryview(content)
        while view:
            view = view[os.write(file, view) :]
    os.utime(file, ns=(time.time_ns(), 0))
