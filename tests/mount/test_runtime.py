"""Which mounts run, and that one process serves each."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

from keepfs.mount import runtime
from keepfs.mount.runtime import AlreadyServedError, RunningMount
from tests.fakes.threads import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]

SERVER = """
import sys
import tempfile
from pathlib import Path
from keepfs.mount import runtime
with runtime.claim(Path(sys.argv[1]), Path("/a/log")) as claim:
    claim.write(int(sys.argv[2]))
    print("serving", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def another_process_serving(path: Path, device: int = 7) -> Iterator[subprocess.Popen[bytes]]:
    """Let another process have a mount point; it ends when its standard input does."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(path), str(device)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"serving\n"
        try:
            yield process
        finally:
            process.kill()


def ended_process() -> int:
    """Return the id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def run_file_of(path: Path) -> Path:
    """Return the one file that appears when a mount point is claimed."""
    before = set(runtime.runtime_directory().iterdir())
    with runtime.claim(path, None):
        (found,) = {each for each in runtime.runtime_directory().iterdir() if path_in(each, path)}
    assert found not in before
    return found


def named(mounts: list[RunningMount], path: Path) -> RunningMount | None:
    return next((it for it in mounts if it.mountpoint == str(path)), None)


def path_in(file: Path, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return f'"{path}"' in file.read_text()
    return False


def test_a_claimed_mount_point_is_found_with_its_process(tmp_path: Path) -> None:
    with runtime.claim(tmp_path, None) as claim:
        at_first = runtime.find(tmp_path)
        claim.write(123)
        later = runtime.find(tmp_path)

    assert at_first == RunningMount(str(tmp_path), os.getpid(), 0, "")
    assert later == RunningMount(str(tmp_path), os.getpid(), 123, "")
    assert runtime.find(tmp_path) is None


@pytest.mark.parametrize(
    ("device", "said"),
    [(0, "is being mounted by process {}"), (-1, "is being unmounted by process {}")],
)
def test_a_mount_that_is_not_there_yet_or_any_more_is_named_so(
    tmp_path: Path, device: int, said: str
) -> None:
    with runtime.claim(tmp_path, None) as claim:
        claim.write(device)
        with (
            pytest.raises(AlreadyServedError, match=said.format(os.getpid())),
            runtime.claim(tmp_path, None),
        ):
            pass


def test_a_new_run_file_text_replaces_the_old_one(tmp_path: Path) -> None:
    with runtime.claim(tmp_path, None) as claim:
        claim.write(1234567890)
        claim.write(1)

        found = runtime.find(tmp_path)

    assert found is not None
    assert found.device == 1


def test_a_device_is_found_by_its_number_until_it_is_unmounted(tmp_path: Path) -> None:
    number = 2**20 - 1  # the largest of a minor device
    with runtime.claim(tmp_path, None) as claim:
        at_first = runtime.find_device("0:0")
        claim.write(number)
        mounted = runtime.find_device(f"0:{number}")
        claim.write(runtime.NO_DEVICE)

        assert at_first is None
        assert mounted == RunningMount(str(tmp_path), os.getpid(), number, "")
        assert runtime.find_device(f"0:{number}") is None
        assert runtime.find_device("0:-1") is None
        assert runtime.find(tmp_path) is not None


def test_a_mount_point_is_served_once(tmp_path: Path) -> None:
    with another_process_serving(tmp_path) as other:
        with (
            pytest.raises(AlreadyServedError, match=f"already mounted, by process {other.pid}"),
            runtime.claim(tmp_path, None),
        ):
            pass

        assert runtime.find(tmp_path) == RunningMount(str(tmp_path), other.pid, 7, "/a/log")
        with runtime.claim(tmp_path / "another", None):
            pass


def test_a_killed_process_leaves_its_mount_point_free(tmp_path: Path) -> None:
    with another_process_serving(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()

        assert runtime.find(tmp_path) is None
        with runtime.claim(tmp_path, None):
            assert runtime.find(tmp_path) is not None


def test_a_run_file_that_is_being_removed_is_no_running_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with another_process_serving(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
    file = runtime.control_socket(tmp_path).with_suffix(".json")
    looks: list[Callable[[], RunningMount | None]] = [
        lambda: runtime.find(tmp_path),
        lambda: named(runtime.find_all(), tmp_path),
    ]
    for look in looks:
        with file.open("rb") as removing:

            def end_the_removal(_: float, removing: BinaryIO = removing) -> None:
                fcntl.flock(removing, fcntl.LOCK_UN)

            fcntl.flock(removing, fcntl.LOCK_EX)
            monkeypatch.setattr(time, "sleep", end_the_removal)
            assert look() is None
            fcntl.flock(removing, fcntl.LOCK_EX)
            monkeypatch.setattr(time, "sleep", lambda _: None)
            # A lock that stays is that of a running mount, perhaps in a container.
            assert look() == RunningMount(str(tmp_path), other.pid, 7, "/a/log")
    file.unlink()


def test_the_next_claim_removes_the_files_of_a_killed_process(tmp_path: Path) -> None:
    killed, next_one = tmp_path / "killed", tmp_path / "next"
    socket = runtime.control_socket(killed)
    with another_process_serving(killed) as other:
        socket.touch()
        other.send_signal(signal.SIGKILL)
        other.wait()

    with runtime.claim(next_one, None):
        assert not socket.exists()
        assert not socket.with_suffix(".json").exists()


def test_waiting_ends_when_the_process_does(tmp_path: Path) -> None:
    with another_process_serving(tmp_path) as other:
        running = RunningMount(str(tmp_path), other.pid, 7, "/a/log")
        waiting = Running(lambda: runtime.wait_until_ended(running))
        was_over = waiting.is_over()
        assert other.stdin is not None
        other.stdin.close()
        waiting.result()

        assert not was_over
        assert runtime.find(tmp_path) is None
        assert other.wait() == 0


def test_waiting_for_an_ended_mount_returns_at_once(tmp_path: Path) -> None:
    assert runtime.wait_until_ended(RunningMount(str(tmp_path), ended_process(), 7, ""), 5.0)


def test_waiting_ends_although_another_process_serves_the_mount_point(tmp_path: Path) -> None:
    former = RunningMount(str(tmp_path), ended_process(), 7, "/a/log")
    with another_process_serving(tmp_path) as other:
        later = RunningMount(str(tmp_path), other.pid, 7, "/a/log")

        assert runtime.wait_until_ended(former, 0.1)
        assert not runtime.is_served_by(former)
        assert not runtime.wait_until_ended(later, 0.1)
        assert runtime.is_served_by(later)


def test_the_end_of_a_claim_removes_its_file(tmp_path: Path) -> None:
    assert not run_file_of(tmp_path).exists()


def test_a_check_does_not_prevent_a_claim(tmp_path: Path) -> None:
    file = run_file_of(tmp_path)
    file.touch()
    with file.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)

        def claim() -> bool:
            with runtime.claim(tmp_path, None):
                return True

        claiming = Running(claim)
        fcntl.flock(looking, fcntl.LOCK_UN)

        assert claiming.result()


def test_an_invalid_run_file_is_ignored(tmp_path: Path) -> None:
    file = run_file_of(tmp_path)
    for content in ("", "{", "[]", "{}", '{"pid": 1}'):
        file.write_text(content)
        with file.open("rb") as holding:
            fcntl.flock(holding, fcntl.LOCK_EX)

            assert runtime.find(tmp_path) is None
            with (
                pytest.raises(AlreadyServedError, match="by another process"),
                runtime.claim(tmp_path, None),
            ):
                pass
    file.unlink()


def test_the_runtime_directory_is_its_owners_alone() -> None:
    directory = runtime.runtime_directory()
    status = directory.stat()

    assert status.st_uid == os.geteuid()
    assert stat.S_IMODE(status.st_mode) & 0o022 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_users_have_runtime_directories_of_their_own() -> None:
    code = (
        "import os\nfrom keepfs.mount import runtime\nos.setuid(12345)\n"
        "try: print(runtime.runtime_directory())\n"
        "except PermissionError as error: print(error)"
    )

    def directory(home: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "XDG_RUNTIME_DIR": home},
        )
        return done.stdout.strip()

    theirs = Path("/tmp/keepfs-12345")  # noqa: S108 - what is tested
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o777)
        try:
            at_home = directory(home)
            elsewhere = directory("relative")
            theirs.rmdir()
            theirs.symlink_to(home)
            seized = directory("")
        finally:
            theirs.unlink(missing_ok=True)

    assert at_home == f"{home}/keepfs"
    assert elsewhere == str(theirs)
    assert seized == f"{theirs} belongs to another user; remove it"


def test_a_run_file_is_whole_after_each_write(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        claim = runtime.Claim(descriptor, tmp_path, "log")
        sizes = set()
        for device in (0, 12345, 7):
            claim.write(device)
            sizes.add(path.stat().st_size)
            assert json.loads(path.read_text())["device"] == device
        assert len(sizes) == 1  # a reader sees one whole text: no write adds or cuts bytes
    finally:
        os.close(descriptor)
