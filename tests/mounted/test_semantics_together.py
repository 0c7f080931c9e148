"""SEMANTICS.md, what happens at once: readers and writers of one file, and stores under way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tests.keepstore import TEST_TOKEN, Fault, KeepstoreControls, Stage
from tests.mounted.mounts import PATIENCE, KeepfsMount, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.mounted.places import Places


@pytest.fixture
def store() -> Iterator[KeepstoreControls]:
    """One keepstore, which holds its answers to PUT until it is told to release them."""
    with KeepstoreControls() as it:
        it.always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")
        yield it
        it.heal()


@pytest.fixture
def over(unmounted: KeepfsMount, store: KeepstoreControls) -> Iterator[KeepfsMount]:
    """A mount over it."""
    unmounted.is_local = False
    unmounted.env = {"ARVADOS_KEEP_SERVICES": store.url, "ARVADOS_API_TOKEN": TEST_TOKEN}
    unmounted.options = ("--retries", "0", "--copies", "1")
    unmounted.mount()
    yield unmounted
    store.heal()
    unmounted.clean_up()


def state(path: Path) -> str:
    return os.getxattr(path, "user.keep.state").decode()


def closing(file: int) -> threading.Thread:
    """Begin to close a file that is open."""
    thread = threading.Thread(target=os.close, args=(file,))
    thread.start()
    return thread


def let_go(store: KeepstoreControls, *threads: threading.Thread) -> None:
    """Let all stores succeed, and wait for who waits for them."""
    store.heal()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def opened(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR, 0o640)


def test_a_file_is_read_while_it_is_stored(over: KeepfsMount, store: KeepstoreControls) -> None:
    path = over.upload / "file"
    file = opened(path)
    os.write(file, b"on its way")
    waiting = closing(file)
    store.wait_held(1)

    assert state(path) == "storing"
    assert path.read_bytes() == b"on its way"
    with pytest.raises(OSError, match="No data"):
        over.locator(path)

    let_go(store, waiting)
    assert state(path) == "stored"


def test_a_file_is_written_while_it_is_stored(over: KeepfsMount, store: KeepstoreControls) -> None:
    path = over.upload / "file"
    one, two = opened(path), opened(path)
    os.write(one, b"before")
    waiting = closing(one)
    store.wait_held(1)
    os.pwrite(two, b"AFTER!", 0)

    let_go(store, waiting)

    assert path.read_bytes() == b"AFTER!"
    os.close(two)
    assert (over.by_id / over.locator(path)).read_bytes() == b"AFTER!"


def test_a_file_is_cut_while_it_is_stored(over: KeepfsMount, store: KeepstoreControls) -> None:
    path = over.upload / "file"
    file = opened(path)
    os.write(file, b"long text")
    waiting = closing(file)
    store.wait_held(1)
    cutting = threading.Thread(target=os.truncate, args=(path, 4))
    cutting.start()
    wait_until(lambda: path.stat().st_size == 4)

    let_go(store, waiting, cutting)

    wait_until(lambda: state(path) == "stored")
    assert (over.by_id / over.locator(path)).read_bytes() == b"long"


def test_names_and_attributes_change_while_a_file_is_stored(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    path = over.upload / "file"
    file = opened(path)
    os.write(file, b"on its way")
    waiting = closing(file)
    store.wait_held(1)
    (over.upload / "folder").mkdir()
    path.chmod(0o600)
    os.utime(path, ns=(1, 2))
    path.rename(over.upload / "folder" / "moved")
    (over.upload / "folder").rename(over.upload / "renamed")

    let_go(store, waiting)

    moved = over.upload / "renamed" / "moved"
    over.unmount()
    over.mount()
    assert moved.read_bytes() == b"on its way"
    assert (moved.stat().st_mode & 0o777, moved.stat().st_mtime_ns) == (0o600, 2)
    assert os.listdir(over.upload) == ["renamed"]


def test_a_file_is_replaced_while_the_one_before_is_stored(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    old, new = over.upload / "old", over.upload / "new"
    file, other = opened(old), opened(new)
    os.write(file, b"old")
    os.write(other, b"new")
    waiting = closing(file)
    store.wait_held(1)
    new.rename(old)

    closing_too = closing(other)
    store.wait_held(2)
    let_go(store, waiting, closing_too)

    over.unmount()
    over.mount()
    assert os.listdir(over.upload) == ["old"]
    assert old.read_bytes() == b"new"


def test_a_file_unlinked_while_it_is_open_is_not_stored(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    file = opened(over.upload / "file")
    os.write(file, b"unwanted")
    (over.upload / "file").unlink()

    os.fsync(file)
    os.close(file)

    assert store.counts().get("PUT", 0) == 0


def test_an_unmount_waits_for_stores_in_progress(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    path = over.upload / "file"
    # Its client is killed, so nothing holds the mount busy but the store.
    script = "import os, sys; file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n"
    script += "os.write(file, b'on its way'); os.close(file)"
    client = subprocess.Popen([sys.executable, "-c", script, path])
    store.wait_held(1)
    client.kill()
    client.wait(PATIENCE)
    ended: list[int] = []
    unmounting = threading.Thread(target=lambda: ended.append(over.unmount().returncode))
    unmounting.start()

    let_go(store, unmounting)

    assert ended == [0]
    over.mount()
    assert path.read_bytes() == b"on its way"


def test_lines_appended_by_several_processes_are_all_there(places: Places) -> None:
    script = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(100):
    os.write(file, f"{sys.argv[2]} {number}\\n".encode())
os.close(file)
"""

    def append(at: Path) -> object:
        (at / "log").touch()
        writers = [
            subprocess.Popen([sys.executable, "-c", script, at / "log", str(number)])
            for number in range(3)
        ]
        assert [writer.wait(PATIENCE) for writer in writers] == [0, 0, 0]
        return sorted((at / "log").read_text().splitlines())

    assert places.both(append) == sorted(f"{w} {n}" for w in range(3) for n in range(100))


