"""Progress on a terminal, completions of shells, and JSON lines of commands."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from keepfs.cli import keepfs as group
from keepfs.cli import man
from keepfs.keep.caching.disk.disk_cache import DiskCache
from tests.cli.test_cli import FOO, Shell, stored
from tests.mounted.mounts import keepfs

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def at_terminal(
    shell: Shell, *arguments: str | Path, shows_output: bool = False
) -> tuple[bytes, bytes]:
    """Run a command whose standard error is a terminal; return its output and what is shown.

    With `shows_output` its output goes to the terminal, too.
    """
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "keepfs", *map(str, arguments)],
            stdout=theirs if shows_output else subprocess.PIPE,
            stderr=theirs,
            env={**shell.environment, "TERM": "xterm", "COLUMNS": "100", "MANPAGER": "cat"},
            check=True,
            timeout=60,
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the other side is closed, and all is read
                break
    finally:
        os.close(ours)
    return done.stdout, shown


def test_progress_is_shown_on_a_terminal_only(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"foo")

    output, shown = at_terminal(shell, "put", tmp_path / "file")
    _, silent = at_terminal(shell, "put", "--no-progress", tmp_path / "file")
    piped = keepfs("put", tmp_path / "file", env=shell.environment)
    forced = keepfs("put", "--progress", tmp_path / "file", env=shell.environment)

    assert output == f"{FOO}\t{tmp_path / 'file'}\n".encode()
    assert b"storing" in shown
    assert silent == b""
    assert piped.stderr == b""
    assert b"storing" in forced.stderr
    assert forced.stdout == piped.stdout == output


@pytest.mark.parametrize("command", ["stat", "verify", "where"])
def test_commands_with_requests_show_progress(command: str, shell: Shell) -> None:
    stored(shell, b"foo")

    assert b"asking" in at_terminal(shell, command, FOO)[1]


def test_each_command_that_may_take_minutes_has_the_option() -> None:
    long = {"put", "get", "stat", "verify", "where", "unmount", "manifest", "commit", "import",
            "uploads", "renew", "warm", "cache"}  # fmt: skip
    context = click.Context(group)
    having = {
        name
        for name in group.list_commands(context)
        if (command := group.get_command(context, name)) is not None
        and any("--progress" in each.opts for each in command.params)
    }

    assert having == long


def test_get_shows_progress_when_it_writes_a_file(shell: Shell, tmp_path: Path) -> None:
    stored(shell, b"foo")

    assert b"reading" in at_terminal(shell, "get", "-o", tmp_path / "out", FOO)[1]
    assert (tmp_path / "out").read_bytes() == b"foo"


def test_the_check_of_a_disk_cache_shows_progress(shell: Shell, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    DiskCache(cache, 10**6).close()

    output, shown = at_terminal(shell, "cache", "verify", "--disk-cache-dir", cache)

    assert output == f"{cache}: 0 blocks, 0 B verified\n".encode()
    assert b"verifying" in shown


def test_put_stat_verify_and_where_print_json(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"foo")

    def said(*arguments: str) -> object:
        return json.loads(shell.run(*arguments).stdout)

    put = said("put", "--json", str(tmp_path / "file"))
    assert put == {"file": str(tmp_path / "file"), "size": 3, "locators": [FOO]}
    assert said("stat", "--json", FOO) == {"locator": FOO, "size": 3}
    for command in ("verify", "where"):
        found = said(command, "--json", FOO)
        assert isinstance(found, dict)
        assert found["locator"] == FOO
        [service] = found["services"]
        assert service["seconds"] >= 0
        del service["seconds"]
        assert service == {"service": f"local:{shell.store}", "state": "ok", "reason": ""}


def test_the_help_of_completion_has_a_line_for_each_shell(shell: Shell) -> None:
    lines = shell.run("completion", "--help").stdout.decode().splitlines()
    first_words = [line.split()[0] for line in lines if "keepfs completion" in line]

    assert first_words == ["Usage:", "bash:", "zsh:", "fish:"]


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_shells_complete_commands(kind: str, shell: Shell) -> None:
    script = shell.run("completion", kind).stdout

    assert b"_KEEPFS_COMPLETE" in script
    if kind == "bash":
        subprocess.run(["bash", "-n"], input=script, check=True)
    shell.environment |= {
        "_KEEPFS_COMPLETE": f"{kind}_complete",
        "COMP_WORDS": "keepfs ver",
        "COMP_CWORD": "1" if kind != "fish" else "ver",
    }
    assert b"verify" in shell.run().stdout


def test_man_prints_the_page_of_a_command_and_writes_all(shell: Shell, tmp_path: Path) -> None:
    pages = dict(man.pages())

    assert shell.run("man").stdout.decode() == pages["keepfs.1"]
    assert shell.run("man", "unsaved", "list").stdout.decode() == pages["keepfs-unsaved-list.1"]
    written = shell.run("man", "--output", tmp_path / "man").stdout.decode().splitlines()
    assert {Path(each).name: Path(each).read_text() for each in written} == pages
    assert "there is no command nosuch" in shell.error("man", "nosuch", code=2)
    assert "no COMMAND" in shell.error("man", "mount", "--output", tmp_path / "man", code=2)


@pytest.mark.skipif(shutil.which("man") is None, reason="there is no man")
def test_man_shows_a_page_on_a_terminal(shell: Shell) -> None:
    _, shown = at_terminal(shell, "man", "unmount", shows_output=True)

    assert b"KEEPFS-UNMOUNT(1)" in shown
    assert b".SH" not in shown


def test_each_command_has_a_man_page(tmp_path: Path) -> None:
    written = {path.name: path.read_text() for path in man.write(tmp_path / "man")}

    assert {"keepfs.1", "keepfs-mount.1", "keepfs-check.1", "keepfs-unsaved-list.1"} <= set(
        written
    )
    mount = written["keepfs-mount.1"]
    assert mount.startswith('.TH "KEEPFS-MOUNT" "1"')
    assert "\\fB\\-\\-cache\\-size" in mount
    for name, text in written.items():
        assert not re.search(r"^[.'](?!TH |SH |PP|TP|nf|fi)", text, re.MULTILINE), name
    if shutil.which("groff") is not None:
        for name in written:
            done = subprocess.run(
                ["groff", "-man", "-Tascii", "-ww", tmp_path / "man" / name],
                capture_output=True,
                check=True,
            )
            assert done.stderr == b"", name
