"""Provokes the messages about the command line and files."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from pyfuse3 import FUSEError

from keepfs.cli import executing
from keepfs.fs.requests import Requests
from tests.messages.provoking import provokes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.test_cli import Shell

pytestmark = pytest.mark.slow


def said(shell: Shell, *arguments: str | Path, expect: int = 1, **variables: str) -> str:
    """Run a command that fails; return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "keepfs", *map(str, arguments)],
        capture_output=True,
        check=False,
        env={**shell.environment, **variables},
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.returncode == expect, done
    assert b"Traceback" not in done.stderr
    return done.stderr.decode()


@provokes("usage")
def test_usage(shell: Shell) -> str:
    return said(shell, "nosuch", expect=2)


@provokes("bad-value")
def test_bad_value(shell: Shell) -> str:
    return said(shell, "get", "--cache-size", "much", "x", expect=2)


@provokes("options-conflict")
def test_options_conflict(shell: Shell) -> str:
    return said(shell, "locate", "--manifest", "x", expect=2)


@provokes("unknown-variable")
def test_unknown_variable(shell: Shell) -> str:
    return said(shell, "get", "x", expect=2, KEEPFS_CACHE_SISE="1")


@provokes("bad-config")
def test_bad_config(shell: Shell, tmp_path: Path) -> str:
    return said(shell, "get", "--config", tmp_path / "none.toml", "x", expect=2)


@provokes("nothing-configured")
def test_nothing_configured(shell: Shell) -> str:
    return said(shell, "get", "x", expect=2, KEEP_LOCAL_STORE="")


@provokes("no-home")
def test_no_home() -> str:
    code = (
        "import os, pwd, click\nfrom pathlib import Path\nfrom keepfs.cli import settings\n"
        "import platformdirs\nos.environ.pop('HOME')\nif os.geteuid() == 0: os.setuid(54321)\n"
        "try: print(settings.default_state_dir(Path('/mnt')))\n"
        "except click.UsageError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    if "[no-home]" not in done.stdout and os.geteuid() != 0:
        pytest.skip("this user has a home directory, and only root can be another user")
    return done.stdout


@provokes("service-not-installed")
def test_service_not_installed() -> str:
    code = (
        "import os, click\nfrom keepfs.cli import servicing\n"
        "for each in ('HOME', 'XDG_CONFIG_HOME'): os.environ.pop(each, None)\n"
        "if os.geteuid() == 0: os.setuid(54321)\n"
        "try: print(servicing._configuration_directory(is_user=True))\n"
        "except click.UsageError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    if "[" not in done.stdout and os.geteuid() != 0:
        pytest.skip("this user has a home directory, and only root can be another user")
    return done.stdout


@provokes("no-such-path")
def test_no_such_path(shell: Shell, tmp_path: Path) -> str:
    return said(shell, "mount", "--state-dir", "~nosuchuser/x", tmp_path, expect=2)


@provokes("disk-cache-off")
def test_disk_cache_off(shell: Shell, tmp_path: Path) -> str:
    words = ("put", "--disk-cache-dir", tmp_path / "cache")
    file = shell.file("file", b"content")
    text = said(shell, *words, file, expect=0)
    for quiet in (("--disk-cache", "off"), ("--disk-cache", "1MiB")):
        assert said(shell, *words, *quiet, file, expect=0) == ""
    environment = {"KEEPFS_DISK_CACHE_DIR": str(tmp_path / "cache")}
    assert said(shell, "put", file, expect=0, **environment) == ""
    assert text.count("\n") == 1
    wrong = said(shell, "put", "--disk-cache", "yes", file, expect=2)
    assert ", auto or off [bad-value]" in wrong
    return text


@provokes("no-working-directory")
def test_no_working_directory(shell: Shell, tmp_path: Path) -> str:
    gone = tmp_path / "gone"
    gone.mkdir()
    file = shell.file("file", b"content")
    service = "--keep-services http://127.0.0.1:9/ --retries 0"
    script = f"""cd {gone} && rmdir {gone} || exit
        k() {{ {sys.executable} -m keepfs "$@" || echo "exit code $?" >&2; }}
        k mount .
        k unmount mnt
        k mount --state-dir s {tmp_path}
        k get -o out d41d8cd98f00b204e9800998ecf8427e+0
        k bugreport
        k put {file}
        KEEP_LOCAL_STORE= k put {service} {file}
    """
    done = subprocess.run(
        ["sh", "-c", script],
        capture_output=True,
        check=False,
        env={**shell.environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    lines = done.stderr.decode().splitlines()
    assert sum("[no-working-directory]" in line for line in lines) == 5, lines
    # The last two need no working directory.
    assert done.stdout.startswith(b"9a0364b9e99bb480dd25e1f0284c8555+7\t")
    assert "[unreachable]" in done.stderr.decode()
    return done.stderr.decode()


@provokes("bad-locator")
def test_bad_locator(shell: Shell) -> str:
    return said(shell, "get", "no-locator", expect=2)


@provokes("bad-collection")
def test_bad_collection(shell: Shell) -> str:
    return said(shell, "import", "no-collection", expect=2)


@provokes("bad-name")
def test_bad_name(shell: Shell) -> str:
    return said(shell, "put", "")


@provokes("file-failed")
def test_file_failed(shell: Shell) -> str:
    return said(shell, "put", "/nonexistent")


@provokes("output-failed")
def test_output_failed(shell: Shell, tmp_path: Path) -> str:
    (tmp_path / "file").write_text("foo")
    subprocess.run(
        [sys.executable, "-m", "keepfs", "put", tmp_path / "file"],
        env=shell.environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return said(shell, "get", "-o", "/nonexistent/x", "acbd18db4cc2f85cedef654fccc4a4d8+3")


@provokes("no-input")
def test_no_input(shell: Shell) -> str:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m keepfs put - <&-"],
        env=shell.environment,
        capture_output=True,
        check=False,
    )
    return done.stderr.decode()


@provokes("binary-output")
def test_binary_output(shell: Shell, tmp_path: Path) -> str:
    (tmp_path / "file").write_bytes(b"\0\1\2")
    locator = subprocess.run(
        [sys.executable, "-m", "keepfs", "put", tmp_path / "file"],
        env=shell.environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\t")[0]
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "keepfs", "get", locator],
        env=shell.environment,
        stdout=theirs,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(ours)
    os.close(theirs)
    return done.stderr.decode()


@provokes("no-program")
def test_no_program(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    assert executing.run_program(["/nonexistent"], tmp_path) != 0
    return capfd.readouterr().err


@provokes("unknown-message")
def test_unknown_message(shell: Shell) -> str:
    return said(shell, "explain", "nosuch", expect=2)


@provokes("unexpected", "request-timed-out")
def test_requests_that_fail(caplog: pytest.LogCaptureFixture) -> str:
    async def fail() -> None:
        raise ZeroDivisionError

    async def ask() -> None:
        requests = Requests(0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(requests.watch)
            for work in (fail, trio.sleep_forever):
                with pytest.raises(FUSEError):
                    await requests.answer("read", work(), 0)
            nursery.cancel_scope.cancel()

    with caplog.at_level(logging.WARNING):
        trio.run(ask)
    return "\n".join(caplog.messages)
