"""Commands about mounts: what they say, where a mount can't be made or ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from keepfs.cli import forcing
from keepfs.fs.upload.catalog import Catalog
from keepfs.fs.upload.snapshot import CATALOG
from keepfs.mount import mountpoint, runtime
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    Authority,
    Fault,
    KeepproxyControls,
    KeepstoreControls,
    Listening,
    ProxySettings,
    ServiceEntry,
    Stage,
    Store,
)
from tests.mounted.mounts import KeepfsMount, is_zombie, keepfs, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ELSEWHERE = "v2/zzzzz-gj3su-000000000000000/anothersecret"


@pytest.fixture
def cluster(unmounted: KeepfsMount, tmp_path: Path) -> Iterator[tuple[KeepfsMount, ApiControls]]:
    """A mount, not made yet, of a cluster of one keepstore."""
    authority = Authority(tmp_path)
    with (
        KeepstoreControls() as store,
        ApiControls(listening=Listening(tls=authority.certify())) as api,
    ):
        api.list_services([ServiceEntry.of(store.url, 1)])
        unmounted.is_local = False
        unmounted.path.mkdir(parents=True, exist_ok=True)
        unmounted.env = {
            "ARVADOS_API_HOST": api.host,
            "ARVADOS_API_TOKEN": TEST_TOKEN,
            "SSL_CERT_FILE": str(authority.bundle),
        }
        yield unmounted, api
        unmounted.clean_up()


def refused(mount: KeepfsMount) -> str:
    """Try to mount, in vain; return why not."""
    done = mount.try_mount()
    assert done.returncode in {1, 2}, done
    return done.stderr.decode()


@contextlib.contextmanager
def without_store(mount: KeepfsMount) -> Iterator[None]:
    """Have the local store away."""
    away = mount.store.with_name("away")
    mount.store.rename(away)
    mount.store.write_bytes(b"")  # where the directory should be
    try:
        yield
    finally:
        mount.store.unlink()
        away.rename(mount.store)


def fail_to_store(path: Path) -> None:
    """Write a file that can't be stored."""
    with pytest.raises(OSError, match="Errno"):
        path.write_bytes(b"x")


# --- what can't be mounted --------------------------------------------------------------------


def test_a_failed_mount_leaves_no_state_directory(unmounted: KeepfsMount) -> None:
    unmounted.base.mkdir(exist_ok=True)
    command = [it for it in unmounted.mount_command() if it != "--log-file"]
    command.remove(str(unmounted.log_file))
    for extra in ((), ("-f",)):
        done = subprocess.run(
            [*command, *extra], capture_output=True, check=False, env=unmounted.environment
        )

        assert done.returncode == 1
        assert b"doesn't exist: mkdir -p" in done.stderr
        assert not (unmounted.base / "state").exists()


def test_a_failed_mount_leaves_the_state_of_earlier_ones(mount: KeepfsMount) -> None:
    (mount.upload / "file").write_bytes(b"foo")
    mount.unmount()
    mount.path.rmdir()

    assert "doesn't exist" in refused(mount)

    mount.mount()
    assert (mount.upload / "file").read_bytes() == b"foo"


def test_an_unknown_storage_class_refuses_the_mount(
    cluster: tuple[KeepfsMount, ApiControls],
) -> None:
    mount, api = cluster
    api.configure(storage_classes={"default": {"Default": True}})
    mount.options = ("--storage-classes", "nosuch")

    assert "no storage class 'nosuch'; there are: default" in refused(mount)


def test_a_token_refused_by_a_proxy_is_reported(unmounted: KeepfsMount) -> None:
    unmounted.is_local = False
    unmounted.path.mkdir(parents=True, exist_ok=True)
    with KeepstoreControls() as store:
        settings = ProxySettings(stores=[Store("zzzzz-bi6l4-000000000000000", store.url)])
        with KeepproxyControls(settings) as proxy:
            unmounted.env = {
                "ARVADOS_KEEP_SERVICES": proxy.url,
                "ARVADOS_API_TOKEN": ELSEWHERE,
            }
            done = unmounted.try_mount()
            unmounted.unmount()

    said = done.stderr.decode()
    assert done.returncode == 0
    assert "Warning: the Keep proxy refuses the token" in said
    assert "settings: ARVADOS_KEEP_SERVICES in the environment; token from ARVADOS_API" in said
    assert ELSEWHERE not in said


