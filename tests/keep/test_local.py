"""The local store: whole blocks or none, each verified when it is read."""

from __future__ import annotations

import array
import contextlib
import hashlib
import io
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import (
    MAX_BLOCK_SIZE,
    Cause,
    KeepLocator,
    KeepReadError,
    KeepWriteError,
    LocalStore,
    NotFoundError,
    Receipt,
)
from keepfs.keep.buffers import FreshAllocation
from keepfs.keep.local import remove_leftovers
from tests.fakes.threads import Running, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from typing_extensions import Buffer

FOO = KeepLocator("acbd18db4cc2f85cedef654fccc4a4d8+3")
BAR = KeepLocator("37b51d194a7513e45b56f6524f2d51f2+3")
EMPTY = KeepLocator("d41d8cd98f00b204e9800998ecf8427e+0")
NOBODY = 65534


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Name a directory that doesn't exist yet."""
    return tmp_path / "blocks"


@pytest.fixture
def store(directory: Path) -> LocalStore:
    """Make an empty store."""
    return LocalStore(directory)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    mounted = tmp_path / "small"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no tmpfs may be mounted here: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Become a user who may not do everything; give them a directory of their own."""
    mine = Path(tempfile.mkdtemp(prefix="keepfs-test-"))
    if os.geteuid() == 0:
        os.chown(mine, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield mine
        finally:
            os.seteuid(0)
    else:
        yield mine
    mine.chmod(0o700)
    shutil.rmtree(mine)


def names(directory: Path) -> list[str]:
    """List a directory."""
    return sorted(entry.name for entry in directory.iterdir())


def are_whole(directory: Path) -> bool:
    """Tell whether every block file of a directory has the content it is named for."""
    return all(
        hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() == file.name
        for file in directory.iterdir()
        if file.suffix != ".tmp"
    )


def system_calls(action: Callable[[], object]) -> list[str]:
    """Return what an action asked of the system that bears on what a crash leaves, in order."""
    calls: list[str] = []

    def observe(_frame: FrameType, event: str, called: object) -> None:
        name = getattr(called, "__name__", "")
        is_file = isinstance(getattr(called, "__self__", None), io.FileIO)
        if event == "c_call" and (
            name in {"mkdir", "fsync", "rename", "unlink", "utime"}
            or (is_file and name == "write")
        ):
            calls.append(name)

    sys.setprofile(observe)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


def spawn(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start this interpreter on a program."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# --- layout: the SDK's ---


def test_a_block_is_a_file_named_by_its_digest(store: LocalStore, directory: Path) -> None:
    receipt = store.put(b"foo")

    assert names(directory) == [FOO.md5sum]
    assert (directory / FOO.md5sum).read_bytes() == b"foo"
    assert receipt == Receipt(FOO, copies=1, services=(f"local:{directory}",))


def test_a_block_that_the_sdk_wrote_is_read(store: LocalStore, directory: Path) -> None:
    directory.mkdir()
    (directory / FOO.md5sum).write_bytes(b"foo")

    assert store.get(FOO) == b"foo"
    assert store.head(FOO) == 3
    assert store.put(b"foo").locator == FOO


def test_other_files_in_the_directory_are_not_changed(store: LocalStore, directory: Path) -> None:
    directory.mkdir()
    (directory / f"{FOO.md5sum}.tmp").write_bytes(b"f")  # the SDK, interrupted
    (directory / "README").write_text("blocks")

    store.put(b"foo")

    assert names(directory) == sorted([FOO.md5sum, f"{FOO.md5sum}.tmp", "README"])
    assert store.get(FOO) == b"foo"


def test_the_directory_is_made_by_the_first_put_for_its_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    store = LocalStore(directory)
    made_early = directory.exists()

    store.put(b"foo")

    assert not made_early
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / FOO.md5sum).stat().st_mode) == 0o600


def test_a_relative_directory_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = LocalStore("blocks")

    monkeypatch.chdir("/")
    store.put(b"foo")

    assert names(tmp_path / "blocks") == [FOO.md5sum]


# --- reading ---


@pytest.mark.parametrize("locator", [FOO, KeepLocator(FOO.md5sum), KeepLocator(f"{FOO}+Zfoo")])
def test_a_block_is_read_by_any_locator_of_its_digest(
    store: LocalStore, locator: KeepLocator
) -> None:
    store.put(b"foo")

    assert store.get(locator) == b"foo"
    assert store.head(locator) == 3


@pytest.mark.parametrize("exists", [True, False])
def test_a_missing_block_is_not_found(store: LocalStore, directory: Path, *, exists: bool) -> None:
    if exists:
        directory.mkdir()

    for call in (store.get, store.head):
        with pytest.raises(NotFoundError, match=str(directory / FOO.md5sum)):
            call(FOO)


def test_the_empty_block_is_there_without_a_file(store: LocalStore) -> None:
    for locator in (EMPTY, KeepLocator(EMPTY.md5sum)):
        assert store.get(locator) == b""
        assert store.head(locator) == 0


def test_the_empty_digest_with_another_size_is_no_block(store: LocalStore) -> None:
    with pytest.raises(NotFoundError):
        store.get(KeepLocator(f"{EMPTY.md5sum}+1"))


@pytest.mark.parametrize("content", [b"fox", b"fo", b"fooo", b""], ids=repr)
@pytest.mark.parametrize("name", [str(FOO), FOO.md5sum])
def test_a_corrupt_file_is_an_error_that_names_it(
    store: LocalStore, directory: Path, name: str, content: bytes
) -> None:
    store.put(b"foo")
    (directory / FOO.md5sum).write_bytes(content)

    with pytest.raises(KeepReadError, match=str(directory / FOO.md5sum)) as caught:
        store.get(KeepLocator(name))

    assert caught.value.cause is Cause.CORRUPT
    assert "corrupt" in str(caught.value)


@pytest.mark.parametrize("content", [b"foot", b"fo"], ids=repr)
def test_a_file_that_changes_its_size_while_it_is_read_is_corrupt(
    store: LocalStore, directory: Path, content: bytes
) -> None:
    store.put(b"foo")

    def allocate(size: int) -> FreshAllocation:
        (directory / FOO.md5sum).write_bytes(content)  # after it was looked at, before it is read
        return FreshAllocation(size)

    with pytest.raises(KeepReadError, match="corrupt") as caught:
        store.get(FOO, allocate)

    assert caught.value.cause is Cause.CORRUPT


@pytest.mark.parametrize("content", [b"fo", b"fooo", b""], ids=repr)
def test_a_head_of_a_file_of_another_size_is_an_error_that_names_it(
    store: LocalStore, directory: Path, content: bytes
) -> None:
    store.put(b"foo")
    (directory / FOO.md5sum).write_bytes(content)

    with pytest.raises(KeepReadError, match=str(directory / FOO.md5sum)) as caught:
        store.head(FOO)

    assert caught.value.cause is Cause.CORRUPT


def test_a_file_too_large_for_a_block_is_not_read_to_its_end(
    store: LocalStore, directory: Path
) -> None:
    directory.mkdir()
    with (directory / FOO.md5sum).open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room, but would take all memory

    for name in (FOO, KeepLocator(FOO.md5sum)):
        with pytest.raises(KeepReadError) as caught:
            store.get(name)

        assert caught.value.cause is Cause.CORRUPT


def test_a_directory_in_a_blocks_place_cannot_be_read(store: LocalStore, directory: Path) -> None:
    (directory / FOO.md5sum).mkdir(parents=True)

    with pytest.raises(KeepReadError, match=str(directory / FOO.md5sum)) as caught:
        store.get(FOO)

    assert caught.value.cause is Cause.OTHER


def test_a_block_that_may_not_be_read_is_denied(unprivileged: Path) -> None:
    store = LocalStore(unprivileged / "blocks")
    store.put(b"foo")
    (unprivileged / "blocks" / FOO.md5sum).chmod(0)

    with pytest.raises(KeepReadError, match="Permission denied") as caught:
        store.get(FOO)

    assert caught.value.cause is Cause.DENIED


# --- writing ---


@pytest.mark.parametrize(
    "of", [bytes, bytearray, memoryview, lambda content: array.array("H", content)]
)
def test_a_block_may_be_any_buffer(store: LocalStore, of: Callable[[bytes], Buffer]) -> None:
    receipt = store.put(of(b"foobar"))

    assert str(receipt.locator) == "3858f62230ac3c915f300c664312c63f+6"
    assert store.get(receipt.locator) == b"foobar"


def test_the_empty_block_is_stored_as_any(store: LocalStore, directory: Path) -> None:
    assert store.put(b"").locator == EMPTY
    assert names(directory) == [EMPTY.md5sum]


def test_a_block_of_the_largest_size_is_stored_and_one_byte_more_is_not(
    store: LocalStore, directory: Path
) -> None:
    block = bytes(MAX_BLOCK_SIZE + 1)

    receipt = store.put(memoryview(block)[:-1])
    with pytest.raises(KeepWriteError, match="67108865"):
        store.put(block)

    assert str(receipt.locator) == f"7f614da9329cd3aebf59b91aadc30bf0+{MAX_BLOCK_SIZE}"
    assert names(directory) == [receipt.locator.md5sum]
    assert len(store.get(receipt.locator)) == MAX_BLOCK_SIZE


def test_putting_a_block_again_renews_its_time_and_writes_nothing(
    store: LocalStore, directory: Path
) -> None:
    store.put(b"foo")
    path = directory / FOO.md5sum
    os.utime(path, (1, 1))
    before = path.stat()

    calls = system_calls(lambda: store.put(b"foo"))

    assert calls == ["fsync", "utime", "fsync"]  # the second one of the directory
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime > before.st_mtime + 1_000_000


@pytest.mark.parametrize("content", [b"fox", b"fo", b"fooo", b""], ids=repr)
def test_putting_a_block_again_repairs_a_corrupt_file(
    store: LocalStore, directory: Path, content: bytes
) -> None:
    store.put(b"foo")
    (directory / FOO.md5sum).write_bytes(content)

    store.put(b"foo")

    assert store.get(FOO) == b"foo"
    assert names(directory) == [FOO.md5sum]


def test_putting_a_block_again_replaces_a_file_that_may_not_be_read(unprivileged: Path) -> None:
    store = LocalStore(unprivileged / "blocks")
    store.put(b"foo")
    (unprivileged / "blocks" / FOO.md5sum).chmod(0)

    store.put(b"foo")

    assert store.get(FOO) == b"foo"


def test_a_failed_put_names_the_block_and_the_directory(
    store: LocalStore, directory: Path
) -> None:
    directory.write_text("a file in the directory's place")

    with pytest.raises(KeepWriteError) as caught:
        store.put(b"foo")

    assert str(FOO) in str(caught.value)
    assert str(directory) in str(caught.value)
    assert "Not a directory" in str(caught.value)
    assert caught.value.cause is Cause.OTHER


def test_reading_where_a_file_is_in_the_directorys_place_is_an_error(
    store: LocalStore, directory: Path
) -> None:
    directory.write_text("a file in the directory's place")

    for call in (store.get, store.head):
        with pytest.raises(KeepReadError, match="Not a directory"):
            call(FOO)


def test_a_put_into_a_directory_that_may_not_be_written_is_denied(unprivileged: Path) -> None:
    unprivileged.chmod(0o500)

    with pytest.raises(KeepWriteError) as caught:
        LocalStore(unprivileged).put(b"foo")

    assert caught.value.cause is Cause.DENIED
    assert names(unprivileged) == []


def test_a_full_disk_is_reported_and_nothing_is_left_behind(small_disk: Path) -> None:
    store = LocalStore(small_disk)

    with pytest.raises(KeepWriteError, match="No space left") as caught:
        store.put(bytes(100_000))
    left_behind = names(small_disk)
    store.put(b"foo")

    assert caught.value.cause is Cause.FULL
    assert left_behind == []
    assert store.get(FOO) == b"foo"


def test_a_put_that_fails_at_the_rename_leaves_nothing_behind(
    store: LocalStore, directory: Path
) -> None:
    (directory / FOO.md5sum).mkdir(parents=True)

    with pytest.raises(KeepWriteError):
        store.put(b"foo")

    assert names(directory) == [FOO.md5sum]


# --- room ---


def test_free_space_is_that_of_the_file_system(small_disk: Path) -> None:
    store = LocalStore(small_disk)
    before = store.free_space()

    store.put(bytes(16 * 1024))

    assert before == (64 * 1024, 64 * 1024)
    assert store.free_space() == (64 * 1024, 48 * 1024)


def test_free_space_is_known_before_the_directory_is_made(tmp_path: Path) -> None:
    total, free = LocalStore(tmp_path / "not" / "yet").free_space()

    assert 0 < free <= total


# --- crashes ---


def test_a_block_has_its_name_only_once_it_is_on_disk(store: LocalStore, directory: Path) -> None:
    directory.mkdir()

    calls = system_calls(lambda: store.put(b"foo"))

    # The file, then its name, then the directory that holds the name.
    assert calls == ["write", "fsync", "rename", "fsync"]


def test_a_new_directory_is_on_disk_before_the_block_is(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "a" / "b")

    calls = system_calls(lambda: store.put(b"foo"))

    made = calls[: calls.index("write")]
    assert made.count("fsync") == 2
    assert made[-2:] == ["fsync", "fsync"]
    assert calls[len(made) :] == ["write", "fsync", "rename", "fsync"]


WRITER = """
import sys
from keepfs.keep import LocalStore

