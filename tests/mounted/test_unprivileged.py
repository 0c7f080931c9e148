"""A user who isn't root mounts, and has the mount for itself."""

from __future__ import annotations

import json
import os
import pwd
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keepfs.collections.local_collections import LocalCollections
from keepfs.keep.local import LocalStore
from tests.mounted.mounts import PATIENCE, KeepfsMount, keepfs, wait_until
from tests.mounted.packing import packed

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="all tests run as a user already; only root can take two"
)
# fusermount3 wants a user with a name; every system has these.
NAME = "nobody"
USER, SOMEBODY_ELSE = (pwd.getpwnam(name).pw_uid for name in (NAME, "daemon"))

# The interpreter and the checkout may lie where another user can't go: so all
# is imported first, and the privileges are dropped then.
_LAUNCHER = """
import importlib, os, pkgutil, sys
import keepfs
for module in pkgutil.walk_packages(keepfs.__path__, "keepfs."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
import concurrent.futures.thread, platformdirs.unix
import encodings.idna, trio._core._run, logging.handlers
uid = int(sys.argv.pop(1))
os.setgroups([]); os.setgid(uid); os.setuid(uid)
from keepfs.cli import main
main()
"""


def as_user(
    uid: int, *arguments: str | Path, env: dict[str, str]
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line as another user."""
    return subprocess.run(
        [sys.executable, "-c", _LAUNCHER, str(uid), *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        # Coverage's own data file is where another user can't write.
        env={name: value for name, value in env.items() if not name.startswith("COVERAGE_")},
    )


def run_as(uid: int, *command: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run a program of the system as another user."""
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        user=uid,
        group=uid,
        extra_groups=[],
    )


@pytest.fixture(autouse=True)
def _device_open_to_users(open_device: None) -> None:
    """Give /dev/fuse the mode that udev gives it."""


