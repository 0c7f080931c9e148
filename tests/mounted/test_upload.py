"""upload/ through the kernel: what programs do to files, and what is stored then."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mounted.mounts import mounted, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.mounted.mounts import KeepfsMount


@pytest.fixture
def here(shared: KeepfsMount, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory in upload/ for one test."""
    directory = shared.upload / request.node.name
    directory.mkdir()
    yield directory
    subprocess.run(["rm", "-rf", str(directory)], check=True)


def state(path: Path) -> str:
    return os.getxattr(path, "user.keep.state").decode()


def stored(mount: KeepfsMount, path: Path) -> bytes:
    """Read a file back by its locator."""
    return (mount.by_id / mount.locator(path)).read_bytes()


def test_closing_a_file_stores_it(shared: KeepfsMount, here: Path) -> None:
    with (here / "file").open("wb", buffering=0) as file:
        file.write(b"hello")
        assert state(here / "file") == "dirty"
        with pytest.raises(OSError, match="No data"):
            shared.locator(here / "file")

    assert state(here / "file") == "stored"
    assert shared.locator(here / "file") == "5d41402abc4b2a76b9719d911017c592+5"
    assert stored(shared, here / "file") == b"hello"
    assert os.getxattr(here / "file", "user.keep.copies") == b"1"


def test_fsync_stores_without_closing(shared: KeepfsMount, here: Path) -> None:
    with (here / "file").open("wb", buffering=0) as file:
        file.write(b"first")
        os.fsync(file.fileno())
        assert stored(shared, here / "file") == b"first"
        file.write(b", second")
        assert state(here / "file") == "dirty"

    assert stored(shared, here / "file") == b"first, second"


def test_an_empty_file_is_the_empty_block(shared: KeepfsMount, here: Path) -> None:
    (here / "file").touch()

    assert shared.locator(here / "file") == "d41d8cd98f00b204e9800998ecf8427e+0"
    assert stored(shared, here / "file") == b""


def test_a_shell_may_flush_before_it_writes_and_after_each_echo(
    shared: KeepfsMount, here: Path
) -> None:
    script = "echo 1 > one; exec 3> three; echo a >&3; echo b >&3; echo c >&3; echo d >> three"
    subprocess.run(["sh", "-c", script], cwd=here, check=True)

    assert stored(shared, here / "one") == b"1\n"
    assert (here / "three").read_bytes() == b"a\nb\nc\nd\n"


def test_a_file_can_be_written_after_a_close_by_dup_or_fork(
    shared: KeepfsMount, here: Path
) -> None:
    with (here / "file").open("wb", buffering=0) as file:
        file.write(b"before ")
        os.close(os.dup(file.fileno()))
        assert stored(shared, here / "file") == b"before "
        subprocess.run(
            [sys.executable, "-c", "import os; os.write(3, b'child ')"],
            check=True,
            close_fds=False,
            preexec_fn=lambda: os.dup2(file.fileno(), 3),
        )
        file.write(b"after")

    assert stored(shared, here / "file") == b"before child after"


def test_bytes_may_be_written_in_any_order(shared: KeepfsMount, here: Path) -> None:
    with (here / "file").open("w+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"end", 2_000_000)
        os.pwrite(file.fileno(), b"middle", 1_000_000)
        os.pwrite(file.fileno(), b"start", 0)
        assert os.pread(file.fileno(), 6, 1_000_000) == b"middle"

    expected = bytearray(2_000_003)
    expected[:5], expected[1_000_000:1_000_006], expected[2_000_000:] = b"start", b"middle", b"end"
    assert stored(shared, here / "file") == expected


def test_appending_writes_at_the_end(shared: KeepfsMount, here: Path) -> None:
    for word in (b"one ", b"two ", b"three"):
        with (here / "file").open("ab") as file:
            file.write(word)

    assert stored(shared, here / "file") == b"one two three"


def test_truncating_by_name_by_handle_and_on_opening(shared: KeepfsMount, here: Path) -> None:
    path = here / "file"
    path.write_bytes(b"0123456789")
    os.truncate(path, 4)
    assert path.read_bytes() == b"0123"
    with path.open("r+b") as file:
        file.truncate(6)
    assert stored(shared, path) == b"0123\0\0"

    with path.open("wb"):
        assert path.stat().st_size == 0
    assert stored(shared, path) == b""


def test_truncating_by_name_stores_since_no_close_follows(shared: KeepfsMount, here: Path) -> None:
    path = here / "file"
    path.write_bytes(b"0123456789")

    os.truncate(path, 4)

    assert stored(shared, path) == b"0123"


def test_a_file_over_one_block_is_cut_at_64_mib(shared: KeepfsMount, here: Path) -> None:
    content = os.urandom(1 << 20) * 65 + b"tail"
    (here / "file").write_bytes(content)

    locators = shared.locator(here / "file").split(",")
    assert [each.partition("+")[2] for each in locators] == ["67108864", "1048580"]
    assert stored(shared, here / "file") == content
    assert (here / "file").read_bytes() == content
    with (here / "file").open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"over the border", (64 << 20) - 5)

    changed = bytearray(content)
    changed[(64 << 20) - 5 : (64 << 20) + 10] = b"over the border"
    assert stored(shared, here / "file") == changed


