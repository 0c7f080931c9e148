"""SEMANTICS.md, the calls on open files: what upload/ does is compared with a local disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.mounted.mounts import KeepfsMount
    from tests.mounted.places import Places

_libc = ctypes.CDLL(None, use_errno=True)
_FS_IOC_GETFLAGS, _TCGETS, _FICLONE = 0x80086601, 0x5401, 0x40049409
_F_OFD_SETLK = 37
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """Have a file open for a while."""
    file = os.open(path, flags, 0o640)
    try:
        yield file
    finally:
        os.close(file)


def on_file(
    work: Callable[[int], object], flags: int = os.O_RDWR, name: str = "file"
) -> Callable[[Path], object]:
    """Make a step of what is done with one open file."""

    def step(at: Path) -> object:
        with opened(at / name, flags) as file:
            return work(file)

    return step


def state(path: Path) -> str:
    return os.getxattr(path, "user.keep.state").decode()


def test_reading_ends_and_fails_as_on_a_disk(places: Places) -> None:
    assert places.both(on_file(lambda it: os.pread(it, 5, 100))) == b""
    assert places.both(on_file(lambda it: os.pread(it, 100, 7))) == b"789"
    places.fail(errno.EBADF, on_file(lambda it: os.read(it, 1), os.O_WRONLY))
    places.fail(errno.EISDIR, on_file(lambda it: os.read(it, 1), os.O_RDONLY, "full"))
    places.fail(errno.EINVAL, on_file(lambda it: os.pread(it, 1, -1)))


def test_writing_fails_as_on_a_disk(places: Places) -> None:
    places.fail(errno.EBADF, on_file(lambda it: os.write(it, b"x"), os.O_RDONLY))
    places.fail(errno.EINVAL, on_file(lambda it: os.pwrite(it, b"x", -1)))
    places.fail_mounted(errno.EFBIG, on_file(lambda it: os.pwrite(it, b"x", 1 << 42)))


def test_appending_through_two_handles_overwrites_nothing(places: Places) -> None:
    def append(at: Path) -> bytes:
        flags = os.O_RDWR | os.O_APPEND
        with opened(at / "file", flags) as one, opened(at / "file", flags) as two:
            for file, word in ((one, b"a"), (two, b"b"), (one, b"c")):
                os.write(file, word)
            os.pwrite(one, b"Z", 0)  # Linux appends this too
            return (at / "file").read_bytes()

    assert places.both(append) == b"0123456789abcZ"


def test_with_o_sync_each_write_is_stored(places: Places) -> None:
    at = places.fresh()
    for flag in (os.O_SYNC, os.O_DSYNC):
        with opened(at / "file", os.O_WRONLY | flag) as file:
            os.write(file, b"synced")
            assert state(at / "file") == "stored"


def test_direct_io_reads_and_writes(places: Places) -> None:
    def direct(at: Path) -> object:
        with mmap.mmap(-1, 4096) as page, opened(at / "file", os.O_RDWR | os.O_DIRECT) as file:
            page[:4] = b"page"
            return os.writev(file, [page]), os.preadv(file, [page], 0), (at / "file").read_bytes()

    assert places.both(direct) == (4096, 4096, b"page".ljust(4096, b"\0"))


def test_truncating_fails_as_on_a_disk(places: Places) -> None:
    places.fail(errno.ENOENT, lambda at: os.truncate(at / "none", 0))
    places.fail(errno.EISDIR, lambda at: os.truncate(at / "full", 0))
    places.fail(
        errno.EINVAL,
        lambda at: os.truncate(at / "file", -1),
        on_file(lambda it: os.ftruncate(it, 0), os.O_RDONLY),
    )
    places.fail_mounted(errno.EFBIG, lambda at: os.truncate(at / "file", (1 << 42) + 1))

    def by_link(at: Path) -> bytes:
        os.truncate(at / "link", 5)
        return (at / "file").read_bytes()

    assert places.both(by_link) == b"01234"


def test_mappings_are_as_on_a_disk(places: Places) -> None:
    def mapped(flags: int) -> Callable[[Path], object]:
        def step(at: Path) -> object:
            with opened(at / "file") as file, mmap.mmap(file, 10, flags=flags) as pages:
                pages[:1] = b"X"
                return pages[:4], (at / "file").read_bytes()[:4]

        return step

    def shared_mapping(file: int) -> None:
        mmap.mmap(file, 10).close()

    def read_through_it(file: int) -> None:
        mmap.mmap(file, 10, prot=mmap.PROT_READ).close()

    assert places.both(mapped(mmap.MAP_SHARED)) == (b"X123", b"X123")
    assert places.both(mapped(mmap.MAP_PRIVATE)) == (b"X123", b"0123")
    places.fail(
        errno.EACCES,
        on_file(shared_mapping, os.O_RDONLY),
        on_file(read_through_it, os.O_WRONLY),
    )
    places.fail(errno.ENODEV, on_file(read_through_it, os.O_RDONLY, "full"))


def test_a_synced_mapping_is_stored(shared: KeepfsMount, places: Places) -> None:
    at = places.fresh()
    with opened(at / "file") as file, mmap.mmap(file, 10) as pages:
        pages[:1] = b"X"
        pages.flush()
        assert state(at / "file") == "stored"

        assert (shared.by_id / shared.locator(at / "file")).read_bytes() == b"X123456789"


def test_a_program_runs_and_is_not_written_while_it_does(places: Places) -> None:
    def run(at: Path) -> object:
        subprocess.run(["cp", "/bin/true", at / "program"], check=True)
        done = subprocess.run([at / "program"], check=False)
        with opened(at / "program", os.O_WRONLY), pytest.raises(OSError, match="busy") as caught:
            subprocess.run([at / "program"], check=False)
        return done.returncode, caught.value.errno

    assert places.both(run) == (0, errno.ETXTBSY)


def test_fallocate_is_not_supported(places: Places) -> None:
    def fallocate(mode: int, offset: int = 0, length: int = 5) -> Callable[[int], object]:
        def work(file: int) -> int:
            size = ctypes.c_long
            if _libc.fallocate(file, mode, size(offset), size(length)) != 0:
                raise OSError(ctypes.get_errno(), "fallocate")
            return os.fstat(file).st_size

        return work

    for mode in (0, _KEEP_SIZE, _PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE):
        places.fail_mounted(errno.EOPNOTSUPP, on_file(fallocate(mode)))
    places.fail(errno.EINVAL, on_file(fallocate(0, -1)), on_file(fallocate(0, 0, 0)))

    def allocate(file: int) -> bytes:
        os.posix_fallocate(file, 0, 15)
        return os.pread(file, 100, 0)

    assert places.both(on_file(allocate)) == b"0123456789\0\0\0\0\0"


@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE])
def test_seek_reports_a_file_as_data_with_a_hole_at_the_end(places: Places, whence: int) -> None:
    found = [places.both(on_file(lambda it, to=to: os.lseek(it, to, whence))) for to in (0, 3)]  # type: ignore[misc] # bound now

    assert found == ([0, 3] if whence == os.SEEK_DATA else [10, 10])
    places.fail(
        errno.ENXIO,
        on_file(lambda it: os.lseek(it, 10, whence)),
        on_file(lambda it: os.lseek(it, 11, whence)),
    )


def test_seek_reports_holes_as_data(places: Places) -> None:
    at = places.fresh()
    os.truncate(at / "file", 1 << 20)

    with opened(at / "file") as file:
        assert os.lseek(file, 4096, os.SEEK_DATA) == 4096
        assert os.lseek(file, 0, os.SEEK_HOLE) == 1 << 20


def test_the_kernel_copies_ranges_and_nothing_is_cloned(places: Places) -> None:
    def copy(at: Path) -> object:
        with opened(at / "file") as old, opened(at / "new", os.O_CREAT | os.O_RDWR) as new:
            copied = os.copy_file_range(old, new, 100, 0, 0)
            return copied, os.sendfile(new, old, 0, 5), os.pread(new, 100, 0)

    def clone(at: Path) -> None:
        with opened(at / "file") as old, opened(at / "new", os.O_CREAT | os.O_RDWR) as new:
            fcntl.ioctl(new, _FICLONE, old)

    assert places.both(copy) == (10, 5, b"0123456789")
    places.fail(errno.EINVAL, on_file(lambda it: os.copy_file_range(it, it, 5, 0, 2)))
    places.fail_mounted(errno.EOPNOTSUPP, clone)


def test_flock_locks_between_handles(places: Places) -> None:
    def lock(at: Path) -> object:
        with opened(at / "file") as one, opened(at / "file") as two:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with pytest.raises(BlockingIOError):
                fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(one, fcntl.LOCK_UN)
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return "locked"

    assert places.both(lock) == "locked"


def test_record_locks_are_for_ranges_between_processes(places: Places) -> None:
    script = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
for start in 0, 5:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, start)
        print("locked")
    except BlockingIOError:
        print("refused")
"""

    def lock(at: Path) -> str:
        with opened(at / "file") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 5)
            return subprocess.check_output(
                [sys.executable, "-c", script, str(at / "file")], text=True
            )

    assert places.both(lock) == "refused\nlocked\n"