@pytest.mark.parametrize(
    ("options", "env", "source"),
    [
        (("--keep-services", "http://127.0.0.1:1"), {}, "the command line"),
        ((), {"KEEPFS_KEEP_SERVICES": "http://127.0.0.1:1"}, "KEEPFS_KEEP_SERVICES in the"),
        ((), {"ARVADOS_KEEP_SERVICES": "http://127.0.0.1:1"}, "ARVADOS_KEEP_SERVICES in the"),
        ((), {"ARVADOS_API_HOST": "127.0.0.1:1"}, "ARVADOS_API_HOST in the environment"),
    ],
)
def test_a_message_names_the_source_of_the_settings(
    options: tuple[str, ...], env: dict[str, str], source: str, unmounted: KeepfsMount
) -> None:
    unmounted.path.mkdir(parents=True, exist_ok=True)
    unmounted.is_local = False
    unmounted.options = options
    unmounted.env = {"ARVADOS_API_TOKEN": "x", **env}

    said = refused(unmounted)

    how = "" if "ARVADOS" in source else "--keep-services from "
    assert f"(settings: {how}{source}" in said


def test_a_file_of_settings_is_named(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir(parents=True, exist_ok=True)
    unmounted.is_local = False
    file = unmounted.base / ".config" / "arvados" / "settings.conf"
    file.parent.mkdir(parents=True)
    file.write_text("ARVADOS_API_HOST=127.0.0.1:1\nARVADOS_API_TOKEN=x\n")

    assert f"(settings: ARVADOS_API_HOST in {file}; token from ARVADOS_API_TOKEN in {file})" in (
        refused(unmounted)
    )


def test_a_silent_api_server_is_named_after_two_seconds(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir(parents=True, exist_ok=True)
    unmounted.is_local = False
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        unmounted.env = {"ARVADOS_API_HOST": host, "ARVADOS_API_TOKEN": "x"}
        for extra in ((), ("-f",)):
            process = subprocess.Popen(
                unmounted.mount_command(*extra), stderr=subprocess.PIPE, env=unmounted.environment
            )
            assert process.stderr is not None
            lines = iter(process.stderr.readline, b"")
            assert any(f"still waiting for the API server {host}".encode() in it for it in lines)
            process.kill()
            process.communicate()
            if not extra:  # it has a child, which serves
                unmounted.kill()


@pytest.mark.parametrize("extra", [(), ("-f",)])
def test_signals_to_a_mount_that_starts_count_when_it_is_up(
    cluster: tuple[KeepfsMount, ApiControls], extra: tuple[str, ...]
) -> None:
    mount, api = cluster
    api.script(Fault(hold=Stage.BEFORE_STATUS))
    with subprocess.Popen(mount.mount_command(*extra), env=mount.environment) as starting:
        api.wait_held(1)
        running = runtime.find(mount.path)
        assert running is not None

        renewing = keepfs("renew", mount.path, env=mount.environment)
        os.kill(running.pid, signal.SIGHUP)
        os.kill(running.pid, signal.SIGUSR2)
        api.release()
        wait_until(
            lambda: (
                is_zombie(running.pid) or "what every task waits for" in mount.log_file.read_text()
            )
        )

        assert (renewing.returncode, renewing.stderr) == (0, b"")
        assert not is_zombie(running.pid)
        wait_until(mount.is_mounted)
        assert mount.unmount().returncode == 0
        assert starting.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_mount_leaves_nothing(
    cluster: tuple[KeepfsMount, ApiControls], number: signal.Signals
) -> None:
    mount, api = cluster
    api.script(Fault(hold=Stage.BEFORE_STATUS))
    with subprocess.Popen(
        mount.mount_command(),
        env=mount.environment,
        # In the background of a shell the tests inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - no threads
    ) as starting:
        api.wait_held(1)
        starting.send_signal(number)

        assert starting.wait() == 128 + number
    api.release()

    assert runtime.find(mount.path) is None
    mount.mount()
    assert mount.unmount().returncode == 0


# --- unmounting --------------------------------------------------------------------------------


def test_a_command_that_is_in_the_mount_is_told_to_leave(mount: KeepfsMount) -> None:
    words = [sys.executable, "-m", "keepfs", "unmount", ".."]
    done = subprocess.run(
        words, capture_output=True, check=False, cwd=mount.upload, env=mount.environment
    )

    assert done.returncode == 1
    assert b"is busy: the working directory of this command is in it: leave the" in done.stderr
    assert b"process" not in done.stderr
    # A shell is in the directory too, and its user knows it by its name.
    script = f"cd {mount.upload} && {' '.join(words)}; exit 0"
    said = subprocess.run(
        ["sh", "-c", script], capture_output=True, check=True, env=mount.environment
    ).stderr
    assert b"is busy: sh (process " in said
    assert b"leave the directory" in said
    assert b"keepfs (process" not in said
    assert b"python" not in said


def test_a_stopped_process_is_reported_at_once(mount: KeepfsMount) -> None:
    pid = mount.pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        done = mount.unmount()
    finally:
        os.kill(pid, signal.SIGCONT)

    assert done.returncode == 1
    assert f"its process {pid} is stopped; kill -CONT {pid}".encode() in done.stderr
    assert mount.is_mounted()


def test_force_leaves_the_next_mount_on_the_directory_alone(mount: KeepfsMount) -> None:
    """The process has ended between the look at its run file and its signals."""
    entry, running = mountpoint.mounted_at(mount.path), runtime.find(mount.path)
    assert running is not None
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass

    forcing.unmount(entry, dataclasses.replace(running, pid=ended.pid))

    assert runtime.find(mount.path) == running
    assert (mount.path / "README").exists()


def test_umount_is_another_name(mount: KeepfsMount) -> None:
    done = keepfs("umount", mount.path, env=mount.environment)

    assert (done.returncode, done.stderr) == (0, b"")
    assert not mount.is_mounted()


# --- unsaved -----------------------------------------------------------------------------------


def test_unsaved_finds_the_state_directory_of_a_running_mount(mount: KeepfsMount) -> None:
    with without_store(mount):
        fail_to_store(mount.upload / "file")
        listed = keepfs("unsaved", "list", mount.path, env=mount.environment)

    assert listed.returncode == 0
    assert b"\tfile\t" in listed.stdout


@pytest.mark.parametrize(
    "words",
    [("unsaved", "list"), ("unsaved", "drop"), ("uploads",), ("uploads", "--check"), ("renew",)],
)
def test_a_path_never_mounted_is_an_error_in_one_line(
    words: tuple[str, ...], unmounted: KeepfsMount
) -> None:
    name = ("name",) if "drop" in words else ()
    settings = {"KEEP_LOCAL_STORE": str(unmounted.store)}
    done = keepfs(*words, unmounted.path, *name, env={**unmounted.environment, **settings})

    assert done.returncode == 1
    assert b"isn't mounted by this user, and has no state directory" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_renew_reports_a_catalog_that_it_cannot_use_in_one_line(unmounted: KeepfsMount) -> None:
    state = unmounted.base / "state"
    state.mkdir(mode=0o700)
    local = ("--local-store", str(unmounted.store))
    renew = ("renew", *local, "--state-dir", str(state), unmounted.path)
    texts = []
    for content in (None, b"no database " * 1000):
        if content is not None:
            (state / CATALOG).write_bytes(content)
        texts.append(keepfs(*renew, env=unmounted.environment).stderr.decode())

    for text, each in zip(texts, ("[no-catalog]", "[catalog-unusable]"), strict=True):
        assert text.startswith("Error: ")
        assert text.endswith(f"{each}\n")
        assert text.count("\n") == 1


def test_renew_reports_services_that_do_not_answer_in_one_line(unmounted: KeepfsMount) -> None:
    state = unmounted.base / "state"
    state.mkdir(mode=0o700)
    Catalog(state / CATALOG, "").close()
    settings = {"ARVADOS_KEEP_SERVICES": "http://127.0.0.1:1", "ARVADOS_API_TOKEN": "x"}
    renew = ("renew", "--retries", "0", "--state-dir", str(state), unmounted.path)
    error = keepfs(*renew, env={**unmounted.environment, **settings}).stderr.decode()

    assert error.startswith("Error: no Keep service answers: ")
    assert error.endswith("[no-service-answers]\n")
    assert error.count("\n") == 1


# --- locate ------------------------------------------------------------------------------------


def test_locate_prints_the_locator_or_the_reason_for_none(mount: KeepfsMount) -> None:
    there, failed = mount.upload / "there", mount.upload / "failed"
    there.write_bytes(b"foo")
    with without_store(mount):
        fail_to_store(failed)
        done = keepfs("locate", there, failed, mount.upload, env=mount.environment)

    locator = "acbd18db4cc2f85cedef654fccc4a4d8+3"
    assert done.returncode == 1
    assert done.stdout.decode() == f"{locator}\t{there}\n"
    assert f"{failed} isn't stored yet (failed): " in done.stderr.decode()
    assert f"{mount.upload} isn't a file of by_id/ or upload/" in done.stderr.decode()