def test_a_hole_is_zeros_and_a_size_has_a_limit(shared: KeepfsMount, here: Path) -> None:
    with (here / "file").open("wb") as file:
        file.truncate(200 << 20)

    locators = shared.locator(here / "file").split(",")
    assert locators[0] == locators[2] == "7f614da9329cd3aebf59b91aadc30bf0+67108864"
    assert locators[3].endswith("+8388608")
    with pytest.raises(OSError, match="too large") as caught:
        os.truncate(here / "file", 1 << 50)
    assert caught.value.errno == errno.EFBIG


def test_bytes_written_by_mmap_are_stored(shared: KeepfsMount, here: Path) -> None:
    path = here / "file"
    path.write_bytes(b"." * 10_000)
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    mapped[5000:5005] = b"while"
    mapped.flush()
    mapped[9000:9005] = b"after"
    mapped.close()

    wait_until(lambda: state(path) == "stored")
    assert stored(shared, path)[5000:5005] == b"while"
    assert stored(shared, path)[9000:9005] == b"after"


def test_modes_and_times_are_kept(here: Path) -> None:
    path = here / "file"
    path.write_bytes(b"x")
    for mode in (0o000, 0o644, 0o4755, 0o1777):
        path.chmod(mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    os.utime(path, ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))

    status = path.stat()
    assert status.st_atime_ns == 1_000_000_000_123_456_789
    assert status.st_mtime_ns == 1_100_000_000_987_654_321
    here.chmod(0o700)
    assert stat.S_IMODE(here.stat().st_mode) == 0o700


def test_times_set_through_the_handle_survive_the_close(here: Path) -> None:
    with (here / "file").open("wb", buffering=0) as file:
        file.write(b"x")
        os.utime(file.fileno(), ns=(1, 2))

    assert (here / "file").stat().st_mtime_ns == 2


def test_writes_and_new_entries_set_the_times(here: Path) -> None:
    path = here / "file"
    os.utime(here, ns=(1, 1))
    path.write_bytes(b"x")
    assert here.stat().st_mtime_ns > 1
    os.utime(path, ns=(1, 1))
    path.write_bytes(b"y")

    assert path.stat().st_mtime_ns > 1


def test_the_owner_cannot_be_changed(here: Path) -> None:
    path = here / "file"
    path.touch()
    os.chown(path, os.getuid(), os.getgid())
    os.chown(path, -1, -1)

    with pytest.raises(PermissionError):
        os.chown(path, 12345, -1)


def test_directories_are_made_listed_and_removed(here: Path) -> None:
    (here / "a" / "b").mkdir(parents=True)
    (here / "a" / "file").touch()
    with pytest.raises(OSError, match="not empty"):
        (here / "a").rmdir()
    with pytest.raises(IsADirectoryError):
        (here / "a").unlink()
    with pytest.raises(NotADirectoryError):
        (here / "a" / "file").rmdir()
    with pytest.raises(FileExistsError):
        (here / "a").mkdir()
    with pytest.raises(FileExistsError):
        os.open(here / "a" / "file", os.O_CREAT | os.O_EXCL)

    assert sorted(os.listdir(here / "a")) == ["b", "file"]
    (here / "a" / "file").unlink()
    (here / "a" / "b").rmdir()
    (here / "a").rmdir()
    assert os.listdir(here) == []


def test_many_entries_are_listed_once_each_and_removed_while_listed(here: Path) -> None:
    names = {f"file-{number:04}-{'x' * 40}" for number in range(2000)}
    for name in names:
        (here / name).touch()

    seen = []
    with os.scandir(here) as entries:
        for entry in entries:
            seen.append(entry.name)
            Path(entry.path).unlink()
    assert len(seen) == len(set(seen)) == 2000
    assert set(seen) == names
    assert os.listdir(here) == []


def test_a_long_directory_is_listed_in_parts_without_removed_entries(
    here: Path,
) -> None:
    names = [f"{number:03}" for number in range(700)]
    for name in names:
        os.mknod(here / name)

    with os.scandir(here) as listing:
        found = [next(listing).name]
        for name in names[300:-1]:  # more than one part, and none of the first
            (here / name).unlink()
        found += [entry.name for entry in listing]

    assert found == [*names[:300], names[-1]]


def test_renaming_moves_a_file_with_its_locator(shared: KeepfsMount, here: Path) -> None:
    (here / "old").write_bytes(b"content")
    (here / "new").write_bytes(b"replaced")
    (here / "directory").mkdir()
    locator = shared.locator(here / "old")

    (here / "old").rename(here / "new")
    assert shared.locator(here / "new") == locator
    (here / "new").rename(here / "directory" / "there")
    assert (here / "directory" / "there").read_bytes() == b"content"
    (here / "directory").rename(here / "moved")
    assert (here / "moved" / "there").read_bytes() == b"content"
    assert os.listdir(here) == ["moved"]


