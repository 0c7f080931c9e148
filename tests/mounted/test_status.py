"""keepfs status and unmount --force: of mounts that are well, hang, are stopped or have ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.keepstore import TEST_TOKEN, Fault, KeepstoreControls, Stage
from tests.messages.provoking import assert_shows
from tests.mounted.mounts import PATIENCE, KeepfsMount, is_zombie, keepfs, mounted, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


def status(mount: KeepfsMount, *options: str) -> dict[str, Any]:
    """Return the status of one mount."""
    done = keepfs("status", mount.path, "--json", *options, env=mount.environment)
    (found,) = json.loads(done.stdout)["mounts"]
    assert done.returncode == (1 if found["reason"] else 0)
    return dict(found)


@pytest.fixture
def store() -> Iterator[KeepstoreControls]:
    """One keepstore."""
    with KeepstoreControls() as it:
        yield it
        it.release()


@pytest.fixture
def over(unmounted: KeepfsMount, store: KeepstoreControls) -> Iterator[KeepfsMount]:
    """A mount over it, which doesn't try for long."""
    unmounted.is_local = False
    unmounted.env = {"ARVADOS_KEEP_SERVICES": store.url, "ARVADOS_API_TOKEN": TEST_TOKEN}
    unmounted.options = ("--retries", "0", "--copies", "1", "--metrics", "0")
    unmounted.mount()
    yield unmounted
    store.release()
    unmounted.clean_up()


