"""SEMANTICS.md, the calls on names: what upload/ does is compared with a local disk."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from tests.mounted.mounts import mounted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.mounted.mounts import KeepfsMount
    from tests.mounted.places import Places

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE, _WHITEOUT = 1, 2, 4
_libc = ctypes.CDLL(None, use_errno=True)


def opened(path: Path | str, flags: int) -> str:
    """Open and close."""
    os.close(os.open(path, flags, 0o640))
    return "opened"


def renamed(old: Path, new: Path, flags: int) -> None:
    """Call renameat2."""
    arguments = (_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags)
    if _libc.renameat2(*arguments) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def test_opening_fails_as_on_a_disk(places: Places) -> None:
    places.fail(
        errno.ENOENT,
        lambda at: opened(at / "none", os.O_RDONLY),
        lambda at: opened(at / "none" / "x", os.O_CREAT | os.O_WRONLY),
    )
    places.fail(errno.EEXIST, lambda at: opened(at / "file", os.O_CREAT | os.O_EXCL))
    places.fail(errno.EEXIST, lambda at: opened(at / "loop", os.O_CREAT | os.O_EXCL))
    places.fail(
        errno.ENOTDIR,
        lambda at: opened(at / "file" / "x", os.O_RDONLY),
        lambda at: opened(f"{at}/file/", os.O_RDONLY),
        lambda at: opened(at / "file", os.O_DIRECTORY),
    )
    places.fail(
        errno.EISDIR,
        lambda at: opened(at / "full", os.O_WRONLY),
        lambda at: opened(at / "full", os.O_CREAT),
    )
    places.fail(
        errno.ELOOP,
        lambda at: opened(at / "loop", os.O_RDONLY),
        lambda at: opened(at / "link", os.O_NOFOLLOW),
    )
    places.fail(
        errno.ENAMETOOLONG,
        lambda at: opened(at / ("x" * 256), os.O_CREAT | os.O_WRONLY),
        lambda at: opened(f"{at}/{'./' * 2100}file", os.O_RDONLY),
    )


def test_opening_makes_cuts_and_follows_links_as_on_a_disk(places: Places) -> None:
    def through_a_link(at: Path) -> bytes:
        (at / "dangling").symlink_to("made")
        opened(at / "dangling", os.O_CREAT | os.O_WRONLY)
        (at / "dangling").write_bytes(b"by the link")
        return (at / "made").read_bytes()

    assert places.both(through_a_link) == b"by the link"
    assert places.both(lambda at: opened(at / "new", os.O_CREAT | os.O_EXCL)) == "opened"
    cut = places.both(
        lambda at: (opened(at / "file", os.O_RDONLY | os.O_TRUNC), (at / "file").stat().st_size)
    )
    assert cut == ("opened", 0)


def test_o_tmpfile_is_refused(places: Places) -> None:
    places.fail_mounted(errno.EOPNOTSUPP, lambda at: opened(at, os.O_TMPFILE | os.O_RDWR))


def test_renaming_fails_as_on_a_disk(places: Places, tmp_path: Path) -> None:
    def over_a_full_directory(at: Path) -> None:
        (at / "empty").mkdir()
        (at / "empty").rename(at / "full")

    places.fail(
        errno.ENOENT,
        lambda at: os.rename(at / "none", at / "new"),
        lambda at: os.rename(at / "file", at / "none" / "new"),
        lambda at: renamed(at / "file", at / "none", _EXCHANGE),
    )
    places.fail(errno.EEXIST, lambda at: renamed(at / "file", at / "link", _NOREPLACE))
    places.fail(
        errno.EINVAL,
        lambda at: os.rename(at / "full", at / "full" / "below"),
        lambda at: renamed(at / "file", at / "full", _NOREPLACE | _EXCHANGE),
        lambda at: renamed(at / "file", at / "new", 8),
    )
    places.fail(errno.EISDIR, lambda at: os.rename(at / "file", at / "full"))
    places.fail(errno.ENOTDIR, lambda at: os.rename(at / "full", at / "file"))
    places.fail(errno.ENOTEMPTY, over_a_full_directory)
    places.fail(errno.ENAMETOOLONG, lambda at: os.rename(at / "file", at / ("x" * 256)))
    places.fail_mounted(errno.EXDEV, lambda at: os.rename(at / "file", tmp_path / "new"))
    places.fail_mounted(errno.EINVAL, lambda at: renamed(at / "file", at / "new", _WHITEOUT))


def test_renaming_can_exchange_and_can_refuse_to_replace(places: Places) -> None:
    def exchange(at: Path) -> object:
        renamed(at / "file", at / "full", _EXCHANGE)
        return (at / "full").read_bytes(), os.listdir(at / "file")

    def refuse(at: Path) -> object:
        renamed(at / "file", at / "new", _NOREPLACE)
        return (at / "new").read_bytes(), (at / "file").exists()

    assert places.both(exchange) == (b"0123456789", ["inner"])
    assert places.both(refuse) == (b"0123456789", False)
    assert places.both(lambda at: os.rename(at / "file", at / "file")) is None


def test_unlinking_fails_as_on_a_disk_and_takes_a_link_not_its_target(places: Places) -> None:
    places.fail(errno.ENOENT, lambda at: os.unlink(at / "none"))
    places.fail(errno.EISDIR, lambda at: os.unlink(at / "full"))
    places.fail(errno.ENOTDIR, lambda at: os.unlink(f"{at}/file/"))

    def remove(at: Path) -> list[str]:
        (at / "link").unlink()
        return sorted(os.listdir(at))

    assert places.both(remove) == ["file", "full", "loop"]


def test_directories_fail_as_on_a_disk(places: Places) -> None:
    places.fail(
        errno.EEXIST,
        lambda at: os.mkdir(at / "full"),
        lambda at: os.mkdir(at / "file"),
        lambda at: os.mkdir(at / "loop"),
    )
    places.fail(
        errno.ENOENT, lambda at: os.mkdir(at / "none" / "x"), lambda at: os.rmdir(at / "none")
    )
    places.fail(errno.ENAMETOOLONG, lambda at: os.mkdir(at / ("x" * 256)))
    places.fail(
        errno.ENOTDIR,
        lambda at: os.mkdir(at / "file" / "x"),
        lambda at: os.rmdir(at / "file"),
        lambda at: os.rmdir(at / "link"),
        lambda at: os.listdir(at / "file"),
    )
    places.fail(
        errno.ENOTEMPTY, lambda at: os.rmdir(at / "full"), lambda at: os.rmdir(f"{at}/full/..")
    )
    places.fail(errno.EINVAL, lambda at: os.rmdir(f"{at}/full/."))
    places.fail(errno.ENOENT, lambda at: os.listdir(at / "none"))


def test_a_removed_directory_that_is_open_is_empty_and_stays_so(places: Places) -> None:
    def use(at: Path) -> object:
        directory = os.open(at / "full" / "inner", os.O_RDONLY)
        try:
            (at / "full" / "inner").rmdir()
            with pytest.raises(FileNotFoundError):
                os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
            with pytest.raises(FileNotFoundError):
                os.mkdir("new", dir_fd=directory)
            return os.listdir(directory), os.fstat(directory).st_nlink
        finally:
            os.close(directory)

    assert places.both(use) == ([], 0)


def test_a_listing_has_the_type_of_each_entry(places: Places) -> None:
    def kinds(at: Path) -> object:
        with os.scandir(at) as entries:
            return sorted(
                (it.name, it.is_dir(follow_symlinks=False), it.is_symlink())
                for it in entries
                if it.inode() == os.lstat(it.path).st_ino
            )

    assert places.both(kinds) == [
        ("file", False, False),
        ("full", True, False),
        ("link", False, True),
        ("loop", False, True),
    ]


def test_symlinks_are_as_on_a_disk(places: Places) -> None:
    places.fail(errno.EEXIST, lambda at: os.symlink("x", at / "file"))
    places.fail(
        errno.ENOENT, lambda at: os.symlink("", at / "new"), lambda at: os.readlink(at / "none")
    )
    places.fail(
        errno.ENAMETOOLONG,
        lambda at: os.symlink("x" * 4096, at / "new"),
        lambda at: os.symlink("x", at / ("x" * 256)),
    )
    places.fail(errno.EINVAL, lambda at: os.readlink(at / "file"))

    def longest(at: Path) -> object:
        (at / "new").symlink_to("x" * 4095)
        status = (at / "link").lstat()
        return len(os.readlink(at / "new")), oct(status.st_mode), status.st_size

    assert places.both(longest) == (4095, "0o120777", 4)


def test_hard_links_devices_pipes_and_sockets_are_refused(places: Places) -> None:
    def bind(at: Path) -> None:
        # A socket's path must be short.
        directory = os.open(at, os.O_RDONLY)
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(f"/proc/self/fd/{directory}/new")
        finally:
            os.close(directory)

    places.fail_mounted(
        errno.EPERM,
        lambda at: os.link(at / "file", at / "new"),
        lambda at: os.mkfifo(at / "new"),
        lambda at: os.mknod(at / "new", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        bind,
    )
    places.fail(errno.EEXIST, lambda at: os.link(at / "file", at / "full"))
    places.fail(errno.EEXIST, lambda at: os.mknod(at / "file", stat.S_IFREG | 0o600))
    places.fail(errno.ENOENT, lambda at: os.link(at / "none", at / "new"))


def test_a_node_is_stored_as_the_empty_block(places: Places) -> None:
    at = places.fresh()

    os.mknod(at / "node", stat.S_IFREG | 0o600)

    assert os.getxattr(at / "node", "user.keep.locator") == b"d41d8cd98f00b204e9800998ecf8427e+0"


def test_stat_is_as_on_a_disk_but_for_directories(places: Places) -> None:
    def stated(at: Path) -> object:
        return [
            (status.st_mode, status.st_size, status.st_nlink, status.st_uid, status.st_gid)
            for status in map(os.lstat, (at / "file", at / "link"))
        ]

    places.both(stated)
    places.fail(errno.ENOENT, lambda at: os.stat(at / "none"))
    places.fail(errno.ENOTDIR, lambda at: os.stat(at / "file" / "x"))
    places.fail(errno.ELOOP, lambda at: os.stat(at / "loop"))
    status = (places.fresh() / "full").stat()
    assert (status.st_nlink, status.st_size) == (1, 0)


def test_modes_are_set_as_on_a_disk(places: Places) -> None:
    places.fail(errno.ENOENT, lambda at: os.chmod(at / "none", 0o600))

    def by_link(at: Path) -> int:
        (at / "link").chmod(0o7640)
        return (at / "file").stat().st_mode

    assert places.both(by_link) == stat.S_IFREG | 0o7640


def test_times_are_set_as_on_a_disk(places: Places) -> None:
    places.fail(errno.ENOENT, lambda at: os.utime(at / "none"))

    def set_times(at: Path) -> object:
        times = []
        for atime, mtime in ((-5, -7), (10**18, 5 * 10**18)):
            os.utime(at / "file", ns=(atime, mtime))
            times.append(((at / "file").stat().st_atime_ns, (at / "file").stat().st_mtime_ns))
        os.utime(at / "link", ns=(3, 4), follow_symlinks=False)
        return times, (at / "link").lstat().st_mtime_ns

    assert places.both(set_times) == ([(-5, -7), (10**18, 5 * 10**18)], 4)


def test_reading_sets_no_time(places: Places) -> None:
    at = places.fresh()
    os.utime(at / "file", ns=(1, 2))

    (at / "file").read_bytes()

    assert (at / "file").stat().st_atime_ns == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="another owner can be asked for by root alone")
def test_the_owner_of_a_file_cannot_be_changed(places: Places) -> None:
    places.fail_mounted(
        errno.EPERM,
        lambda at: os.chown(at / "file", 12345, -1),
        lambda at: os.lchown(at / "link", 12345, -1),
    )
    places.fail(errno.ENOENT, lambda at: os.chown(at / "none", 0, 0))


def test_only_extended_attributes_of_keepfs_exist(places: Places) -> None:
    places.fail_mounted(
        errno.EOPNOTSUPP,
        lambda at: os.setxattr(at / "file", "user.x", b"x"),
        lambda at: os.removexattr(at / "file", "user.x"),
        lambda at: os.setxattr(at / "full", "user.keep.state", b"x"),
        lambda at: os.getxattr(at / "file", "system.posix_acl_access"),
    )
    places.fail(
        errno.ENODATA,
        lambda at: os.getxattr(at / "file", "user.none"),
        lambda at: os.getxattr(at / "full", "user.keep.state"),
    )
    places.fail(errno.ENOENT, lambda at: os.getxattr(at / "none", "user.keep.state"))
    places.fail_mounted(errno.ENODATA, lambda at: os.removexattr(at / "file", "user.keep.none"))
    at = places.fresh()
    locator = os.getxattr(at / "file", "user.keep.locator")
    os.setxattr(at / "file", "user.keep.locator", b"x")
    os.removexattr(at / "file", "user.keep.locator")
    assert os.getxattr(at / "file", "user.keep.locator") == locator
    assert sorted(os.listxattr(at / "file")) == [
        f"user.keep.{name}" for name in ("copies", "locator", "services", "state")
    ]
    assert os.listxattr(at / "full") == []
    assert _libc.getxattr(os.fsencode(at / "file"), b"user.keep.state", b"12", 2) == -1
    assert ctypes.get_errno() == errno.ERANGE


def test_a_read_only_mount_refuses_each_changing_call(tmp_path: Path) -> None:
    with mounted(tmp_path) as before:
        (before.upload / "file").write_bytes(b"there")
    with mounted(tmp_path, "--read-only") as mount:
        file, new = mount.upload / "file", mount.upload / "new"
        attempts: list[Callable[[], object]] = [
            lambda: opened(file, os.O_WRONLY),
            lambda: opened(file, os.O_RDONLY | os.O_TRUNC),
            lambda: opened(new, os.O_CREAT),
            lambda: os.truncate(file, 0),
            lambda: os.rename(file, new),
            lambda: os.unlink(file),
            lambda: os.mkdir(new),
            lambda: os.symlink("x", new),
            lambda: os.link(file, new),
            lambda: os.mknod(new, stat.S_IFREG | 0o600),
            lambda: os.chmod(file, 0o600),
            lambda: os.utime(file),
        ]
        for attempt in attempts:
            with pytest.raises(OSError, match="Read-only") as caught:
                attempt()
            assert caught.value.errno == errno.EROFS
        assert file.read_bytes() == b"there"


def test_by_id_has_no_links_and_no_directories(shared: KeepfsMount) -> None:
    (shared.upload / "for-by-id").write_bytes(b"a block")
    block = shared.by_id / shared.locator(shared.upload / "for-by-id")

    with pytest.raises(OSError, match="Invalid"):
        os.readlink(block)
    with pytest.raises(NotADirectoryError):
        os.listdir(block)
    with pytest.raises(IsADirectoryError):
        os.open(shared.by_id, os.O_WRONLY)