def test_renaming_fails_with_the_errnos_of_linux(here: Path) -> None:
    (here / "file").touch()
    (here / "full" / "x").mkdir(parents=True)
    (here / "empty").mkdir()
    with pytest.raises(OSError, match="not empty"):
        (here / "empty").rename(here / "full")
    with pytest.raises(NotADirectoryError):
        (here / "empty").rename(here / "file")
    with pytest.raises(IsADirectoryError):
        (here / "file").rename(here / "empty")
    with pytest.raises(OSError, match="Invalid"):
        (here / "full").rename(here / "full" / "x" / "y")
    with pytest.raises(FileNotFoundError):
        (here / "none").rename(here / "some")

    (here / "full").rename(here / "empty")
    assert sorted(os.listdir(here)) == ["empty", "file"]


def test_an_open_file_outlives_its_name(here: Path) -> None:
    with (here / "file").open("w+b", buffering=0) as file:
        file.write(b"still ")
        (here / "file").unlink()
        file.write(b"here")
        file.seek(0)
        assert file.read() == b"still here"
        assert os.fstat(file.fileno()).st_nlink == 0

    assert os.listdir(here) == []


def test_a_file_renamed_over_another_that_is_open(shared: KeepfsMount, here: Path) -> None:
    (here / "new").write_bytes(b"new")
    with (here / "old").open("w+b", buffering=0) as file:
        file.write(b"old")
        (here / "new").rename(here / "old")
        file.seek(0)
        assert file.read() == b"old"

    assert stored(shared, here / "old") == b"new"


def test_symlinks_are_kept_and_hard_links_refused(here: Path) -> None:
    (here / "file").write_bytes(b"target")
    (here / "link").symlink_to("file")
    assert (here / "link").read_bytes() == b"target"
    assert os.readlink(here / "link") == "file"
    assert (here / "link").lstat().st_size == 4
    with pytest.raises(PermissionError):
        os.link(here / "file", here / "hard")
    with pytest.raises(PermissionError):
        os.mkfifo(here / "fifo")

    os.mknod(here / "node", 0o600 | stat.S_IFREG)
    assert (here / "node").read_bytes() == b""


def test_odd_names_can_be_used(here: Path) -> None:
    names = [b"with blank", "ünïcödé".encode(), b"\xff\xfe", b"new\nline", b"x" * 255, b"-rf"]
    for name in names:
        (here / os.fsdecode(name)).write_bytes(name)

    assert sorted(os.listdir(os.fsencode(here))) == sorted(names)
    assert all((here / os.fsdecode(name)).read_bytes() == name for name in names)
    with pytest.raises(OSError, match="too long"):
        (here / ("x" * 256)).touch()
    with pytest.raises(OSError, match="too long"):
        (here / ("x" * 256)).stat()


def test_a_reader_sees_the_bytes_of_a_writer(here: Path) -> None:
    with (here / "file").open("wb", buffering=0) as writer, (here / "file").open("rb") as reader:
        writer.write(b"unclosed")
        assert reader.read() == b"unclosed"


def test_two_writers_of_one_file_both_count(shared: KeepfsMount, here: Path) -> None:
    path = here / "file"
    with path.open("wb", buffering=0) as one, path.open("r+b", buffering=0) as two:
        one.write(b"aaaa")
        os.pwrite(two.fileno(), b"bb", 1)
        two.close()
        assert stored(shared, path) == b"abba"
        os.pwrite(one.fileno(), b"c", 0)

    assert stored(shared, path) == b"cbba"


def test_a_read_only_mount_refuses_changes(tmp_path: Path) -> None:
    from tests.mounted.mounts import mounted  # noqa: PLC0415 - a mount of its own

    with mounted(tmp_path, "--read-only") as mount:
        attempts: list[Callable[[], object]] = [
            (mount.upload / "file").touch,
            (mount.upload / "directory").mkdir,
            lambda: mount.upload.chmod(0o700),
        ]
        for attempt in attempts:
            with pytest.raises(OSError, match="Read-only"):
                attempt()


def test_entries_inherit_the_group_of_setgid_directories(here: Path) -> None:
    here.chmod(0o2755)
    (here / "inner").mkdir()

    assert (here / "inner").stat().st_mode & stat.S_ISGID


def test_with_direct_io_only_shared_mappings_are_missing(tmp_path: Path) -> None:
    content = os.urandom(3 * 1024 * 1024 + 17)
    with mounted(tmp_path, "--direct-io") as mount:
        path = mount.upload / "file"
        path.write_bytes(content)
        with path.open("r+b") as file, path.open("rb") as reader:
            file.seek(1_000_000)
            file.write(b"changed")
            file.flush()
            reader.seek(999_999)
            seen = reader.read(9)
            with pytest.raises(OSError, match="No such device"):
                mmap.mmap(file.fileno(), 0)

        assert seen == content[999_999:1_000_000] + b"changed" + content[1_000_007:1_000_008]
        assert path.read_bytes() == content[:1_000_000] + b"changed" + content[1_000_007:]
        assert (mount.by_id / mount.locator(path)).read_bytes() == path.read_bytes()
