"""keepfs bugreport: one file with the facts that a developer needs, without secrets."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keepfs import __version__
from keepfs.cli import clients
from keepfs.cli.checking import WITH_WORDS, all_steps, limit_option, words_argument
from keepfs.cli.scrubbing import Scrubber
from keepfs.cli.steps import as_text
from keepfs.cli.values import FilledPath
from keepfs.keep.hashing import growing
from keepfs.mount import mountpoint, runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.mount.runtime import RunningMount

#: Most bytes of each log in a report, from its end.
_MOST_LOG = 512 * 1024
_LIBRARIES = ("pyfuse3", "trio", "requests", "urllib3", "cachetools", "click", "rich")
#: Prefixes of variables whose values are part of a report.
_NAMES = ("KEEP", "ARVADOS_", "XDG_", "SSL_CERT", "LANG", "LC_", "JOURNAL_STREAM", "PYTHON")


@click.command("bugreport", context_settings=WITH_WORDS)
@words_argument
@click.option(
    "-o",
    "--output",
    type=FilledPath(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write to this file; - is standard output.  [default: keepfs-bugreport-TIME.txt]",
)
@limit_option
def bugreport_command(words: tuple[str, ...], output: Path | None, timeout: float) -> None:
    """Write what a developer needs to find a fault into one file.

    That is the output of `keepfs check`, versions, variables, and for each
    running mount of this user its status and the end of its log. Tokens,
    signatures and passwords are removed. Names of files are not: read the
    report before you publish it.
    """
    text = Scrubber(_token_files(words)).scrubbed(
        "\n".join(f"==== {title}\n{body.rstrip()}\n" for title, body in _parts(words, timeout))
    )
    if output is not None and str(output) == "-":
        clients.print_line(text.rstrip("\n"))
        return
    now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    path = output or Path(f"keepfs-bugreport-{now}.txt")
    with clients.written_whole(path) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text.encode(errors="backslashreplace"))  # any reader takes UTF-8
    click.echo(f"keepfs: wrote {path}; read it before you publish it", err=True)


def _parts(words: tuple[str, ...], timeout: float) -> Iterator[tuple[str, str]]:
    yield "versions", "\n".join(_versions())
    yield "check", as_text(all_steps(words, timeout, is_writing=False))
    yield (
        "variables",
        "\n".join(
            f"{name}={value}"
            for name, value in sorted(os.environ.items())
            if name.startswith(_NAMES)
        ),
    )
    yield (
        "mounts",
        "\n".join(
            f"{each.mountpoint} {each.kind} {each.device} {each.root}"
            for each in mountpoint.mounts()
            if each.kind == mountpoint.FILE_SYSTEM_TYPE
        ),
    )
    for running in runtime.find_all():
        yield f"run file of {running.mountpoint}", str(running)
        yield f"status of {running.mountpoint}", _status(running, timeout)
        yield f"log of {running.mountpoint}", _log_of(running)


def _versions() -> Iterator[str]:
    yield f"keepfs {__version__} at {Path(__file__).parents[1]}"
    yield f"Python {sys.version} ({sys.executable})"
    yield f"{platform.platform()}, glibc {platform.libc_ver()[1]}, user {os.geteuid()}"
    for name in _LIBRARIES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name}: not installed"
    is_shared = growing.shared_digest is not None
    yield f"MD5 by {'the C extension' if is_shared else 'hashlib: the C extension is missing'}"
    program = shutil.which("fusermount3")
    yield "no fusermount3" if program is None else _output_of([program, "--version"], 10.0)


def _status(running: RunningMount, timeout: float) -> str:
    """Return the output of `keepfs status`, which asks the mount's control socket."""
    command = [sys.executable, "-m", "keepfs", "status", running.mountpoint]
    return _output_of(command, timeout)


def _output_of(command: list[str], timeout: float) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - this keepfs, or fusermount3
            command,
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout + done.stderr).strip()


def _log_of(running: RunningMount) -> str:
    if not running.log_file:
        return "it logs to standard error, or to the journal: journalctl -t keepfs"
    try:
        with Path(running.log_file).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _MOST_LOG))
            return file.read().decode(errors="replace")
    except OSError as error:
        return str(error)


def _token_files(words: tuple[str, ...]) -> list[Path]:
    """Return the files that may have a token: from options, variables and configuration files."""
    from keepfs.config import options  # noqa: PLC0415 - here alone

    found = [os.environ.get("KEEPFS_TOKEN_FILE", "")]
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == "--token-file":
            found.append(following)
        elif word.startswith("--token-file="):
            found.append(word.partition("=")[2])
        elif "token-file=" in word or "token_file=" in word:
            found += [
                each.partition("=")[2]
                for each in word.split(",")
                if each.startswith(("token-file=", "token_file="))
            ]
    found += map(str, options.SYSTEM_DIRECTORY.glob("*.token"))
    try:
        file = options.default_config_file()
        if file is not None:
            found.append(str(options.read_config_file(file).get("token-file", "")))
    except options.OptionsError:
        pass
    return [Path(each).expanduser() for each in found if each]