@contextlib.contextmanager
def reader_that_hangs(over: KeepfsMount, store: KeepstoreControls) -> Iterator[str]:
    """Read a block that the service begins to send, and holds; yield its signed locator."""
    locator = store.store_block(os.urandom(200_000))
    store.always(Fault(hold=Stage.MID_BODY), method="GET")
    with subprocess.Popen(
        ["cat", str(over.by_id / locator)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as reader:
        store.wait_held(1)
        try:
            yield locator
        finally:
            reader.kill()


def has_ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}/cmdline").exists() or is_zombie(pid)


# --- status ------------------------------------------------------------------------


def test_a_working_mount_shows_its_figures(mount: KeepfsMount) -> None:
    (mount.upload / "file").write_bytes(b"hello")
    (mount.upload / "file").read_bytes()
    with pytest.raises(FileNotFoundError):
        (mount.by_id / "no locator").stat()

    found = status(mount)

    figures = found["figures"]
    assert found["state"] == figures["phase"] == "serving"
    assert found["pid"] == figures["process"]["pid"] == mount.pid()
    assert figures["operations"]["create"]["durations"]["count"] == 1
    assert figures["operations"]["lookup"]["errors"]["ENOENT"] >= 1
    assert figures["uploads"]["unsaved"] == 0
    assert figures["retention"]["mode"] == "local"
    (service,) = figures["services"]
    assert service["root"] == f"local:{mount.store}"
    assert service["sent"] == 5
    assert service["answers"]["PUT"]["count"] >= 1
    assert figures["token"] is None


def test_without_a_mount_point_it_lists_all_mounts_of_the_user(
    mount: KeepfsMount, tmp_path: Path
) -> None:
    with mounted(tmp_path / "second") as second:
        done = keepfs("status", env=mount.environment)

        said = os.fsdecode(done.stdout)  # other mounts of this user may have any names
        assert f"{mount.path}: serving\n" in said
        assert f"{second.path}: serving\n" in said
        assert [each for each in said.split("\n\n") if f"{mount.path}: " in each] != []
        assert status(mount)["mountpoint"] == str(mount.path)
        assert status(second)["mountpoint"] == str(second.path)


def test_a_directory_that_is_no_mount_is_an_error(tmp_path: Path) -> None:
    done = keepfs("status", tmp_path)

    assert done.returncode == 1
    assert done.stdout == b""
    assert_shows(done.stderr.decode(), "no-mount-of-user")


def test_watch_prints_it_again(mount: KeepfsMount) -> None:
    with subprocess.Popen(
        # A process of a shell's background ignores SIGINT, and so do its children.
        [
            *("env", "--default-signal=INT", sys.executable, "-m", "keepfs"),
            *("status", str(mount.path), "--json", "--watch", "0.1"),
        ],
        stdout=subprocess.PIPE,
        env=mount.environment,
    ) as watching:
        assert watching.stdout is not None
        ups = [
            json.loads(watching.stdout.readline())["mounts"][0]["figures"]["uptime"]
            for _ in range(3)
        ]
        watching.send_signal(signal.SIGINT)

        assert ups == sorted(set(ups))
        assert watching.wait(PATIENCE) == 130


def test_a_stopped_process_is_reported_without_waiting_for_it(mount: KeepfsMount) -> None:
    os.kill(mount.pid(), signal.SIGSTOP)
    try:
        found = status(mount)
        said = keepfs("status", mount.path, env=mount.environment).stdout.decode()
    finally:
        os.kill(mount.pid(), signal.SIGCONT)

    assert (found["state"], found["figures"]) == ("stopped", None)
    assert f"process {mount.pid()} is stopped; continue it: kill -CONT" in said
    assert status(mount)["state"] == "serving"


def test_a_request_that_hangs_is_shown_with_its_path_and_its_process(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    with reader_that_hangs(over, store) as locator:
        wait_until(lambda: "read" in status(over)["figures"]["requests"])
        found = status(over)
        said = keepfs("status", over.path, env=over.environment).stdout.decode()

    oldest = found["figures"]["requests"]["read"]["oldest"]
    bare = "+".join(locator.split("+")[:2])
    assert oldest["path"] == f"by_id/{bare}"
    assert found["figures"]["oldest"]["age"] > 0
    assert found["kernel_waiting"] >= 1
    assert f"by_id/{bare}" in said
    assert "+A" not in said  # no signature
    assert TEST_TOKEN not in said + json.dumps(found)


def test_files_that_could_not_be_stored_are_shown(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    store.go_down()
    with pytest.raises(OSError, match="Errno"):
        (over.upload / "file").write_bytes(b"precious")

    figures = status(over)["figures"]
    assert figures["uploads"]["unsaved"] == 1
    (failed,) = figures["uploads"]["failed"]
    assert failed["path"] == "upload/file"
    assert "failed to write" in failed["error"]
    (service,) = figures["services"]
    assert service["failures"]["unreachable"] >= 1
    assert service["last_failure"]
    assert figures["token"]["age"] > 0
    assert "1 files UNSAVED" in keepfs("status", over.path, env=over.environment).stdout.decode()
    store.come_back()


def test_a_dead_mount_is_shown_as_dead(mount: KeepfsMount) -> None:
    mount.kill()

    found = status(mount)

    assert (found["state"], found["figures"]) == ("dead", None)
    assert "was killed" in found["reason"]
    assert keepfs("unmount", "--force", mount.path, env=mount.environment).returncode == 0
    assert not mount.is_mounted()


#: keepfs, with a signal that blocks the event loop: the handler runs in its thread.
_WITH_A_LOOP_THAT_CAN_BE_BLOCKED = """
import os, signal, sys, time
def block(*_):
    while not os.path.exists(sys.argv[-1] + ".free"):
        time.sleep(0.05)
signal.signal(signal.SIGRTMIN, block)
from keepfs.cli import main
main()
"""


@pytest.fixture
def blocked(unmounted: KeepfsMount) -> Iterator[subprocess.Popen[bytes]]:
    """A mount in the foreground whose event loop is blocked until the file mnt.free exists."""
    unmounted.path.mkdir()
    words = unmounted.mount_command("--foreground")[3:]
    with subprocess.Popen(
        [sys.executable, "-c", _WITH_A_LOOP_THAT_CAN_BE_BLOCKED, *words],
        env={**unmounted.environment, "WATCHDOG_USEC": "4000000"},
    ) as process:
        wait_until(unmounted.is_mounted)
        # Before that line the mount waits for an answer of its own.
        wait_until(lambda: f"{unmounted.path} answers" in unmounted.log_file.read_text())
        process.send_signal(signal.SIGRTMIN)
        yield process
        (unmounted.base / "mnt.free").touch()
        process.kill()


@pytest.mark.slow
def test_a_blocked_event_loop_is_reported_dumped_and_unmounted_by_force(
    unmounted: KeepfsMount, blocked: subprocess.Popen[bytes]
) -> None:
    wait_until(lambda: status(unmounted)["state"] == "stuck")
    found = status(unmounted)
    assert "the event loop has not run for" in found["reason"]
    assert found["figures"]["cache"]["memory"]["capacity"] == 256 * 2**20
    # Half of the service manager's 4 s.
    wait_until(lambda: "STUCK: the event loop" in unmounted.log_file.read_text())

    done = keepfs("unmount", "--force", unmounted.path, env=unmounted.environment)

    assert done.returncode == 1
    assert f"its process {blocked.pid} still runs".encode() in done.stderr
    assert_shows(done.stderr.decode(), "process-remains")
    assert not unmounted.is_mounted()
    (unmounted.base / "mnt.free").touch()
    assert blocked.wait(PATIENCE) == 0
    log = unmounted.log_file.read_text()
    assert log.count("STUCK: ") == 1
    assert " block" in log  # the function that blocks, in the stack of its thread
    assert "keepfs.mount.watchdog" in log


# --- unmount --force ------------------------------------------------------------------


def test_force_spills_the_files_of_a_stopped_process(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    store.go_down()
    with pytest.raises(OSError, match="Errno"):
        (over.upload / "file").write_bytes(b"precious")
    pid = over.pid()
    os.kill(pid, signal.SIGSTOP)

    done = keepfs("unmount", "--force", over.path, env=over.environment)

    assert done.returncode == 1
    assert b"was stopped, and is continued" in done.stderr
    assert b"1 of its files could not be stored" in done.stderr
    wait_until(lambda: has_ended(pid))
    assert not over.is_mounted()
    store.come_back()
    over.mount()
    wait_until(lambda: os.getxattr(over.upload / "file", "user.keep.state") == b"stored")
    assert (over.upload / "file").read_bytes() == b"precious"


def test_force_ends_requests_that_hang(over: KeepfsMount, store: KeepstoreControls) -> None:
    pid = over.pid()
    with reader_that_hangs(over, store):
        done = keepfs("umount", "--force", over.path, env=over.environment)

        assert (done.returncode, done.stderr) == (0, b"")
        wait_until(lambda: has_ended(pid))
        assert not over.is_mounted()


def test_force_ends_a_busy_mount(mount: KeepfsMount) -> None:
    (mount.upload / "file").write_bytes(b"hello")
    pid = mount.pid()
    held = os.open(mount.upload / "file", os.O_RDONLY)
    try:
        assert mount.unmount().returncode == 1

        done = keepfs("unmount", "--force", mount.path, env=mount.environment)

        assert (done.returncode, done.stderr) == (0, b"")
        wait_until(lambda: has_ended(pid))
        assert not mount.is_mounted()
        with pytest.raises(OSError, match="Errno"):
            os.fstatvfs(held)
    finally:
        with contextlib.suppress(OSError):  # the connection has ended
            os.close(held)


# --- metrics -----------------------------------------------------------------------------


def test_metrics_are_served_on_the_loopback_address(over: KeepfsMount) -> None:
    (over.upload / "file").write_bytes(b"hello")
    url = over.log_file.read_text().partition("metrics: ")[2].split()[0]
    assert url.startswith("http://127.0.0.1:")

    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310 - our own address
        text = answer.read().decode()

    here = f'mountpoint="{over.path}"'
    assert f'keepfs_operations_total{{errno="OK",{here},operation="create"}} 1.0' in text
    assert f"keepfs_unsaved_files{{{here}}} 0.0" in text
    assert 'keepfs_service_answer_seconds_bucket{le="+Inf",method="PUT"' in text
    assert TEST_TOKEN not in text


def test_an_address_in_use_is_refused_in_one_line(over: KeepfsMount, tmp_path: Path) -> None:
    url = over.log_file.read_text().partition("metrics: ")[2].split()[0]
    address = url.removeprefix("http://").partition("/")[0]
    other = KeepfsMount(tmp_path / "other", ("--metrics", address))
    other.path.mkdir(parents=True)

    done = other.try_mount()

    assert done.returncode == 2  # a service is not restarted
    assert f"can't serve metrics on {address}: Address already in use" in done.stderr.decode()
    assert_shows(done.stderr.decode(), "metrics-not-served")
    other.options += ("--foreground",)
    assert other.try_mount().returncode == 2
    assert not other.is_mounted()


def test_metrics_are_written_to_a_file_that_ends_with_the_mount(tmp_path: Path) -> None:
    file = tmp_path / "out" / "keepfs.prom"
    file.parent.mkdir()
    former = os.umask(0o077)  # as in a service
    try:
        mounting = mounted(tmp_path / "base", "--metrics-file", str(file))
        mount = mounting.__enter__()
    finally:
        os.umask(former)
    with contextlib.ExitStack() as stack:
        stack.push(mounting.__exit__)
        assert list(file.parent.iterdir()) == [file]
        assert f'keepfs_info{{mountpoint="{mount.path}",version=' in file.read_text()
        assert file.stat().st_mode & 0o444 == 0o444  # node-exporter is another user

    assert not file.exists()


def test_the_missing_directory_of_a_metrics_file_is_named(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir()
    unmounted.options = ("--metrics-file", str(unmounted.base / "none" / "keepfs.prom"))

    done = unmounted.try_mount()

    assert done.returncode == 2  # a service is not restarted
    assert f"mkdir -p {unmounted.base / 'none'}" in done.stderr.decode()
    assert_shows(done.stderr.decode(), "no-metrics-file")
    assert not unmounted.is_mounted()


def test_a_metrics_file_of_the_wrong_name_is_refused(unmounted: KeepfsMount) -> None:
    unmounted.options = ("--metrics-file", "metrics.txt")

    done = unmounted.try_mount()

    assert done.returncode == 2
    assert b"does not end in .prom" in done.stderr


def test_a_running_event_loop_notifies_the_service_manager(unmounted: KeepfsMount) -> None:

    unmounted.path.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(unmounted.base / "notify"))
        manager.settimeout(PATIENCE)
        unmounted.env = {
            "NOTIFY_SOCKET": str(unmounted.base / "notify"),
            "WATCHDOG_USEC": "2000000",
        }
        with subprocess.Popen(
            unmounted.mount_command("--foreground"), env=unmounted.environment
        ) as process:
            began = time.monotonic()
            while (got := manager.recv(1000)) != b"WATCHDOG=1":
                assert time.monotonic() - began < PATIENCE, got
            assert manager.recv(1000)  # and goes on
            process.terminate()
            assert process.wait(PATIENCE) == 0