def test_open_file_description_locks_are_between_handles(places: Places) -> None:
    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)

    def lock(at: Path) -> None:
        with opened(at / "file") as one, opened(at / "file") as two:
            fcntl.fcntl(one, _F_OFD_SETLK, whole)
            fcntl.fcntl(two, _F_OFD_SETLK, whole)

    places.fail(errno.EAGAIN, lock)


def test_an_ioctl_is_refused(places: Places) -> None:
    places.fail(
        errno.ENOTTY,
        on_file(lambda it: fcntl.ioctl(it, _TCGETS, bytes(60))),
        on_file(lambda it: fcntl.ioctl(it, 0x1234, bytes(8))),
    )
    places.fail_mounted(
        errno.ENOTTY, on_file(lambda it: fcntl.ioctl(it, _FS_IOC_GETFLAGS, bytes(8)))
    )


def test_poll_reports_a_file_as_always_ready(places: Places) -> None:
    def poll(file: int) -> object:
        poller = select.poll()
        poller.register(file, select.POLLIN | select.POLLOUT)
        return [events for _, events in poller.poll(0)]

    assert places.both(on_file(poll)) == [select.POLLIN | select.POLLOUT]


def test_sync_and_syncfs_store_nothing(places: Places) -> None:
    at = places.fresh()
    with opened(at / "file") as file:
        os.write(file, b"x")
        assert _libc.syncfs(file) == 0
        os.sync()

        assert state(at / "file") == "dirty"


