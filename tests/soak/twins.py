"""A mount and a local disk, where the same is done, and all they must have in common."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.mounted.mounts import KeepfsMount

#: Times before this one were set, later ones are of the change itself.
LONG_AGO_NS = 10**18


class Twins:
    """A mount and a directory of a local disk, where the same things are done.

    Args:
        mount: Is remounted at times.
        disk: The directory.
    """

    def __init__(self, mount: KeepfsMount, disk: Path) -> None:
        self._mount = mount
        self._disk = disk
        self._numbers = itertools.count(1)
        self.steps = 0
        self.remounts = 0

    def fresh(self) -> tuple[Path, Path]:
        """Make a directory in both places: on the disk, on the mount."""
        name = f"{next(self._numbers):05}"
        for place in (self._disk, self._mount.upload):
            (place / name).mkdir()
        return self._disk / name, self._mount.upload / name

    def remount(self) -> None:
        """Unmount, and mount again."""
        done = self._mount.unmount()
        assert (done.returncode, done.stderr) == (0, b"")
        self._mount.mount()
        self.remounts += 1

    def is_stored(self, path: Path) -> bool:
        """Tell whether a file on the mount can be read by its locator."""
        with path.open("rb") as file:
            # By the handle: its name may be too long to be a path's.
            locators = os.getxattr(file.fileno(), "user.keep.locator").decode()
            return (self._mount.by_id / locators).read_bytes() == file.read()

    def compare(self) -> None:
        """Compare everything that was ever made."""
        check_alike(self._mount.upload, self._disk)


def outcome(work: Callable[[], object]) -> object:
    """Return what work returns, or the name of the errno it fails with."""
    try:
        return work()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def check_equal(found: object, expected: object, what: object) -> None:
    """See that the mount does as the disk did.

    Raises:
        AssertionError: It doesn't; what was found and what was expected.
    """
    if found != expected:
        raise AssertionError(f"{what}: on the mount {found!r}, on the disk {expected!r}")


def described(place: Path) -> dict[str, object]:
    """Describe a tree by all that both places must have in common."""
    found: dict[str, object] = {}
    waiting = [place]
    while waiting:
        path = waiting.pop()
        status = path.lstat()
        content: object = ""
        if stat.S_ISDIR(status.st_mode):
            content = outcome(lambda path=path: sorted(os.listdir(path)))  # type: ignore[misc] # bound now
            if isinstance(content, list):
                waiting.extend(path / name for name in content)
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        else:
            content = outcome(lambda path=path: _content(path))  # type: ignore[misc] # ditto
        found[str(path.relative_to(place))] = (*status_of(status), content)
    return found


def check_alike(mounted: Path, on_disk: Path) -> None:
    """See that two trees have everything in common.

    Raises:
        AssertionError: They haven't.
    """
    found, expected = described(mounted), described(on_disk)
    for name in sorted({*found, *expected}):
        check_equal(found.get(name), expected.get(name), name)


def status_of(status: os.stat_result) -> tuple[object, ...]:
    """Return what of a stat both places must have in common."""
    is_directory = stat.S_ISDIR(status.st_mode)
    return (
        oct(status.st_mode),
        None if is_directory else status.st_size,
        None if is_directory else status.st_nlink,
        status.st_mtime_ns if status.st_mtime_ns < LONG_AGO_NS else "when it was changed",
    )


def _content(path: Path) -> bytes:
    """Read a file, from the kernel's pages and from the file system; they may not differ."""
    with path.open("rb", buffering=0) as file:
        return read_twice(file.fileno())


def read_twice(file: int) -> bytes:
    """Read a file, from the kernel's pages and from the file system; they may not differ."""
    size = os.fstat(file).st_size
    cached = os.pread(file, size + 1, 0)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(file, size + 1, 0) == cached
    return cached