def test_a_reader_sees_a_file_cut_and_replaced_as_on_a_disk(places: Places) -> None:
    def cut(at: Path) -> object:
        with (at / "file").open("rb", buffering=0) as reader:
            first = reader.read(4)
            (at / "file").write_bytes(b"ab")
            return first, reader.read(4), os.pread(reader.fileno(), 10, 0)

    def replaced(at: Path) -> object:
        with (at / "file").open("rb", buffering=0) as reader:
            (at / "new").write_bytes(b"the new")
            (at / "new").rename(at / "file")
            return reader.read(), (at / "file").read_bytes()

    assert places.both(cut) == (b"0123", b"", b"ab")
    assert places.both(replaced) == (b"0123456789", b"the new")


def test_a_writer_continues_under_the_new_name(places: Places) -> None:
    def rename(at: Path) -> bytes:
        with (at / "file").open("r+b", buffering=0) as writer:
            writer.write(b"ab")
            (at / "file").rename(at / "full" / "moved")
            writer.write(b"cd")
        return (at / "full" / "moved").read_bytes()

    assert places.both(rename) == b"abcd456789"


def test_of_two_exclusive_creates_one_succeeds(places: Places) -> None:
    def race(at: Path) -> object:
        made: list[bool] = []

        def make() -> None:
            try:
                os.close(os.open(at / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                made.append(True)
            except FileExistsError:
                made.append(False)

        makers = [threading.Thread(target=make) for _ in range(8)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join(PATIENCE)
        return sorted(made)

    assert places.both(race) == [False] * 7 + [True]


def test_a_removed_files_block_stays_in_a_local_store(shared: KeepfsMount, places: Places) -> None:
    path = places.fresh() / "new"
    path.write_bytes(b"still by_id")
    block = shared.by_id / shared.locator(path)

    path.unlink()

    assert block.read_bytes() == b"still by_id"


def test_writing_the_same_bytes_again_renews_their_block(
    shared: KeepfsMount, places: Places
) -> None:
    path = places.fresh() / "new"
    path.write_bytes(b"to be renewed")
    block = shared.store / shared.locator(path).partition("+")[0]
    os.utime(block, (1, 1))
    path.read_bytes()
    path.chmod(0o600)
    assert block.stat().st_mtime == 1

    path.write_bytes(b"to be renewed")

    assert block.stat().st_mtime > 1


def test_the_readme_says_how_long_blocks_are_kept(shared: KeepfsMount, over: KeepfsMount) -> None:
    local, remote = (" ".join((it.path / "README").read_text().split()) for it in (shared, over))

    assert "the blocks are stored again before the cluster removes them" in remote
    assert "garbage" not in local
    assert "nothing removes them" in local


def test_a_failed_store_leaves_the_file_usable(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    path = over.upload / "file"
    store.go_down()
    file = opened(path)
    os.write(file, b"precious")
    steps: list[Callable[[], object]] = [lambda: os.fsync(file), lambda: os.close(os.dup(file))]
    for step in steps:
        with pytest.raises(OSError, match="Errno"):
            step()
    os.write(file, b" bytes")

    assert path.read_bytes() == b"precious bytes"
    path.rename(over.upload / "moved")
    with pytest.raises(OSError, match="Errno"):
        os.close(file)
    assert state(over.upload / "moved") == "failed"
