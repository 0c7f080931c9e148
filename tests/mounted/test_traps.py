"""The traps of the FUSE library, each with the test that shows it shut.

Some have a test elsewhere: a client that is killed freezes nobody, and can be
killed while it waits (`test_clients_killed.py`); a stray exception ends no
mount (`tests/fs/test_requests.py`); a failure is no short read, pages and
times of blocks stay (`test_by_id.py`); flush is no close, `O_TRUNC` comes in
open's flags (`test_upload.py`); the process has left its directory
(`test_lifecycle.py`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from tests.keepstore import TEST_TOKEN, Fault, KeepstoreControls, Stage
from tests.mounted.mounts import KeepfsMount

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store() -> Iterator[KeepstoreControls]:
    """One keepstore."""
    with KeepstoreControls() as it:
        yield it
        it.release()


@pytest.fixture
def over(unmounted: KeepfsMount, store: KeepstoreControls) -> Iterator[KeepfsMount]:
    """A mount over it, whose lookups wait long."""
    unmounted.is_local = False
    unmounted.env = {"ARVADOS_KEEP_SERVICES": store.url, "ARVADOS_API_TOKEN": TEST_TOKEN}
    unmounted.options = ("--retries", "0", "--copies", "1", "--lookup-wait", "30")
    unmounted.mount()
    yield unmounted
    store.release()
    unmounted.clean_up()


def test_more_than_a_hundred_waiting_requests_do_not_stop_the_mount(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    """pyfuse3 answers 99 requests at once, if it isn't told otherwise."""
    locators = [store.store_block(bytes([number]) * 1000) for number in range(150)]
    for locator in locators:
        assert (over.by_id / locator).stat().st_size == 1000
    over.unmount()
    over.options = (*over.options, "--lookup", "trust")
    over.mount()
    store.always(Fault(hold=Stage.BEFORE_STATUS), method="GET")
    answers: list[bytes] = []
    readers = [
        threading.Thread(target=lambda it=it: answers.append((over.by_id / it).read_bytes()))
        for it in locators
    ]
    for reader in readers:
        reader.start()
    store.wait_held(10)

    (over.upload / "meanwhile").write_bytes(b"not held up")
    assert sorted(os.listdir(over.path)) == ["README", "by_id", "upload"]

    store.always(Fault(), method="GET")
    while any(reader.is_alive() for reader in readers):
        store.release()
        readers[-1].join(0.05)
        for reader in readers:
            reader.join(0.001)
    assert len(answers) == 150


def test_a_client_killed_in_a_lookup_ends_soon(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    """A lookup can't be interrupted; the mount must notice that its caller is dying."""
    locator = store.store_block(b"slow")
    store.always(Fault(hold=Stage.BEFORE_STATUS), method="GET")
    client = subprocess.Popen(["stat", over.by_id / locator], stdout=subprocess.DEVNULL)
    store.wait_held(1)

    client.kill()

    assert client.wait(timeout=10) == -signal.SIGKILL


def test_stat_of_a_known_name_makes_no_request(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    """Attributes and entries never time out, so the kernel answers by itself."""
    locator = store.store_block(b"known")
    assert (over.by_id / locator).stat().st_size == 5
    os.kill(over.pid(), signal.SIGSTOP)
    try:
        for _ in range(100):
            assert (over.by_id / locator).stat().st_size == 5
    finally:
        os.kill(over.pid(), signal.SIGCONT)


def test_writes_are_not_delayed_in_the_kernel(mount: KeepfsMount) -> None:
    """A writeback cache would let close report success before the bytes are known."""
    with (mount.upload / "file").open("wb", buffering=0) as file:
        file.write(b"x")
        assert (mount.upload / "file").stat().st_size == 1
        assert os.getxattr(mount.upload / "file", "user.keep.state") == b"dirty"


def test_operations_without_a_handler_work_or_are_not_supported(mount: KeepfsMount) -> None:
    path = mount.upload / "file"
    path.write_bytes(b"0123456789")
    with path.open("r+b", buffering=0) as file, (mount.upload / "copy").open("wb") as copy:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 10
        assert os.lseek(file.fileno(), 3, os.SEEK_DATA) == 3
        # fallocate(2) is EOPNOTSUPP; the C library writes zeros instead.
        os.posix_fallocate(file.fileno(), 0, 100)
        assert os.fstat(file.fileno()).st_size == 100
        done = subprocess.run(["fallocate", "-l", "200", path], capture_output=True, check=False)
        assert b"not supported" in done.stderr
        # The kernel copies by itself.
        assert os.copy_file_range(file.fileno(), copy.fileno(), 10, 0, 0) == 10
    assert (mount.upload / "copy").read_bytes() == b"0123456789"


def test_a_mount_below_a_mount_ends_first(mount: KeepfsMount, tmp_path: Path) -> None:
    """Two processes of ours may serve each other's mount points."""
    inner = KeepfsMount(tmp_path / "inner")
    inner.base.mkdir()
    (mount.upload / "mnt").mkdir()
    (inner.base / "mnt").symlink_to(mount.upload / "mnt")
    try:
        inner.mount()
        (inner.upload / "file").write_bytes(b"inside")
        assert (mount.upload / "mnt" / "upload" / "file").read_bytes() == b"inside"
        assert mount.unmount().returncode == 1
        assert inner.unmount().returncode == 0
    finally:
        inner.clean_up()
