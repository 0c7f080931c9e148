"""keepfs check and keepfs bugreport: verdicts, exit codes, time limits, and no secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from keepfs import stores
from keepfs.cli.checking import all_steps
from keepfs.cli.scrubbing import Scrubber
from keepfs.cli.steps import CheckResult, Step, exit_code, run_step
from keepfs.fs.nodes import Metadata
from keepfs.fs.upload.catalog import ROOT, Catalog
from keepfs.fs.upload.stored import NOTHING
from keepfs.keep import KeepClient
from keepfs.mount import machine
from tests.cli.test_cli import Shell
from tests.keepstore import TEST_TOKEN, Fault, KeepstoreControls, Stage
from tests.keepstore.ports import connections_to
from tests.mounted.mounts import KeepfsMount, keepfs, why_no_mounts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

_, UUID, SECRET = TEST_TOKEN.split("/")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def keepstore(shell: Shell) -> Iterator[KeepstoreControls]:
    """A Keep service that the shell's settings name."""
    del shell.environment["KEEP_LOCAL_STORE"]
    with KeepstoreControls() as it:
        shell.environment |= {"ARVADOS_KEEP_SERVICES": it.url, "ARVADOS_API_TOKEN": TEST_TOKEN}
        yield it
        it.release()


def check(shell: Shell, *arguments: str | Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run a check; return the exit code and the steps by name."""
    done = keepfs("check", "--json", *arguments, env=shell.environment)
    assert done.stderr == b""
    found = json.loads(done.stdout)
    assert found["exit"] == done.returncode
    return done.returncode, {each["name"]: each for each in found["steps"]}


def test_check_refuses_a_store_that_the_mount_would_refuse(shell: Shell, tmp_path: Path) -> None:
    where, state = tmp_path / "mnt", tmp_path / "state"
    where.mkdir()
    state.mkdir()
    words = (where, "--state-dir", state)

    assert check(shell, *words)[1]["catalog"]["verdict"] == "skipped"
    catalog = Catalog(state / "catalog.sqlite", f"local:{tmp_path}/other")
    with catalog.change():
        catalog.add_root(Metadata(0o40755, 0, 0, 0))
    catalog.close()
    # Without files a mount takes it over.
    assert check(shell, *words)[1]["catalog"]["verdict"] == "ok"
    catalog = Catalog(state / "catalog.sqlite", f"local:{tmp_path}/other")
    with catalog.change():
        catalog.add_file(ROOT, "file", Metadata(0o100644, 0, 0, 0), NOTHING)
    catalog.close()

    code, steps = check(shell, *words)

    assert (code, steps["catalog"]["verdict"]) == (1, "FAILED")
    assert "[catalog-of-other-store]" in steps["catalog"]["found"]
    assert check(shell, *words, "--local-store", tmp_path / "other")[0] == 0


def test_check_shows_each_setting_and_its_source(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    config = shell.home / ".config" / "keepfs"
    config.mkdir(parents=True)
    (config / "config.toml").write_text('cache-size = "1G"\n')
    shell.environment["KEEPFS_RETRIES"] = "2"

    code, steps = check(shell, tmp_path / "mnt", "--umask", "027")

    if why_no_mounts() is None:
        assert code == 0
    assert steps["configuration"]["details"] == {
        "--cache-size": f"1 GiB  ({config}/config.toml)",
        "--local-store": f"{shell.store}  (environment KEEP_LOCAL_STORE)",
        "--retries": "2  (environment KEEPFS_RETRIES)",
        "--umask": "027  (command line)",
    }
    assert steps["mount point"]["verdict"] == "ok"
    assert steps["local store"]["verdict"] == "ok"


def test_check_names_the_table_of_a_file(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    file = tmp_path / "own.toml"
    file.write_text(
        f'cache-size = "1G"\ncopies = 2\n["{tmp_path}/mnt"]\ncopies = 1\nmetrics = 9753\n'
    )

    _, steps = check(shell, tmp_path / "mnt", "--config", file)

    found = steps["configuration"]["details"]
    assert found["--cache-size"] == f"1 GiB  ({file})"
    assert found["--copies"] == f"1  ({file}, table of the mount point)"
    assert found["--metrics"] == f"127.0.0.1:9753  ({file}, table of the mount point)"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can put another /etc in its place")
@pytest.mark.parametrize(
    ("text", "verdict", "found"),
    [
        ("# a comment\nKEEPFS_METRICS=1234\n", "ok", "sets KEEPFS_METRICS, for the service alone"),
        ("ARVADOS_API_HOST=x\nKEEPFS_COPIES=1\n", "warning", "sets ARVADOS_API_HOST, KEEPFS_C"),
        ("KEEPFS_COPYS=1\n", "FAILED", "did you mean KEEPFS_COPIES?"),
        ("", "skipped", "there are none in /etc/keepfs/mnt-x.env"),
    ],
)
def test_check_looks_at_the_variables_of_the_service(
    shell: Shell, tmp_path: Path, text: str, verdict: str, found: str
) -> None:
    subprocess.run(["cp", "-a", "/etc", tmp_path / "etc"], check=True)
    (tmp_path / "etc" / "keepfs").mkdir(exist_ok=True)
    (tmp_path / "etc" / "keepfs" / "mnt-x.env").write_text(text)
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc && exec "$@"'),
            *(tmp_path / "etc", sys.executable, "-m", "keepfs", "check", "--json", "/mnt/x"),
        ],
        capture_output=True,
        env=shell.environment,
        check=False,
    )

    steps = {each["name"]: each for each in json.loads(done.stdout)["steps"]}

    step = steps["service's variables"]
    assert step["verdict"] == verdict
    assert found in step["found"]


def test_check_reports_each_failure_and_continues(shell: Shell, tmp_path: Path) -> None:
    shell.environment["KEEPFS_CACHE_SISE"] = "1G"

    code, steps = check(shell, tmp_path / "none")

    assert code == 1
    assert steps["variables"]["verdict"] == "FAILED"
    assert "did you mean KEEPFS_CACHE_SIZE?" in steps["variables"]["found"]
    assert "mkdir -p" in steps["mount point"]["found"]
    assert steps["local store"]["verdict"] == "ok"


def test_check_refuses_options_that_mount_does_not_have(shell: Shell) -> None:
    done = keepfs("check", "--nosuch", env=shell.environment)

    assert done.returncode == 2
    assert b"No such option" in done.stderr


def test_check_times_each_service_and_stores_an_empty_block(
    shell: Shell, keepstore: KeepstoreControls
) -> None:
    code, steps = check(shell)

    service = steps[f"service {keepstore.url.rstrip('/')}/"]
    assert service["verdict"] == "ok"
    assert service["details"]["stores"] is True
    assert service["details"]["milliseconds"] > 0
    assert steps["writability"]["verdict"] == steps["clock"]["verdict"] == "ok"
    assert "FAILED" not in {
        each["verdict"] for name, each in steps.items() if not name.startswith("/dev")
    }
    assert code in {0, 1}
    assert keepstore.blocks() == ["d41d8cd98f00b204e9800998ecf8427e"]


def test_check_closes_its_connections(
    shell: Shell, keepstore: KeepstoreControls, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[KeepClient] = []

    class Remembered(KeepClient):  # else the end of its life closes the connections
        def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
            super().__init__(*args, **options)
            clients.append(self)

    monkeypatch.setattr(stores, "KeepClient", Remembered)
    monkeypatch.delenv("KEEP_LOCAL_STORE", raising=False)
    for name, value in shell.environment.items():
        monkeypatch.setenv(name, value)

    steps = all_steps((), 10.0, is_writing=True)

    assert len(clients) == 1
    assert CheckResult.OK in {each.verdict for each in steps if each.name == "writability"}
    assert connections_to(int(keepstore.url.rpartition(":")[2].rstrip("/"))) == 0


def test_check_with_no_write_stores_nothing(shell: Shell, keepstore: KeepstoreControls) -> None:
    _, steps = check(shell, "--no-write")

    assert "writability" not in steps
    assert keepstore.log("PUT") == []


def test_check_fails_where_no_service_stores(shell: Shell, keepstore: KeepstoreControls) -> None:
    keepstore.always(Fault(status=503), method="PUT")

    code, steps = check(shell)

    assert code == 1
    assert steps["writability"]["verdict"] == "FAILED"


def test_a_service_that_hangs_is_reported_in_time(
    shell: Shell, keepstore: KeepstoreControls
) -> None:
    keepstore.always(Fault(hold=Stage.BEFORE_STATUS))

    code, steps = check(shell, "--timeout", "0.5")

    assert code in {1, 3}
    service = steps[f"service {keepstore.url.rstrip('/')}/"]
    assert service["verdict"] in {"unknown", "FAILED"}
    assert steps["clock"]["verdict"] == "unknown"


def test_a_clock_that_differs_is_a_warning(shell: Shell, keepstore: KeepstoreControls) -> None:
    keepstore.set_clock(time.time_ns() - 3600 * 10**9)

    _, steps = check(shell)

    assert steps["clock"]["verdict"] == "warning"
    assert "NTP" in steps["clock"]["advice"]


def test_a_step_that_hangs_is_abandoned() -> None:
    forever = threading.Event()

    def hang() -> Step:
        forever.wait()
        return Step("", CheckResult.OK)

    step = run_step("name server", hang, 0.05)
    forever.set()

    assert (step.name, step.verdict) == ("name server", CheckResult.UNKNOWN)
    assert exit_code([step]) == 3
    assert exit_code([step, Step("", CheckResult.FAILED)]) == 1
    assert exit_code([Step("", CheckResult.WARNING), Step("", CheckResult.SKIPPED)]) == 0


def test_the_limits_of_the_kernel_are_found(tmp_path: Path) -> None:
    (tmp_path / "default_request_timeout").write_text("0\n")
    (tmp_path / "max_request_timeout").write_text("60\n")

    assert machine.kernel_timeouts(tmp_path) == {"max_request_timeout": 60}
    assert machine.kernel_timeouts(tmp_path / "none") == {}


def test_a_scrubber_removes_secrets_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2hunter2")
    text = (
        "a hunter2hunter2 b v2/zzzzz-gj3su-012345678901234/s3cr3t0 c http://me:pass1@host/ d"
        " acbd18db4cc2f85cedef654fccc4a4d8+3+A0123456789012345678901234567890123456789@6a3b1f80"
        " +Rzzzzz-0123456789012345678901234567890123456789@6a3b1f80"
        ' Authorization: OAuth2 abcdef; {"api_token": "xyz123"} ?api_token=qwe456&x'
    )

    said = Scrubber(texts=["v2/zzzzz-gj3su-aaaaaaaaaaaaaaa/partpart"]).scrubbed(
        f"{text} partpart zzzzz-gj3su-aaaaaaaaaaaaaaa"
    )

    for secret in (
        *("hunter2", "s3cr3t0", "pass1", "0123456789012345", "abcdef", "xyz123", "qwe456"),
        *("partpart", "zzzzz-gj3su-a"),
    ):
        assert secret not in said
    assert "acbd18db4cc2f85cedef654fccc4a4d8+3+A[signature]" in said


def test_a_bugreport_needs_no_mount_point(shell: Shell) -> None:
    done = keepfs("bugreport", "-o", "-", "--timeout", "5", env=shell.environment)

    assert (done.returncode, done.stderr) == (0, b"")
    assert b"==== check" in done.stdout


def test_a_mount_point_is_checked_even_with_invalid_settings(shell: Shell, tmp_path: Path) -> None:
    del shell.environment["KEEP_LOCAL_STORE"]

    code, steps = check(shell, tmp_path / "none")

    assert code == 1
    assert steps["configuration"]["verdict"] == "FAILED"
    assert "mkdir -p" in steps["mount point"]["found"]


def test_a_bugreport_has_logs_and_versions_and_no_secrets(tmp_path: Path) -> None:
    reason = why_no_mounts()
    if reason is not None:
        pytest.skip(reason)
    mount = KeepfsMount(tmp_path)
    mount.path.mkdir()
    (tmp_path / ".config" / "arvados").mkdir(parents=True)
    (tmp_path / ".config" / "arvados" / "settings.conf").write_text(
        "ARVADOS_API_HOST=127.0.0.1:1\nARVADOS_API_TOKEN=v2/zzzzz-gj3su-bbbbbbbbbbbbbbb/inthefile\n"
    )
    (tmp_path / "token").write_text("v2/zzzzz-gj3su-ccccccccccccccc/inatokenfile\n")
    (tmp_path / ".config" / "keepfs").mkdir()
    (tmp_path / ".config" / "keepfs" / "config.toml").write_text(
        f'token-file = "{tmp_path / "token"}"\n'
    )
    mount.env = {"ARVADOS_API_TOKEN": TEST_TOKEN}
    mount.mount()
    with mount.log_file.open("a") as log:
        log.write(f"sent {TEST_TOKEN} and {SECRET}, inatokenfile; the last line of the log\n")
        log.write(f"{'a' * 32}+3+A{'d' * 40}@6a3b1f80 http://user:pass1word@host/\n")
    try:
        done = keepfs(
            *("bugreport", mount.path, "--keep-services", "http://u:pass2word@127.0.0.1:1"),
            *("-o", tmp_path / "report", "--timeout", "5"),
            env=mount.environment,
        )
    finally:
        mount.clean_up()

    assert done.returncode == 0, done.stderr
    report = (tmp_path / "report").read_text()
    assert os.stat(tmp_path / "report").st_mode & 0o777 == 0o600
    for each in ("==== versions", "pyfuse3 ", "==== check", "the last line of the log", "status"):
        assert each in report
    for secret in (
        *(TEST_TOKEN, UUID, SECRET, "bbbbbbbbbbb", "ccccccccccc", "inatokenfile"),
        *("d" * 40, "pass1word", "pass2word", "inthefile"),
    ):
        assert secret not in report, secret
