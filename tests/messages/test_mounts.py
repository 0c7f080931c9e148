"""Provokes the messages about mounts."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import shlex
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keepfs.fs.nodes import Metadata
from keepfs.fs.upload.catalog import ROOT, Catalog, CatalogError
from keepfs.fs.upload.failed_journal import FailedJournal
from keepfs.fs.upload.stored import NOTHING
from keepfs.fs.upload.unsaved import About
from keepfs.mount import fuse, mountpoint, runtime
from keepfs.mount.control_requests import ControlConnection, ControlError
from tests.keepstore.faults import Fault, Stage
from tests.messages.provoking import provokes
from tests.messages.test_commands import said
from tests.mounted.mounts import is_zombie, keepfs, wait_until
from tests.mounted.test_unprivileged import as_user

if TYPE_CHECKING:
    from tests.cli.test_cli import Shell
    from tests.keepstore import ApiControls
    from tests.mounted.mounts import KeepfsMount

pytestmark = [pytest.mark.slow, pytest.mark.fuse]

SOURCES = Path(__file__).parents[2]


def in_namespace(prepare: str, code: str) -> str:
    """Run Python in a mount namespace of its own; return what it prints.

    Args:
        prepare: A command of the shell, run before as root of the namespace.
        code: For Python.
    """
    python = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    flags = ["-m"] if os.geteuid() == 0 else ["-rm"]
    done = subprocess.run(
        ["unshare", *flags, "sh", "-c", f"({prepare}) && {python}"],
        capture_output=True,
        check=False,
        text=True,
        cwd=SOURCES,
        timeout=60,
    )
    if "unshare" in done.stderr:
        pytest.skip(done.stderr)
    return done.stdout + done.stderr


def checked_as_user(prepare: str, path: str = os.defpath) -> str:
    """Check FUSE as a user that is not root."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user and change devices")
    return in_namespace(
        prepare,
        "import os\nfrom keepfs.mount import mountpoint\n"
        f"os.environ['PATH'] = {path!r}\nos.setuid(54321)\n"
        "try: mountpoint.check_fuse()\nexcept mountpoint.MountpointError as error: print(error)",
    )


@provokes("no-fuse-device")
def test_no_fuse_device() -> str:
    return in_namespace(
        "mount -t tmpfs none /dev",
        "from keepfs.mount import mountpoint\n"
        "try: mountpoint.check_fuse()\nexcept mountpoint.MountpointError as error: print(error)",
    )


@provokes("no-fusermount")
def test_no_fusermount() -> str:
    return checked_as_user("true", "/nonexistent")


@provokes("fuse-device-closed")
def test_fuse_device_closed(tmp_path: Path) -> str:
    (tmp_path / "closed").touch(mode=0o600)
    return checked_as_user(f"mount --bind {tmp_path / 'closed'} /dev/fuse", "/usr/bin:/bin")


@provokes("mount-refused")
def test_mount_refused(unmounted: KeepfsMount) -> str:
    (unmounted.base / "no-device").touch()
    words = [*unmounted.mount_command()[1:]]
    return in_namespace(
        f"mount --bind {unmounted.base / 'no-device'} /dev/fuse",
        f"import os, sys\nos.execv(sys.executable, {[sys.executable, *words]!r})",
    )


@provokes("no-mount-point", "unusable-mount-point", "nonempty-mount-point")
def test_mount_points(shell: Shell, tmp_path: Path) -> str:
    (tmp_path / "file").touch()
    (tmp_path / "full" / "x").mkdir(parents=True)
    paths = (tmp_path / "none", tmp_path / "file", tmp_path / "full")
    return "\n".join(said(shell, "mount", path) for path in paths)


@provokes("already-mounted", "path-in-mount", "catalog-in-use")
def test_second_mounts(shared: KeepfsMount, tmp_path: Path) -> str:
    other = ("mount", "--local-store", shared.store)
    texts = [
        shared.try_mount().stderr,
        keepfs(*other, "--state-dir", tmp_path / "x", tmp_path, env=shared.environment).stderr,
        keepfs(
            *other, "--state-dir", shared.base / "state", tmp_path, env=shared.environment
        ).stderr,
    ]
    return b"\n".join(texts).decode()


@provokes("mount-died")
def test_mount_died() -> str:
    code = "import os\nfrom keepfs.mount import daemon\n"
    code += "print(daemon.run_in_background(lambda pipe: os._exit(1)))"
    return subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, check=True
    ).stdout.decode()


@provokes("being-mounted", "mount-abandoned")
def test_mounts_that_are_not_ready(unmounted: KeepfsMount, api: ApiControls, shell: Shell) -> str:
    unmounted.is_local = False
    names = ("ARVADOS", "SSL")
    unmounted.env = {
        name: text for name, text in shell.environment.items() if name.startswith(names)
    }
    api.script(Fault(hold=Stage.BEFORE_STATUS))
    with subprocess.Popen(unmounted.mount_command(), env=unmounted.environment) as starting:
        api.wait_held(1)
        running = runtime.find(unmounted.path)
        assert running is not None
        second = unmounted.try_mount().stderr.decode()
        starting.kill()
        starting.wait()
    api.release()
    wait_until(lambda: is_zombie(running.pid))
    log = unmounted.log_file.read_text()
    assert "Traceback" not in log
    assert log.count(" ERROR ") == 2  # of the second, and of the first
    return second + log


@provokes("unmount-failed")
def test_unmount_failed(tmp_path: Path) -> str:
    with pytest.raises(mountpoint.MountpointError) as caught:
        mountpoint.detach(tmp_path)
    return str(caught.value)