def test_a_directory_can_be_synced(places: Places) -> None:
    def sync(file: int) -> str:
        os.fsync(file)
        os.fdatasync(file)
        return "synced"

    assert places.both(on_file(sync, os.O_RDONLY, "full")) == "synced"


def test_fdatasync_stores_as_fsync_does(places: Places) -> None:
    at = places.fresh()
    with opened(at / "file") as file:
        os.write(file, b"x")
        os.fdatasync(file)

        assert state(at / "file") == "stored"


def test_a_second_close_has_nothing_to_store(shared: KeepfsMount, places: Places) -> None:
    at = places.fresh()
    with opened(at / "file") as file:
        os.write(file, b"once")
        os.close(os.dup(file))
        before = shared.locator(at / "file")
        block = shared.store / before.partition("+")[0]
        block.unlink()
        os.close(os.dup(file))

        assert shared.locator(at / "file") == before
        assert not block.exists()


def test_statfs_has_the_block_size_name_limit_and_flags(places: Places) -> None:
    at = places.fresh()
    there = os.statvfs(at)

    assert (there.f_bsize, there.f_namemax) == (1 << 20, 255)
    assert there.f_flag & os.ST_NOSUID
    assert there.f_flag & os.ST_NODEV
    with pytest.raises(FileNotFoundError):
        os.statvfs(at / "none")
