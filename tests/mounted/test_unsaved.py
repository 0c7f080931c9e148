"""A store that fails loses nothing: files wait, are tried again, put aside and taken up."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import pytest

from keepfs.fs.upload.staging import SLOT_OVERHEAD
from tests.keepstore import TEST_TOKEN, KeepstoreControls
from tests.mounted.mounts import KeepfsMount, keepfs, wait_until
from tests.soak.outage import soak

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store() -> Iterator[KeepstoreControls]:
    """One keepstore."""
    with KeepstoreControls() as it:
        yield it


@pytest.fixture
def over(unmounted: KeepfsMount, store: KeepstoreControls) -> Iterator[KeepfsMount]:
    """A mount over it, which doesn't try for long."""
    unmounted.is_local = False
    unmounted.env = {"ARVADOS_KEEP_SERVICES": store.url, "ARVADOS_API_TOKEN": TEST_TOKEN}
    unmounted.options = ("--retries", "0", "--copies", "1")
    unmounted.mount()
    yield unmounted
    unmounted.clean_up()


def state(path: Path) -> str:
    return os.getxattr(path, "user.keep.state").decode()


def unsaved(mount: KeepfsMount, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run `keepfs unsaved` for a mount."""
    name, *rest = words
    state_dir = [] if name == "retry" else ["--state-dir", str(mount.base / "state")]
    return keepfs("unsaved", name, str(mount.path), *rest, *state_dir, env=mount.environment)


def fail(path: Path, content: bytes) -> None:
    """Write a file whose close fails."""
    with pytest.raises(OSError, match="Errno"):
        path.write_bytes(content)


def test_a_failed_store_is_reported_kept_and_tried_again(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    store.go_down()
    fail(over.upload / "file", b"precious")
    assert state(over.upload / "file") == "failed"
    assert b"failed to write" in os.getxattr(over.upload / "file", "user.keep.error")
    assert (over.upload / "file").read_bytes() == b"precious"
    listed = unsaved(over, "list").stdout.decode()
    assert "file\t" in listed
    assert "failed to write" in listed

    store.come_back()
    assert unsaved(over, "retry").returncode == 0

    wait_until(lambda: state(over.upload / "file") == "stored")
    assert (over.by_id / over.locator(over.upload / "file")).read_bytes() == b"precious"
    wait_until(lambda: unsaved(over, "list").stdout == b"")


def test_a_failed_store_is_retried_automatically(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    store.go_down()
    fail(over.upload / "file", b"precious")
    store.come_back()

    wait_until(lambda: state(over.upload / "file") == "stored")


@pytest.mark.parametrize("end", ["unmount", "SIGTERM"])
def test_unsaved_files_are_spilled_and_restored(
    over: KeepfsMount, store: KeepstoreControls, end: str
) -> None:
    content = os.urandom(100_000)
    (over.upload / "folder").mkdir()
    (over.upload / "folder" / "old").write_bytes(b"the version before")
    store.go_down()
    fail(over.upload / "folder" / "new", content)
    fail(over.upload / "folder" / "old", b"the version after")
    (over.upload / "folder" / "new").chmod(0o640)
    os.utime(over.upload / "folder" / "new", ns=(1, 2_000_000_000))
    if end == "unmount":
        done = over.unmount()
        assert done.returncode == 1
        assert b"2 of its files could not be stored" in done.stderr
    else:
        over.kill(signal.SIGTERM)
    aside = over.base / "state" / "unsaved"
    assert len(list(aside.iterdir())) == 2
    assert all(path.stat().st_mode & 0o77 == 0 for path in aside.rglob("*"))
    listed = unsaved(over, "list").stdout.decode().splitlines()
    assert sorted(line.split("\t")[2] for line in listed) == ["folder/new", "folder/old"]

    store.come_back()
    over.mount()

    for name, expected in (("new", content), ("old", b"the version after")):
        path = over.upload / "folder" / name
        assert path.read_bytes() == expected
        wait_until(lambda path=path: state(path) == "stored")
        assert (over.by_id / over.locator(path)).read_bytes() == expected
    status = (over.upload / "folder" / "new").stat()
    assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o640, 2_000_000_000)
    wait_until(lambda: list(aside.iterdir()) == [])


def test_a_name_with_another_version_meanwhile_keeps_both(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    store.go_down()
    fail(over.upload / "file", b"unsaved")
    over.unmount()
    aside = over.base / "state" / "unsaved"
    hidden = over.base / "hidden"
    aside.rename(hidden)
    store.come_back()
    over.mount()
    (over.upload / "file").write_bytes(b"written since")
    over.unmount()
    hidden.rename(aside)

    over.mount()

    assert (over.upload / "file").read_bytes() == b"written since"
    assert (over.upload / "file~unsaved").read_bytes() == b"unsaved"


def test_small_files_that_fail_count_with_the_memory_that_each_takes(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.unmount()
    over.options += ("--staging-size", "128K")
    over.mount()
    store.go_down()

    held = 0
    for number in range(40):  # some 200 bytes of content, and 6 KiB each beside it
        file = os.open(over.upload / f"{number}", os.O_CREAT | os.O_WRONLY)
        with contextlib.suppress(OSError):
            held += os.write(file, b"small") == 5
        with contextlib.suppress(OSError):
            os.close(file)

    assert 15 < held <= 128 * 1024 // SLOT_OVERHEAD


def test_spilled_files_can_be_exported_and_dropped(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    store.go_down()
    fail(over.upload / "file", b"export me")
    over.unmount()
    name = unsaved(over, "list").stdout.decode().partition("\t")[0]

    out = over.base / "out"
    assert unsaved(over, "export", name, str(out)).returncode == 0
    assert out.read_bytes() == b"export me"
    # A wrong name doesn't keep the others from being dropped.
    dropped = unsaved(over, "drop", "none", name)
    assert dropped.returncode == 1
    assert b"there is no unsaved file none" in dropped.stderr
    assert unsaved(over, "list").stdout == b""
    done = unsaved(over, "retry")
    assert done.returncode == 1
    assert b"isn't mounted" in done.stderr


def test_damaged_bytes_are_not_restored(over: KeepfsMount, store: KeepstoreControls) -> None:
    store.go_down()
    fail(over.upload / "file", b"to be damaged")
    over.unmount()
    (path,) = (over.base / "state" / "unsaved").glob("*/bytes")
    path.write_bytes(b"TO be damaged")
    store.come_back()

    over.mount()

    assert os.listdir(over.upload) == []
    assert any("stays on the disk" in line for line in over.logged())
    assert path.exists()


def test_a_removed_unsaved_file_is_not_reported(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    store.go_down()
    fail(over.upload / "file", b"unwanted")
    (over.upload / "file").unlink()

    done = over.unmount()

    assert done.returncode == 0
    assert not (over.base / "state" / "unsaved").exists()


def test_a_catalog_belongs_to_one_mount_and_one_store(unmounted: KeepfsMount) -> None:
    unmounted.mount()
    (unmounted.upload / "file").touch()
    other = KeepfsMount(unmounted.base / "other", env=unmounted.env)
    other.path.mkdir(parents=True)
    other.options = ("--state-dir", str(unmounted.base / "state"))

    refused = other.try_mount()
    assert refused.returncode == 1
    assert b"another mount uses the catalog" in refused.stderr
    unmounted.unmount()

    refused = other.try_mount()
    assert refused.returncode == 1
    assert b"is of blocks in local:" in refused.stderr
    assert not other.is_mounted()


def test_a_remount_shows_the_same_tree(unmounted: KeepfsMount) -> None:
    unmounted.mount()
    here = unmounted.upload
    here.chmod(0o711)
    (here / "a" / "b").mkdir(parents=True)
    (here / "a" / "file").write_bytes(os.urandom(1000))
    (here / "a" / "file").chmod(0o4750)
    os.utime(here / "a" / "file", ns=(3, 5))
    (here / "a" / "empty").touch()
    (here / "a" / "link").symlink_to("file")
    (here / "a" / os.fsdecode(b"\xff name")).write_bytes(b"odd")
    (here / "gone").write_bytes(b"x")
    (here / "gone").unlink()
    (here / "new").write_bytes(b"over")
    (here / "new").rename(here / "a" / "b" / "moved")
    os.utime(here / "a" / "b", ns=(7, 9))
    locator = unmounted.locator(here / "a" / "file")

    def described() -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for path in [here, *sorted(here.rglob("*"))]:
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
        return found

    before = described()
    unmounted.unmount()
    unmounted.mount()

    assert described() == before
    assert os.readlink(here / "a" / "link") == "file"
    assert unmounted.locator(here / "a" / "file") == locator
    assert state(here / "a" / "file") == "stored"
    with (here / "a" / "file").open("ab") as file:
        file.write(b"more")
    assert (here / "a" / "file").stat().st_size == 1004


def test_a_crash_leaves_the_old_version_or_the_new(unmounted: KeepfsMount) -> None:
    unmounted.mount()
    (unmounted.upload / "file").write_bytes(b"the old version")
    (unmounted.upload / "replaced").write_bytes(b"the old version")
    with (
        (unmounted.upload / "file").open("wb", buffering=0) as file,
        (unmounted.upload / "temporary").open("wb", buffering=0) as temporary,
    ):
        file.write(b"half of the new")
        temporary.write(b"half of the new")
        (unmounted.upload / "temporary").rename(unmounted.upload / "replaced")
        unmounted.kill()
        for each in (file, temporary):
            with pytest.raises(OSError, match="Errno"):
                each.close()

    unmounted.mount()

    assert sorted(os.listdir(unmounted.upload)) == ["file", "replaced"]
    assert (unmounted.upload / "file").read_bytes() == b"the old version"
    assert (unmounted.upload / "replaced").read_bytes() == b"the old version"


def test_fsynced_bytes_survive_while_the_file_is_written(
    unmounted: KeepfsMount,
) -> None:
    unmounted.mount()
    with (unmounted.upload / "file").open("wb", buffering=0) as file:
        file.write(b"synced")
        os.fsync(file.fileno())
        file.write(b", and not")
        unmounted.kill()
        with pytest.raises(OSError, match="Errno"):
            file.close()

    unmounted.mount()

    assert (unmounted.upload / "file").read_bytes() == b"synced"


def test_services_that_fail_and_recover_get_everything(tmp_path: Path) -> None:
    outcome = soak(tmp_path, seconds=0.5, files=30)

    assert outcome.failed > 0
