"""Stores that hang, end late or fail unexpectedly, and mounts that end meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keepfs.config.options import MountOptions
from keepfs.fs.upload.unsaved import GRACE
from tests.keepstore import TEST_TOKEN, Fault, KeepstoreControls, Stage
from tests.messages.provoking import assert_shows
from tests.mounted.mounts import KeepfsMount, is_zombie, keepfs, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
#: Seconds in which a process that need not wait for a service must be gone. Generous: the
#: machine may be busy; a hung PUT would take 256 s.
SOON = 30.0


@pytest.fixture
def store() -> Iterator[KeepstoreControls]:
    """One keepstore."""
    with KeepstoreControls() as it:
        yield it
        it.heal()


@pytest.fixture
def over(unmounted: KeepfsMount, store: KeepstoreControls) -> KeepfsMount:
    """A mount over it, to be made by the test."""
    unmounted.is_local = False
    token = unmounted.base / "token"
    token.write_text(TEST_TOKEN)
    unmounted.env = {"ARVADOS_KEEP_SERVICES": store.url}
    unmounted.options = ("--retries", "0", "--copies", "1", "--token-file", str(token))
    return unmounted


def state(path: Path) -> str:
    return os.getxattr(path, "user.keep.state").decode()


def fail(path: Path, content: bytes) -> None:
    """Write a file whose close fails."""
    with pytest.raises(OSError, match="Errno"):
        path.write_bytes(content)


def spilled(mount: KeepfsMount) -> list[bytes]:
    """Return the bytes of all complete spill records."""
    records = (mount.base / "state" / "unsaved").glob("*/about.json")
    return sorted((path.parent / "bytes").read_bytes() for path in records)


def gone_after(mount: KeepfsMount, *signals: signal.Signals) -> float:
    """Send signals, and return the seconds until the process has ended."""
    pid = mount.pid()
    began = time.monotonic()
    for number in signals:
        os.kill(pid, number)
        time.sleep(0.2)  # or the kernel makes one of two
    wait_until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or is_zombie(pid), 120)
    return time.monotonic() - began


def let_the_release_time_out(mount: KeepfsMount, store: KeepstoreControls) -> None:
    """Close two other files, which takes --request-timeout each, for a close has timed out.

    Whatever waits for a store since that close ended has met its own deadline by then.
    """
    for content in (b"another", b"one more"):
        store.script(Fault(hold=Stage.BEFORE_STATUS), method="PUT")
        fail(mount.upload / content.decode(), content)


# --- a store has one owner ---------------------------------------------------------------


def test_a_store_that_ends_after_its_close_timed_out_is_recorded(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.options += ("--request-timeout", "1")
    over.mount()
    store.script(Fault(hold=Stage.BEFORE_STATUS), method="PUT")

    with pytest.raises(OSError, match="Errno") as caught:
        (over.upload / "file").write_bytes(b"late")
    let_the_release_time_out(over, store)
    store.release()

    assert caught.value.errno == errno.ETIMEDOUT
    wait_until(lambda: state(over.upload / "file") == "stored")
    over.kill()
    over.mount()
    assert (over.upload / "file").read_bytes() == b"late"


def test_a_store_that_fails_after_its_close_timed_out_is_listed_and_retried(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.options += ("--request-timeout", "1")
    over.mount()
    store.script(Fault(hold=Stage.BEFORE_READ, status=500), method="PUT")
    fail(over.upload / "file", b"late")
    let_the_release_time_out(over, store)
    store.script(Fault(status=500), method="PUT")

    store.release()

    def listed() -> bytes:
        return keepfs(
            "unsaved", "list", over.path, "--state-dir", over.base / "state", env=over.environment
        ).stdout

    wait_until(lambda: b"file" in listed())
    wait_until(lambda: state(over.upload / "file") == "stored")


@pytest.mark.parametrize("seconds", [10_413_792_000, -20_000_000_000])
def test_a_file_with_any_time_is_stored_and_loaded_again(over: KeepfsMount, seconds: int) -> None:
    over.mount()
    path = over.upload / "file"
    with path.open("wb", buffering=0) as file:
        file.write(b"far away")
        os.utime(file.fileno(), (seconds, seconds))  # 2300, and 1336

    assert state(path) == "stored"
    times = path.stat().st_mtime_ns
    assert times in {2**63 - 1, -(2**63)}
    over.unmount()
    over.mount()
    assert path.read_bytes() == b"far away"
    assert path.stat().st_mtime_ns == times


def test_a_grown_file_with_a_lost_block_has_the_reason(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.options += ("--cache-size", "0")
    over.mount()
    path = over.upload / "file"
    path.write_bytes(b"short")
    store.remove_block(over.locator(path)[:32])

    with pytest.raises(OSError, match="Errno"):
        os.truncate(path, 100)

    assert state(path) == "failed"
    assert b"not found" in os.getxattr(path, "user.keep.error")


def test_a_cut_whose_store_fails_leaves_size_and_bytes_consistent(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.mount()
    path = over.upload / "file"
    content = os.urandom(200_000)
    path.write_bytes(content)
    assert path.read_bytes() == content  # the kernel has its pages now
    store.configure_volume(capacity=0)

    with pytest.raises(OSError, match="Errno") as caught:
        os.truncate(path, 162_820)

    assert caught.value.errno == errno.ENOSPC

    def read() -> bytes:  # without a stat before it, which would have the kernel ask anew
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.read(descriptor, MIB)  # beyond the size that the kernel had
        finally:
            os.close(descriptor)

    assert read() == content[:162_820]
    assert path.stat().st_size == 162_820
    store.configure_volume(capacity=None)
    keepfs("unsaved", "retry", over.path, env=over.environment)
    wait_until(lambda: state(path) == "stored")


def test_a_failed_close_hidden_by_a_shell_is_reported_by_sync_and_log(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.mount()
    store.go_down()

    def run(script: str) -> int:
        return subprocess.run(["sh", "-c", script], check=False, stderr=subprocess.PIPE).returncode

    codes = [run(f"echo x > '{over.upload}/file'"), run(f"printf x > '{over.upload}/other'")]
    told = run(f"sync '{over.upload}/file'")

    assert codes == [0, 0]
    assert told == 1
    assert "flush of upload/file: EHOSTUNREACH" in over.log_file.read_text()


# --- tasks of the mount are supervised -----------------------------------------------------


@pytest.mark.parametrize("how", ["SIGHUP", "refusal"])
def test_a_token_file_with_a_second_line_does_not_end_the_mount(
    over: KeepfsMount, store: KeepstoreControls, how: str
) -> None:
    over.mount()
    token = over.base / "token"
    token.write_text(f"{TEST_TOKEN}\nanother line\n")

    if how == "SIGHUP":
        os.kill(over.pid(), signal.SIGHUP)
    else:
        store.script(Fault(status=401), method="PUT")
        fail(over.upload / "refused", b"refused")

    wait_until(lambda: "can't be used, the old one stays" in over.log_file.read_text())
    (over.upload / "file").write_bytes(b"still here")
    assert "Traceback" not in over.log_file.read_text()


def test_when_the_kernel_aborts_unsaved_files_are_spilled(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.mount()
    store.go_down()
    fail(over.upload / "file", b"precious")
    minor = os.minor(over.path.stat().st_dev)
    pid = over.pid()
    connections = Path("/sys/fs/fuse/connections")
    if not (connections / str(minor)).exists():
        subprocess.run(["mount", "-t", "fusectl", "none", connections], check=True)

    (connections / str(minor) / "abort").write_text("1")

    wait_until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or is_zombie(pid))
    assert spilled(over) == [b"precious"]
    assert "it was aborted" in over.log_file.read_text()
    assert not over.is_mounted()


def test_a_mount_survives_a_lack_of_memory_without_loss(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.mount()
    store.go_down()
    fail(over.upload / "kept", b"precious")
    pid = over.pid()
    # Not RLIMIT_AS: malloc's heaps could grow in the address space that they have reserved.
    data = Path(f"/proc/{pid}/status").read_text().partition("VmData:")[2].split()[0]
    resource.prlimit(pid, resource.RLIMIT_DATA, (int(data) * 1024, resource.RLIM_INFINITY))
    try:
        writers = [
            subprocess.Popen(
                ["dd", "if=/dev/zero", f"of={over.upload}/large {number}", "bs=1M", "count=3"],
                stderr=subprocess.DEVNULL,
            )
            for number in range(3)
        ]
        wait_until(lambda: "requests failed; restarting it" in over.log_file.read_text())
    finally:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(pid, resource.RLIMIT_DATA, unlimited)
    store.come_back()

    for writer in writers:
        writer.wait(60)
    wait_until(lambda: state(over.upload / "kept") == "stored")
    assert (over.upload / "kept").read_bytes() == b"precious"
    assert over.pid() == pid


# --- the drain ends when it says, with everything safe -------------------------------------


def test_a_hung_put_delays_the_end_by_the_drain_timeout_at_most(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.options += ("--drain-timeout", "2", "--request-timeout", "1")
    over.mount()
    store.script(Fault(hold=Stage.BEFORE_STATUS), method="PUT")
    fail(over.upload / "hangs", b"hangs")

    took = gone_after(over, signal.SIGTERM)

    assert took < 2 + GRACE + SOON
    assert spilled(over) == [b"hangs"]


def test_hung_puts_do_not_prevent_other_spills(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.options += ("--drain-timeout", "600", "--request-timeout", "1")
    over.mount()
    store.go_down()
    fail(over.upload / "failed", b"failed")
    store.come_back()
    store.always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")
    contents = [b"hangs %d" % number for number in range(5)]
    for content in contents:
        fail(over.upload / content.decode(), content)
    pid = over.pid()

    os.kill(pid, signal.SIGTERM)

    wait_until(lambda: spilled(over) == [b"failed", *contents])  # while all of them hang
    assert Path(f"/proc/{pid}").exists()
    assert gone_after(over, signal.SIGTERM) < SOON


def test_a_second_signal_ends_a_drain_with_everything_spilled(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.options += ("--drain-timeout", "600", "--request-timeout", "1")
    over.mount()
    store.always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")
    contents = [b"hangs %d" % number for number in range(5)]
    for content in contents:
        fail(over.upload / content.decode(), content)

    took = gone_after(over, signal.SIGTERM, signal.SIGTERM)

    assert took < SOON
    assert spilled(over) == contents


def test_a_half_written_overwrite_is_kept_beside_the_stored_version(over: KeepfsMount) -> None:
    over.mount()
    path = over.upload / "file"
    path.write_bytes(b"the good version")
    with path.open("r+b", buffering=0) as file:
        file.write(b"HALF")
        gone_after(over, signal.SIGTERM)
        with pytest.raises(OSError, match="Errno"):
            file.close()

    assert "its writer had not closed it" in over.log_file.read_text()
    assert_shows(over.log_file.read_text(), "spilled")
    over.mount()

    assert path.read_bytes() == b"the good version"
    assert (over.upload / "file~unsaved").read_bytes() == b"HALFgood version"


def test_a_failed_write_keeps_earlier_bytes_also_past_the_old_end(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    """As on a full disk: the program learns it from write, and what is closed then is stored."""
    over.options += ("--request-timeout", "2", "--drain-timeout", "2", "--staging-size", "256M")
    over.mount()
    path = over.upload / "file"
    path.write_bytes(b"old")
    store.always(Fault(hold=Stage.BEFORE_READ), method="PUT")
    piece = os.urandom(MIB)
    for number in range(2):
        fail(over.upload / f"large{number}", piece * 110)

    written = 0
    with path.open("wb", buffering=0) as file:
        error = None
        while error is None and written < 64 * MIB:
            try:
                written += file.write(piece)
            except OSError as failure:
                error = failure.errno
        with pytest.raises(OSError, match="Errno"):
            file.close()
    over.unmount()
    store.heal()
    over.mount()

    assert error == errno.ETIMEDOUT
    assert 0 < written < 64 * MIB
    wait_until(lambda: state(path) == "stored", 60)
    assert path.read_bytes() == piece * (written // MIB)


def test_the_units_stop_timeout_covers_the_drain() -> None:
    unit = (Path(__file__).parents[2] / "systemd" / "keepfs@.service").read_text()
    (line,) = [line for line in unit.splitlines() if line.startswith("TimeoutStopSec=")]
    default = MountOptions.__dataclass_fields__["drain_timeout"].default
    assert isinstance(default, float)

    assert int(line.partition("=")[2]) >= default + GRACE


# --- one bad thing never blocks the others ---------------------------------------------------


def test_a_failing_file_does_not_prevent_other_retries(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.mount()
    store.go_down()
    fail(over.upload / "bad", b"bad")
    fail(over.upload / "good", b"good")
    store.come_back()
    store.always(Fault(status=500), method="PUT", target="bae60998ffe4923b131e3d6e4c19993e")

    keepfs("unsaved", "retry", over.path, env=over.environment)

    wait_until(lambda: state(over.upload / "good") == "stored")
    wait_until(lambda: state(over.upload / "bad") == "failed")


def test_stalled_stores_delay_no_sync_of_what_is_stored(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.options += ("--request-timeout", "600")
    over.mount()
    path = over.upload / "stored"
    path.write_bytes(b"stored")
    store.always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")
    children = []
    for number in range(5):
        child = os.fork()
        if child == 0:
            try:
                (over.upload / f"hangs {number}").write_bytes(b"hangs %d" % number)
            finally:
                os._exit(0)
        children.append(child)
    store.wait_under_way(4, "PUT")
    try:
        began = time.monotonic()
        for each in (path, over.upload):
            descriptor = os.open(each, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        assert time.monotonic() - began < SOON
    finally:
        store.heal()
        for child in children:
            os.waitpid(child, 0)


def test_a_damaged_spill_record_does_not_prevent_other_restores(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.mount()
    store.go_down()
    for name in ("one", "two", "three"):
        fail(over.upload / name, name.encode())
    over.unmount()
    first = min((over.base / "state" / "unsaved").iterdir(), key=lambda it: it.stat().st_mtime_ns)
    (first / "about.json").write_text("{")
    store.come_back()

    over.mount()

    assert len(os.listdir(over.upload)) == 2
    assert "not a usable spill record" in over.log_file.read_text()
    assert (first / "about.json").exists()


def test_an_unsaved_file_renamed_over_a_stored_one_has_its_new_bytes_at_the_next_mount(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.mount()
    (over.upload / "b").write_bytes(b"old")
    store.go_down()
    fail(over.upload / "a", b"new")
    (over.upload / "a").rename(over.upload / "b")
    over.unmount()
    store.come_back()

    over.mount()

    assert os.listdir(over.upload) == ["b"]
    assert (over.upload / "b").read_bytes() == b"new"
    wait_until(lambda: state(over.upload / "b") == "stored")


def test_a_record_of_a_file_stored_before_a_crash_is_not_restored(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.mount()
    store.go_down()
    fail(over.upload / "file", b"content")
    over.unmount()
    records = over.base / "state" / "unsaved"
    shutil.copytree(records, over.base / "kept")
    store.come_back()
    over.mount()
    wait_until(lambda: state(over.upload / "file") == "stored")
    wait_until(lambda: not list(records.iterdir()))
    over.kill()
    shutil.copytree(over.base / "kept", records, dirs_exist_ok=True)  # as if it came too early

    over.mount()

    assert os.listdir(over.upload) == ["file"]
    assert over.unmount().returncode == 0


def test_a_full_state_disk_leaves_no_temporary_files(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.mount()
    state_dir = over.base / "state"
    store.go_down()
    fail(over.upload / "first", b"first")
    os.chmod(state_dir, 0o700)
    for number in range(50):
        fail(over.upload / f"{number}", b"x")

    journal = state_dir / "unsaved.jsonl"  # it is written beside the requests
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 51)
    assert len(os.listdir(state_dir)) < 10


def test_a_full_state_disk_is_enospc_and_nothing_is_lost(unmounted: KeepfsMount) -> None:
    if os.geteuid():
        pytest.skip("only root can mount a file system to fill")
    state_dir = unmounted.base / "state"
    state_dir.mkdir(mode=0o700)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", state_dir], check=True
    )
    try:
        unmounted.mount()
        (unmounted.upload / "before").write_bytes(b"before")
        filling = state_dir / "filling"
        with filling.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

        def make_more() -> None:
            for number in range(10_000):
                (unmounted.upload / f"{number:0200}").mkdir()

        with pytest.raises(OSError, match="No space") as failure:
            make_more()
        assert failure.value.errno == errno.ENOSPC
        with pytest.raises(OSError, match="No space"):
            (unmounted.upload / "file").write_bytes(b"content")
        assert state(unmounted.upload / "file") == "failed"
        assert b"its disk is full" in os.getxattr(unmounted.upload / "file", "user.keep.error")

        filling.unlink()

        wait_until(lambda: state(unmounted.upload / "file") == "stored")
        assert (unmounted.upload / "before").read_bytes() == b"before"
        done = unmounted.unmount()
        assert (done.returncode, done.stderr) == (0, b"")
    finally:
        unmounted.clean_up()
        subprocess.run(["umount", "-l", state_dir], check=True)


def test_the_log_names_the_file_whose_close_fails(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.mount()
    (over.upload / "folder").mkdir()
    store.go_down()

    fail(over.upload / "folder" / "file", b"content")

    assert any(" flush of upload/folder/file: E" in line for line in over.logged())
    store.come_back()
    wait_until(lambda: state(over.upload / "folder" / "file") == "stored")


def test_the_log_names_the_file_whose_read_fails(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    over.mount()
    (over.upload / "file").write_bytes(b"content")
    assert over.unmount().returncode == 0
    store.remove_block("9a0364b9e99bb480dd25e1f0284c8555")
    over.mount()

    with pytest.raises(OSError, match="Errno"):
        (over.upload / "file").read_bytes()

    assert any(" read of upload/file: E" in line for line in over.logged())