@pytest.fixture
def of_user(tmp_path: Path) -> Iterator[KeepfsMount]:
    """A mount of the user's, in a directory of the user's that others can enter."""
    it = KeepfsMount(tmp_path)
    for parent in (tmp_path, *list(tmp_path.parents)[:3]):  # pytest's own
        if not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(0o755)
    os.chown(tmp_path, USER, USER)
    it.path.mkdir()
    os.chown(it.path, USER, USER)
    # The launcher replaces `-m keepfs`.
    done = as_user(USER, *it.mount_command()[3:], env=it.environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    yield it
    it.clean_up()


def test_the_user_stores_and_reads(of_user: KeepfsMount) -> None:
    script = "cp /etc/hostname upload/f && chmod 640 upload/f"
    script += " && L=$(getfattr --only-values -n user.keep.locator upload/f)"
    script += ' && cmp "by_id/$L" /etc/hostname && stat -c "%u %a" upload/f by_id'

    done = run_as(USER, "sh", "-c", f"cd {of_user.path} && {script}")

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == f"{USER} 640\n{USER} 555\n".encode()


def test_the_user_reads_a_collection(of_user: KeepfsMount, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "file").write_bytes(b"content")
    store = LocalStore(of_user.store)
    manifest = packed(source, lambda block: str(store.put(block).locator))
    name = LocalCollections(of_user.store).put(manifest).portable_data_hash
    folder = of_user.path / "collections" / name
    subprocess.run(["chown", "-R", str(USER), str(of_user.store)], check=True)

    assert run_as(USER, "diff", "-r", source, folder).returncode == 0
    assert (
        run_as(USER, "stat", "-c", "%u %a", folder / "folder").stdout == f"{USER} 555\n".encode()
    )
    assert b"Permission denied" in run_as(USER, "touch", folder / "new").stderr  # by its mode
    assert b"Permission denied" in run_as(SOMEBODY_ELSE, "ls", folder).stderr


def test_the_user_runs_the_commands_on_collections(of_user: KeepfsMount) -> None:
    def run(*arguments: str | Path) -> str:
        done = as_user(USER, *arguments, env=of_user.environment)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
        return done.stdout.decode()

    tree, again = of_user.upload / "tree", of_user.upload / "again"
    assert run_as(USER, "sh", "-c", f"mkdir {tree} && echo one > {tree}/f").returncode == 0

    manifest = run("manifest", tree)
    name = run("commit", tree).strip().partition("\t")[2]
    run("import", name, again)

    assert manifest.endswith(" 0:4:f\n")
    assert run_as(USER, "diff", "-r", tree, again).returncode == 0
    assert run_as(USER, "diff", "-r", tree, of_user.path / "collections" / name).returncode == 0
    listed = sorted(line.split("\t")[-1] for line in run("uploads", of_user.path).splitlines())
    assert listed == ["again/f", "tree/f"]
    refused = as_user(SOMEBODY_ELSE, "commit", tree, env=of_user.environment)
    assert refused.returncode != 0
    assert b"Traceback" not in refused.stderr


def test_others_cannot_see_into_it_not_even_root(of_user: KeepfsMount) -> None:
    assert run_as(USER, "cp", "/etc/hostname", of_user.upload / "file").returncode == 0
    for done in (
        run_as(SOMEBODY_ELSE, "ls", of_user.path),
        run_as(SOMEBODY_ELSE, "cat", of_user.path / "README"),
        run_as(SOMEBODY_ELSE, "ls", of_user.store),
    ):
        assert done.returncode != 0
        assert b"Permission denied" in done.stderr
    with pytest.raises(PermissionError):
        os.listdir(of_user.path)


def test_the_user_unmounts(of_user: KeepfsMount) -> None:
    pid = of_user.pid()

    done = as_user(USER, "unmount", of_user.path, env=of_user.environment)

    assert (done.returncode, done.stderr) == (0, b"")
    assert not of_user.is_mounted()
    with pytest.raises(LookupError):
        of_user.pid()
    assert pid > 0


def test_the_users_dead_mount_is_cleared_by_the_next(of_user: KeepfsMount) -> None:
    of_user.kill()
    assert of_user.is_mounted()

    done = as_user(USER, *of_user.mount_command()[3:], env=of_user.environment)

    assert (done.returncode, done.stderr) == (0, b"")
    names = b"README\nby_id\ncollections\nupload\n"
    wait_until(lambda: run_as(USER, "ls", of_user.path).stdout == names)


def test_root_does_not_mount_over_a_users_mount(of_user: KeepfsMount) -> None:
    # The user's own state and log are refused before.
    own = of_user.base / "roots"
    of_user.options = ("--state-dir", str(own), "--log-file", str(own / "log"))

    done = of_user.try_mount()

    assert done.returncode == 1
    assert f"already mounted, by user {NAME}".encode() in done.stderr


def test_another_user_is_told_whose_mount_it_is(of_user: KeepfsMount) -> None:
    whose = f"is the mount of user {NAME}"
    env = {**of_user.environment, "HOME": "/nonexistent"}

    shown = as_user(SOMEBODY_ELSE, "status", "--json", of_user.path, env=env)
    (found,) = json.loads(shown.stdout)["mounts"]

    assert (found["state"], shown.returncode) == ("foreign", 1)
    assert whose in found["reason"]
    assert b"no keepfs mounts" in as_user(SOMEBODY_ELSE, "status", env=env).stdout
    for words in (
        ("unmount",),
        ("unsaved", "list"),
        ("unsaved", "retry"),
        ("uploads",),
    ):
        done = as_user(SOMEBODY_ELSE, *words, of_user.path, env=env)
        assert (done.returncode, whose.encode() in done.stderr) == (1, True), done
    checked = as_user(SOMEBODY_ELSE, "check", of_user.path, env=env).stdout.decode()
    assert f"is a fuse.keepfs mount of user {NAME}" in checked
    assert of_user.is_mounted()


def test_a_home_that_can_not_be_written_is_named(of_user: KeepfsMount, tmp_path: Path) -> None:
    as_user(USER, "unmount", of_user.path, env=of_user.environment)
    closed = tmp_path / "closed"  # root's
    closed.mkdir()
    words = ("mount", "--local-store", of_user.store, of_user.path)

    for home in (closed, closed / "below", Path("/nonexistent")):
        done = as_user(USER, *words, env={**of_user.environment, "HOME": str(home)})

        said = f"Error: can't make the state directory {home}/.local/state/keepfs/"
        assert done.returncode == 1
        assert done.stderr.startswith(said.encode()), done.stderr
        assert b"Permission denied; give another with --state-dir" in done.stderr


def test_root_unmounts_the_mount_of_a_user(of_user: KeepfsMount) -> None:
    done = keepfs("unmount", of_user.path, env=of_user.environment)

    assert (done.returncode, done.stderr) == (0, b"")
    assert not of_user.is_mounted()


def test_a_device_closed_to_users_is_explained(of_user: KeepfsMount) -> None:
    as_user(USER, "unmount", of_user.path, env=of_user.environment)
    os.chmod("/dev/fuse", 0o600)
    try:
        done = as_user(USER, *of_user.mount_command()[3:], env=of_user.environment)
    finally:
        os.chmod("/dev/fuse", 0o666)

    assert done.returncode == 1
    assert b"chmod 666 /dev/fuse" in done.stderr


def test_allow_other_needs_user_allow_other(of_user: KeepfsMount) -> None:
    as_user(USER, "unmount", of_user.path, env=of_user.environment)

    done = as_user(USER, *of_user.mount_command("--allow-other")[3:], env=of_user.environment)

    assert done.returncode == 1
    assert b"user_allow_other in /etc/fuse.conf" in done.stderr


def test_modes_are_enforced_as_on_a_disk(of_user: KeepfsMount) -> None:
    """The kernel checks them (`default_permissions`); root is never refused."""
    script = """
echo x > file; mkdir full; echo x > full/inner; chmod 0 file; chmod 500 full
cat file; echo y > file; rm full/inner; mv full/inner new; mkdir full/new; ln -s x full/link
chmod 0 full; cat full/inner; ls full; cd full; chmod 700 full; truncate -s 0 file; /bin/true
"""
    said = []
    for place in (of_user.upload, of_user.base / "disk"):
        if place.name == "disk":
            place.mkdir()
            os.chown(place, USER, USER)
        done = run_as(USER, "sh", "-c", f"cd {place} && LC_ALL=C && export LC_ALL {script}")
        said.append((done.returncode, done.stdout, done.stderr))

    assert said[0] == said[1]
    assert said[0][2].count(b"Permission denied") >= 9


def test_by_id_refuses_a_user_by_its_modes(of_user: KeepfsMount) -> None:
    script = "cp /etc/hostname upload/f"
    script += " && L=$(getfattr --only-values -n user.keep.locator upload/f)"
    script += ' && ! touch by_id/new && ! rm -f "by_id/$L" && ! sh -c "echo x > by_id/$L"'

    done = run_as(USER, "sh", "-c", f"cd {of_user.path} && {script}")

    assert done.returncode == 0
    assert done.stderr.count(b"denied") + done.stderr.count(b"Read-only") == 3
    assert b"denied" in done.stderr


def test_a_mount_survives_a_lack_of_threads_without_loss(
    of_user: KeepfsMount,
) -> None:
    pid = of_user.pid()
    # Root of a container may not do that, the user may.
    limit = run_as(USER, "prlimit", "--pid", str(pid), "--nproc=1:")
    assert (limit.returncode, limit.stderr) == (0, b"")
    source = of_user.base / "source"
    source.write_bytes(os.urandom(1 << 20) * 8)  # hashed in threads while it is written
    for wave in range(5):
        copies = [
            subprocess.Popen(
                ["cp", source, of_user.upload / f"file-{wave}-{number}"],
                user=USER,
                group=USER,
                extra_groups=[],
                stderr=subprocess.DEVNULL,
            )
            for number in range(8)
        ]
        for each in copies:
            each.wait(PATIENCE)
        if "can't start new thread" in of_user.log_file.read_text():
            break
        time.sleep(11)  # the copies found idle threads, which trio ends after 10 s
    run_as(USER, "prlimit", "--pid", str(pid), "--nproc=4096:")

    def states() -> set[bytes]:
        done = run_as(
            USER,
            *("sh", "-c", f"getfattr --only-values -n user.keep.state {of_user.upload}/* | xargs"),
        )
        return set(done.stdout.replace(b"stored", b"stored ").split())

    os.kill(pid, signal.SIGUSR1)  # retry now
    wait_until(lambda: states() == {b"stored"})
    assert "can't start new thread" in of_user.log_file.read_text()
    assert of_user.pid() == pid
    done = run_as(
        USER,
        *("sh", "-c", f'for f in {of_user.upload}/*; do cmp "$f" {source} || exit 1; done'),
    )
    assert (done.returncode, done.stderr) == (0, b"")
