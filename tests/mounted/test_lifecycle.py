"""Mounting, unmounting, and what goes wrong with either."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from keepfs.mount import mountpoint
from keepfs.mount.units import ServicePlan
from tests.messages.provoking import assert_shows
from tests.mounted.mounts import PATIENCE, KeepfsMount, is_zombie, keepfs, mounted, wait_until


def the_one_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return what a failed command said: one line, no traceback, exit code 1."""
    text = done.stderr.decode()
    assert done.returncode == 1, text
    assert done.stdout == b""
    assert text.startswith("Error: ")
    assert text.count("\n") == 1
    return text


def test_the_mount_is_ready_when_the_command_returns(unmounted: KeepfsMount) -> None:
    unmounted.mount()

    assert sorted(os.listdir(unmounted.path)) == ["README", "by_id", "collections", "upload"]


def test_unmounting_waits_until_the_process_has_ended(
    unmounted: KeepfsMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [it for it in os.environ if it.startswith("COVERAGE_")]:
        monkeypatch.delenv(
            name
        )  # coverage is written when keepfs has ended, before the process has
    mount = unmounted
    mount.mount()
    pid = mount.pid()

    done = mount.unmount()

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not mount.is_mounted()
    with pytest.raises(LookupError):
        mount.pid()
    assert not _runs(pid)


def test_stored_files_are_there_after_a_remount(unmounted: KeepfsMount) -> None:
    unmounted.mount()
    (unmounted.upload / "file").write_bytes(b"kept")
    locator = unmounted.locator(unmounted.upload / "file")
    unmounted.unmount()

    unmounted.mount()

    assert (unmounted.by_id / locator).read_bytes() == b"kept"


def test_a_mount_point_that_does_not_exist_is_an_error(unmounted: KeepfsMount) -> None:
    assert "doesn't exist: mkdir -p" in the_one_line(unmounted.try_mount())


def test_a_mount_point_that_is_a_file_is_an_error(unmounted: KeepfsMount) -> None:
    unmounted.path.touch()

    assert "isn't a directory" in the_one_line(unmounted.try_mount())


def test_a_mount_point_with_entries_needs_nonempty(
    unmounted: KeepfsMount,
) -> None:
    unmounted.path.mkdir()
    (unmounted.path / "precious").touch()
    assert "isn't empty" in the_one_line(unmounted.try_mount())
    assert not unmounted.is_mounted()

    unmounted.options = ("-o", "nonempty")
    unmounted.mount()
    assert "precious" not in os.listdir(unmounted.path)


def test_a_second_mount_on_the_directory_is_refused(mount: KeepfsMount) -> None:
    line = the_one_line(mount.try_mount())

    assert f"already mounted, by process {mount.pid()}" in line
    assert (mount.path / "README").exists()


def test_a_service_that_can_not_start_leaves_what_is_mounted(mount: KeepfsMount) -> None:
    unit = ServicePlan((sys.executable, "-m", "keepfs"), mountpoint=mount.path).service()
    environment = {**mount.environment, "KEEPFS_LOCAL_STORE": str(mount.store)}
    codes = {}
    for key in ("ExecStart", "ExecStopPost"):  # what systemd runs then, in this order
        for command in re.findall(rf"^{key}=-?(.*)$", unit, re.MULTILINE):
            words = shlex.split(command.replace("%f", str(mount.path)))
            codes[key] = subprocess.run(words, check=False, env=environment).returncode

    assert codes["ExecStart"] == 1  # already mounted
    assert (mount.path / "README").exists()


def test_a_mount_below_a_symlink_is_found_under_both_names(unmounted: KeepfsMount) -> None:
    unmounted.mount()
    link = unmounted.base / "link"
    link.symlink_to(unmounted.base)

    done = keepfs("unmount", link / "mnt", env=unmounted.environment)

    assert (done.returncode, done.stderr) == (0, b"")
    assert not unmounted.is_mounted()


def test_a_store_that_disappears_fails_at_its_use_and_recovers(unmounted: KeepfsMount) -> None:
    unmounted.mount()
    unmounted.store.rmdir()
    unmounted.store.write_bytes(b"a file where the directory should be")

    with pytest.raises(OSError, match=r"Errno"):
        (unmounted.upload / "file").write_bytes(b"x")
    assert os.getxattr(unmounted.upload / "file", "user.keep.state") == b"failed"
    assert b"can't store" in os.getxattr(unmounted.upload / "file", "user.keep.error")
    assert (unmounted.upload / "file").read_bytes() == b"x"

    unmounted.store.unlink()
    with (unmounted.upload / "file").open("rb") as file:
        os.fsync(file.fileno())
    assert os.getxattr(unmounted.upload / "file", "user.keep.state") == b"stored"


def test_without_a_store_the_error_names_both_kinds(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir()

    done = keepfs("mount", unmounted.path, env=unmounted.environment)

    assert done.returncode == 2
    assert b"--local-store DIR" in done.stderr
    assert b"ARVADOS_API_HOST" in done.stderr


def test_unmounting_an_unmounted_path_is_an_error(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir()

    assert "nothing is mounted" in the_one_line(unmounted.unmount())
    proc = keepfs("unmount", "/proc", env=unmounted.environment)
    assert "isn't a keepfs mount" in the_one_line(proc)


def test_a_busy_mount_stays_and_its_users_are_named(mount: KeepfsMount) -> None:
    (mount.upload / "file").write_bytes(b"x")
    with (mount.upload / "file").open("rb"):
        line = the_one_line(mount.unmount())

    assert "is busy" in line
    assert f"(process {os.getpid()}) uses {mount.upload / 'file'}" in line
    assert (mount.path / "README").exists()


def test_bind_mounts_are_named_and_the_last_to_go_ends_the_process(unmounted: KeepfsMount) -> None:
    if os.geteuid():
        pytest.skip("only root can make bind mounts")
    unmounted.mount()
    (unmounted.upload / "file").write_bytes(b"content")
    pid = unmounted.pid()
    places = [unmounted.base / "one", unmounted.base / "two"]
    for place in places:
        place.mkdir()
        subprocess.run(["mount", "--bind", str(unmounted.upload), str(place)], check=True)
    try:
        for _ in range(2):  # the second time it isn't mounted there any more
            line = the_one_line(unmounted.unmount())
            assert f"because bind mounts are left; run: umount {places[0]} {places[1]}" in line
        assert (places[0] / "file").read_bytes() == b"content"
        for place in places:
            assert Path(f"/proc/{pid}/cmdline").read_bytes()
            done = keepfs("unmount", place, env=unmounted.environment)
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        # It serves no more; where coverage is measured it writes that before it is gone.
        wait_until(lambda: not Path(f"/proc/{pid}").exists() or is_zombie(pid))
    finally:
        for place in places:
            subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def test_a_working_directory_makes_a_mount_busy(mount: KeepfsMount) -> None:
    inside = subprocess.Popen(["sleep", "60"], cwd=mount.upload)
    try:
        assert f"sleep (process {inside.pid})" in the_one_line(mount.unmount())
    finally:
        inside.kill()
        inside.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stores_open_files_and_unmounts(
    unmounted: KeepfsMount, number: signal.Signals
) -> None:
    unmounted.mount()
    with (unmounted.upload / "open").open("wb", buffering=0) as file:
        file.write(b"never closed")
        unmounted.kill(number)
        with pytest.raises(OSError, match=r"Errno"):
            os.fsync(file.fileno())
        with pytest.raises(OSError, match=r"Errno"):
            file.close()

    assert not unmounted.is_mounted()
    assert [path.read_bytes() for path in unmounted.store.iterdir()] == [b"never closed"]


def test_a_killed_process_leaves_a_dead_mount_that_the_next_one_clears(
    unmounted: KeepfsMount,
) -> None:
    unmounted.mount()
    (unmounted.upload / "file").write_bytes(b"safe")
    locator = unmounted.locator(unmounted.upload / "file")
    unmounted.kill()
    assert unmounted.is_mounted()
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.listdir(unmounted.path)

    unmounted.mount()

    assert (unmounted.by_id / locator).read_bytes() == b"safe"
    assert mountpoint.mounts().count(mountpoint.mounted_at(unmounted.path)) == 1  # type: ignore[arg-type]


def test_a_dead_mount_can_be_unmounted(unmounted: KeepfsMount) -> None:
    unmounted.mount()
    unmounted.kill()

    done = unmounted.unmount()

    assert (done.returncode, done.stderr) == (0, b"")
    assert not unmounted.is_mounted()


@pytest.mark.parametrize("how", ["umount", "fusermount3"])
def test_umount_and_fusermount_end_the_process(unmounted: KeepfsMount, how: str) -> None:
    unmounted.mount()
    command = {"umount": ["umount"], "fusermount3": ["fusermount3", "-u"]}[how]
    pid = unmounted.pid()

    subprocess.run([*command, str(unmounted.path)], check=True)

    wait_until(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


@pytest.mark.parametrize("end", ["unmount", "SIGTERM"])
def test_unmounting_under_load_keeps_every_file_whose_close_succeeded(  # noqa: C901 - a story
    unmounted: KeepfsMount, end: str
) -> None:
    unmounted.mount()
    closed: dict[str, bytes] = {}
    enough, end_copying = threading.Event(), threading.Event()

    def copy(worker: int) -> None:
        for number in range(100_000):
            content = f"{worker} {number} ".encode() * 5000
            try:
                (unmounted.upload / f"{worker}-{number}").write_bytes(content)
                locator = unmounted.locator(unmounted.upload / f"{worker}-{number}")
            except OSError:
                return
            closed[locator] = content
            if len(closed) >= 50:
                enough.set()
            if end_copying.is_set():
                return

    workers = [threading.Thread(target=copy, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    assert enough.wait(PATIENCE)

    if end == "SIGTERM":
        unmounted.kill(signal.SIGTERM)
    else:
        with (unmounted.upload / "held").open("wb"):
            assert f"(process {os.getpid()})" in the_one_line(unmounted.unmount())
        end_copying.set()
    for worker in workers:
        worker.join()
    if end == "unmount":
        assert unmounted.unmount().returncode == 0
    assert not unmounted.is_mounted()

    for locator, content in closed.items():
        assert (unmounted.store / locator.partition("+")[0]).read_bytes() == content
    assert [path.name for path in unmounted.store.iterdir() if path.suffix == ".tmp"] == []


def test_in_the_foreground_the_log_is_on_standard_error(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir()
    command = unmounted.mount_command("--foreground")
    del command[command.index("--log-file") : command.index("--log-file") + 2]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=unmounted.environment)
    wait_until(unmounted.is_mounted)
    wait_until((unmounted.path / "README").exists)

    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0
    assert b"INFO keepfs.mount.fuse: mounted on" in log
    assert not unmounted.is_mounted()


def test_in_the_foreground_a_failure_is_one_line_and_a_code(unmounted: KeepfsMount) -> None:
    done = subprocess.run(
        unmounted.mount_command("--foreground"),
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        env=unmounted.environment,
    )

    assert "doesn't exist" in the_one_line(done)


def test_a_failure_in_a_log_on_standard_error_is_not_printed_again(
    unmounted: KeepfsMount,
) -> None:
    command = unmounted.mount_command("--foreground")
    del command[command.index("--log-file") : command.index("--log-file") + 2]

    done = subprocess.run(
        command, stderr=subprocess.PIPE, check=False, env=unmounted.environment, timeout=PATIENCE
    )

    assert done.returncode == 1
    assert b" ERROR keepfs.mount.serve: " in done.stderr
    assert done.stderr.count(b"doesn't exist") == done.stderr.count(b"\n") == 1


def test_a_service_manager_is_notified_of_ready_and_stopping(
    unmounted: KeepfsMount,
) -> None:
    unmounted.path.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(unmounted.base / "notify"))
        manager.settimeout(PATIENCE)
        unmounted.env["NOTIFY_SOCKET"] = str(unmounted.base / "notify")
        process = subprocess.Popen(
            unmounted.mount_command("--foreground"), env=unmounted.environment
        )
        assert manager.recv(1000).startswith(b"READY=1\n")
        assert (unmounted.path / "README").exists()

        process.terminate()
        # 300 s for storing, 25 to close the client and spill.
        assert manager.recv(1000) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=325000000"
        assert process.wait(PATIENCE) == 0


def test_options_as_fstab_writes_them(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir()
    unmounted.options = ("-o", "ro,uid=12345,cache-size=64M,noauto,x-systemd.automount")

    unmounted.mount()

    assert unmounted.path.stat().st_uid == 12345
    with pytest.raises(OSError, match="Read-only"):
        (unmounted.upload / "x").touch()
    unmounted.unmount()
    unmounted.options = ("-o", "colour=blue")
    done = unmounted.try_mount()
    assert done.returncode == 2
    assert b"unknown option: -o colour" in done.stderr


def test_the_mounts_log_is_in_the_state_directory(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir()
    command = unmounted.mount_command()
    del command[command.index("--log-file") : command.index("--log-file") + 2]

    subprocess.run(command, check=True, env=unmounted.environment)

    log = unmounted.base / "state" / "log"
    assert re.search("INFO keepfs.mount.serve: the mount on .* answers", log.read_text())


def test_the_process_has_left_its_terminal_and_directory(mount: KeepfsMount) -> None:
    process = Path(f"/proc/{mount.pid()}")

    assert os.readlink(process / "cwd") == "/"
    assert {os.readlink(process / "fd" / str(number)) for number in range(3)} == {"/dev/null"}
    assert os.getsid(mount.pid()) == mount.pid()


def test_two_mounts_side_by_side_share_a_store(tmp_path: Path) -> None:
    with mounted(tmp_path / "one") as one:
        two = KeepfsMount(tmp_path / "two")
        two.base.mkdir()
        two.store.symlink_to(one.store)
        try:
            two.mount()
            (one.upload / "file").write_bytes(b"by one")
            assert (two.by_id / one.locator(one.upload / "file")).read_bytes() == b"by one"
        finally:
            two.clean_up()


@pytest.mark.skipif(os.geteuid() != 0, reason="a namespace of one's own needs root")
def test_a_mount_copied_to_another_namespace_ends(
    unmounted: KeepfsMount,
) -> None:
    unmounted.mount()
    elsewhere = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sleep", "600"]
    )
    try:
        wait_until(
            lambda: (
                os.readlink(f"/proc/{elsewhere.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
            )
        )
        pid = unmounted.pid()

        done = unmounted.unmount()

        assert (done.returncode, done.stderr) == (0, b"")
        assert not _runs(pid)
    finally:
        elsewhere.kill()
        elsewhere.wait()


def test_a_second_signal_spills_hung_files_and_ends_at_once(unmounted: KeepfsMount) -> None:
    unmounted.mount()
    unmounted.store.mkdir(exist_ok=True)
    # Storing "hello" opens this pipe, which hangs until the process ends.
    os.mkfifo(unmounted.store / "5d41402abc4b2a76b9719d911017c592")
    with (unmounted.upload / "file").open("wb", buffering=0) as file:
        file.write(b"hello")
        pid = unmounted.pid()
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: "SIGTERM: storing" in unmounted.log_file.read_text())
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: "not waiting" in unmounted.log_file.read_text())
        assert_shows(unmounted.log_file.read_text(), "not-waiting")
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not _runs(pid))
        with pytest.raises(OSError, match=r"Errno"):
            file.close()

    assert not unmounted.is_mounted()
    (spilled,) = (unmounted.base / "state" / "unsaved").glob("*/bytes")
    assert spilled.read_bytes() == b"hello"


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("the local store", ("--local-store", "INSIDE")),
        ("the state directory", ("--state-dir", "INSIDE")),
        ("the log file", ("--log-file", "INSIDE")),
        ("the metrics file", ("--metrics-file", "INSIDE.prom")),
        ("the directory of the disk cache", ("--disk-cache", "1G", "--disk-cache-dir", "INSIDE")),
        ("the directory of the disk cache", ("--disk-cache", "1G")),  # by $XDG_CACHE_HOME
        ("the token file", ("--token-file", "INSIDE")),
        ("the settings file", ()),  # by $XDG_CONFIG_HOME
        ("the bundle of certificates", ("--keep-services", "http://127.0.0.1:1")),
    ],
)
def test_paths_that_the_mount_needs_inside_it_are_refused(
    unmounted: KeepfsMount, what: str, options: tuple[str, ...]
) -> None:
    unmounted.path.mkdir()
    (unmounted.base / "link").symlink_to(unmounted.path)
    inside = unmounted.base / "link" / "inside"
    unmounted.options = tuple(each.replace("INSIDE", str(inside)) for each in options)
    unmounted.env = {"XDG_CACHE_HOME": str(inside)}
    if what in {"the token file", "the settings file", "the bundle of certificates"}:
        unmounted.is_local = False
        unmounted.env = {"ARVADOS_API_HOST": "127.0.0.1:1"}
    there = []
    if what == "the settings file":
        (inside / "arvados").mkdir(parents=True)
        (inside / "arvados" / "settings.conf").write_text("ARVADOS_API_TOKEN=x\n")
        unmounted.env["XDG_CONFIG_HOME"] = str(inside)
        there = [unmounted.path / "inside"]
    if what == "the bundle of certificates":
        inside.touch()
        unmounted.env["SSL_CERT_FILE"] = str(inside)
        there = [unmounted.path / "inside"]

    line = the_one_line(unmounted.try_mount())

    assert f"{what} " in line
    assert "is inside the mount point" in line
    assert list(unmounted.path.iterdir()) == there


def test_a_mount_removes_temporary_files_of_killed_writers(
    unmounted: KeepfsMount,
) -> None:
    unmounted.store.mkdir()
    left, young = unmounted.store / "keepfs-left.tmp", unmounted.store / "keepfs-young.tmp"
    left.touch()
    young.touch()
    os.utime(left, (0, 0))

    unmounted.mount()

    wait_until(lambda: "removed 1 temporary files" in unmounted.log_file.read_text())
    assert [path.name for path in unmounted.store.iterdir()] == [young.name]


def test_a_store_that_cannot_be_used_refuses_the_mount(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir()
    (unmounted.base / "file").touch()
    unmounted.options = ("--local-store", str(unmounted.base / "file" / "below"))

    assert "can't use the local store" in the_one_line(unmounted.try_mount())


def test_a_failed_mount_does_not_bind_the_state_directory(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir()
    unmounted.is_local = False
    unmounted.env = {"ARVADOS_API_HOST": "127.0.0.1:1", "ARVADOS_API_TOKEN": "x"}
    assert "the API server doesn't answer" in the_one_line(unmounted.try_mount())

    unmounted.is_local, unmounted.env = True, {}
    unmounted.mount()


def test_a_mount_starts_with_its_standard_streams_closed(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir()
    command = " ".join(unmounted.mount_command())

    done = subprocess.run(
        ["sh", "-c", f"{command} <&- >&- 2>&-"], check=False, env=unmounted.environment
    )

    assert done.returncode == 0
    assert (unmounted.path / "README").exists()


def test_the_owner_of_a_later_mount_applies_to_old_entries(
    unmounted: KeepfsMount,
) -> None:
    unmounted.mount()
    (unmounted.upload / "file").touch()
    unmounted.unmount()
    unmounted.options = ("--uid", "12345")
    unmounted.mount()

    assert unmounted.upload.stat().st_uid == 12345
    assert (unmounted.upload / "file").stat().st_uid == 12345