@provokes("busy", "process-stopped")
def test_mounts_that_can_not_be_unmounted(shared: KeepfsMount) -> str:
    with subprocess.Popen(["sleep", "60"], cwd=shared.upload) as sleeping:
        busy = shared.unmount().stderr
        sleeping.kill()
    pid = shared.pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        stopped = shared.unmount().stderr
    finally:
        os.kill(pid, signal.SIGCONT)
    return (busy + stopped).decode()


@provokes("not-mounted", "other-file-system")
def test_what_is_no_mount(shell: Shell, tmp_path: Path) -> str:
    return said(shell, "unmount", tmp_path) + said(shell, "unmount", "/proc")


@provokes("bind-mounts-left")
def test_bind_mounts_left(unmounted: KeepfsMount) -> str:
    if os.geteuid() != 0:
        pytest.skip("only root binds mounts")
    unmounted.mount()
    other = unmounted.base / "other"
    other.mkdir()
    subprocess.run(["mount", "--bind", unmounted.path, other], check=True)
    try:
        return unmounted.unmount().stderr.decode()
    finally:
        subprocess.run(["umount", other], check=True)


@provokes("not-stored-yet", "files-unsaved", "files-lost")
def test_files_that_are_not_stored(unmounted: KeepfsMount) -> str:
    unmounted.options = ("--drain-timeout", "0.2", "--retries", "0")
    unmounted.mount()
    subprocess.run(["rm", "-rf", unmounted.store], check=True)
    unmounted.store.touch()
    with pytest.raises(OSError, match="Input/output error"):
        (unmounted.upload / "file").write_bytes(b"bytes")
    failed = keepfs("locate", unmounted.upload / "file", env=unmounted.environment).stderr
    unsaved = unmounted.unmount().stderr
    unmounted.store.unlink()
    unmounted.mount()
    pid = unmounted.pid()
    os.kill(pid, signal.SIGKILL)
    # A mount that could store its files nowhere leaves this behind.
    FailedJournal(unmounted.base / "state").end([About("gone", 3)])
    text = f"""
from pathlib import Path
from keepfs.cli import unmounting
unmounting._report_unsaved(Path({str(unmounted.path)!r}), Path({str(unmounted.base / "state")!r}))
"""
    lost = subprocess.run(
        [sys.executable, "-c", text], stderr=subprocess.PIPE, check=False, cwd=SOURCES
    ).stderr
    return (failed + unsaved + lost).decode()


@provokes("dead-mount-cleared")
def test_dead_mount_cleared(unmounted: KeepfsMount) -> str:
    unmounted.mount()
    os.kill(unmounted.pid(), signal.SIGKILL)
    unmounted.mount()
    return unmounted.log_file.read_text()


@provokes("state-dir-failed")
def test_state_dir_failed(shell: Shell, tmp_path: Path) -> str:
    (tmp_path / "mnt").mkdir()
    file = shell.file("file", b"")
    texts = [
        said(shell, "mount", *extra, "--state-dir", file / "x" / "y", tmp_path / "mnt")
        for extra in ((), ("--foreground",))
    ]
    assert all("[state-dir-failed]" in each for each in texts), texts
    return "\n".join(texts)


@provokes("dead-mount")
def test_dead_mount(unmounted: KeepfsMount) -> str:
    unmounted.mount()
    unmounted.kill()
    done = keepfs(
        "check", "--local-store", unmounted.store, unmounted.path, env=unmounted.environment
    )
    assert done.returncode == 1
    assert b"FAILED   mount point" in done.stdout
    assert f"-> keepfs unmount {unmounted.path} clears it".encode() in done.stdout
    return done.stdout.decode()


@provokes("mount-of-other-user")
def test_mount_of_other_user(shared: KeepfsMount) -> str:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    nobody = pwd.getpwnam("nobody").pw_uid
    return as_user(nobody, "unmount", shared.path, env=shared.environment).stderr.decode()


@provokes("kernel-timeout")
def test_kernel_timeout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> str:
    (tmp_path / "max_request_timeout").write_text("60")
    with caplog.at_level(logging.WARNING):
        fuse.request_deadline(600, tmp_path)
    return caplog.text


@provokes("no-control")
def test_no_control_socket_answers(tmp_path: Path) -> str:
    with pytest.raises(ControlError) as caught:
        ControlConnection(tmp_path / "none")
    return str(caught.value)


@provokes("catalog-newer", "catalog-of-other-store", "catalog-unusable", "no-catalog")
def test_catalogs(shell: Shell, tmp_path: Path) -> str:
    texts = []
    path = tmp_path / "catalog.sqlite"
    catalog = Catalog(path, "local:/one")
    with catalog.change():
        catalog.add_root(Metadata(0o40755, 0, 0, 0))
        catalog.add_file(ROOT, "file", Metadata(0o100644, 0, 0, 0), NOTHING)
    catalog.close()
    with pytest.raises(CatalogError) as caught:
        Catalog(path, "local:/other")
    texts.append(str(caught.value))
    newer = tmp_path / "newer" / "catalog.sqlite"
    newer.parent.mkdir()
    Catalog(newer, "local:/one").close()
    with contextlib.closing(sqlite3.connect(newer)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(CatalogError) as caught:
        Catalog(newer, "local:/one")
    texts.append(str(caught.value))
    (tmp_path / "bad").write_bytes(b"no database " * 1000)
    with pytest.raises(CatalogError) as caught:
        Catalog(tmp_path / "bad", "local:/one")
    texts.append(str(caught.value))
    (tmp_path / "none").mkdir()
    texts.append(said(shell, "uploads", "--state-dir", tmp_path / "none", tmp_path))
    return "\n".join(texts)