store = LocalStore(sys.argv[1])
for number in range(100):
    print(store.put(bytes([number]) * 32_000_000).locator, flush=True)
"""


@pytest.mark.parametrize("stored_before", [0, 1, 2, 3])
def test_a_writer_killed_while_it_writes_leaves_whole_blocks_only(
    store: LocalStore, directory: Path, stored_before: int
) -> None:
    directory.mkdir()
    with spawn(WRITER, directory) as writer:
        assert writer.stdout is not None
        confirmed = [writer.stdout.readline().strip() for _ in range(stored_before)]
        wait_until(lambda: len(names(directory)) > stored_before)  # the next has been begun
        writer.kill()

    assert len(set(confirmed)) == stored_before
    assert all(store.head(KeepLocator(locator)) == 32_000_000 for locator in confirmed)
    assert are_whole(directory)


# --- many writers ---

SIXTEEN_WRITERS = """
import sys, threading
from keepfs.keep import LocalStore

def write():
    store = LocalStore(sys.argv[1])
    together.wait()
    for number in range(25):
        store.put(b"%d " % number * 10_000)

together = threading.Barrier(4)
threads = [threading.Thread(target=write) for _ in range(4)]
failures = []
threading.excepthook = failures.append
print("ready", flush=True)
sys.stdin.read()
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*[failure.exc_value for failure in failures])
"""


def test_many_threads_and_processes_store_the_same_blocks_at_once(directory: Path) -> None:
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(spawn(SIXTEEN_WRITERS, directory)) for _ in range(4)]
        for writer in writers:
            assert writer.stdin is not None
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.close()
        said = [writer.stdout.read().strip() for writer in writers if writer.stdout is not None]

    assert said == [""] * 4
    assert [writer.returncode for writer in writers] == [0] * 4
    assert len(names(directory)) == 25
    assert are_whole(directory)
    assert not any(name.endswith(".tmp") for name in names(directory))


def test_a_reader_sees_a_whole_block_or_none_while_it_is_written(
    store: LocalStore, directory: Path
) -> None:
    block = bytes(1 << 20)
    locator = KeepLocator.of_block(block)
    other = LocalStore(directory)

    def write() -> None:
        for _ in range(20):
            store.put(block)
            (directory / locator.md5sum).unlink()

    writer = Running(write)
    found = set()
    while not writer.is_over():
        with contextlib.suppress(NotFoundError):
            found.add(len(other.get(locator)))  # a part of it would be a KeepReadError
    writer.result()

    assert found <= {len(block)}


def test_leftovers_of_a_killed_writer_are_removed_after_a_day(directory: Path) -> None:
    assert remove_leftovers(directory) == 0
    directory.mkdir()
    kept = [FOO.md5sum, f"{FOO.md5sum}.tmp", "keepfs-notes", "keepfs-young.tmp"]
    for name in (*kept, "keepfs-old.tmp"):
        (directory / name).write_bytes(b"f")
    (directory / "keepfs-directory.tmp").mkdir()
    two_days_ago = time.time_ns() - 2 * 24 * 3600 * 10**9
    for name in ("keepfs-directory.tmp", "keepfs-old.tmp", *kept[:3]):
        os.utime(directory / name, ns=(two_days_ago, two_days_ago))

    assert remove_leftovers(directory) == 1
    assert names(directory) == sorted([*kept, "keepfs-directory.tmp"])
