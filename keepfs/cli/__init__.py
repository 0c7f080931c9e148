"""The command line: which commands there are; each is loaded when it is used."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import NoReturn

import click

from keepfs import __version__
from keepfs.config.options import CONFIG_KEYS

_PREFIX = "KEEPFS_"
#: Exit code of what was interrupted, as shells have it: 128 + SIGINT.
_INTERRUPTED = 130

#: Command → the module that has a click command of that name.
_COMMANDS = {
    "mount": "keepfs.cli.mounting",
    "unmount": "keepfs.cli.mounting",
    "put": "keepfs.cli.put_get",
    "get": "keepfs.cli.put_get",
    "stat": "keepfs.cli.asking",
    "verify": "keepfs.cli.asking",
    "where": "keepfs.cli.asking",
    "unsaved": "keepfs.cli.unsaved_files",
    "locate": "keepfs.cli.locate",
    "renew": "keepfs.cli.renewing",
}
#: Other names of commands, for fingers that are used to them.
_ALIASES = {"umount": "unmount"}


class _Commands(click.Group):
    """A group that imports a command's module when the command is asked for.

    So `keepfs --version` needs neither trio nor requests.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """Return the commands' names."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Load a command."""
        cmd_name = _ALIASES.get(cmd_name, cmd_name)
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(module), f"{cmd_name}_command")
        return command


# \b is click's mark for lines that stay as they are.
_HELP = """Mount Arvados Keep, a content-addressed block store, as a file system.

\b
keepfs mount --local-store ~/blocks /mnt/keep   mount, with blocks on this machine
cp FILE /mnt/keep/upload/                       store a file
keepfs locate /mnt/keep/upload/FILE             learn its locator
cat /mnt/keep/by_id/LOCATOR                     read it back, verified
keepfs unmount /mnt/keep
"""


@click.group(cls=_Commands, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="keepfs", message="%(prog)s %(version)s")
def keepfs() -> None:
    """Run one of the commands."""
    _check_variables()


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 used wrongly, 130 interrupted."""
    _read_names_as_bytes()
    _open_what_is_closed()
    try:
        code = keepfs.main(standalone_mode=False, prog_name="keepfs")
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        code = _INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BrokenPipeError:  # a reader that goes away has what it wanted
        code = 1
    except OSError as error:
        click.echo(f"Error: {error}", err=True)
        code = 1
    except SystemExit as leaving:
        code = leaving.code
    _forget_output()
    sys.exit(code if isinstance(code, int) else 0)


def _check_variables() -> None:
    """Refuse a variable KEEPFS_... that no option reads: it is misspelt, and would do nothing.

    Raises:
        click.UsageError: There is one.
    """
    known = {f"{_PREFIX}{key.replace('-', '_').upper()}" for key in (*CONFIG_KEYS, "config")}
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"the environment has {name}, which no option reads{hint}")


def _read_names_as_bytes() -> None:
    """Start again in UTF-8 mode where the locale has another encoding.

    Names of files are bytes. Python turns them into text and back without loss in
    UTF-8, but not in every locale: in some, two names become one.
    """
    if sys.getfilesystemencoding() != "utf-8" and "PYTHONUTF8" not in os.environ:
        with open("/proc/self/cmdline", "rb") as file:  # noqa: PTH123 - before anything is imported
            arguments = file.read().split(b"\0")[:-1]
        os.execve(sys.executable, arguments, {**os.environ, "PYTHONUTF8": "1"})  # noqa: S606


def _forget_output() -> None:
    """Let the interpreter not try again at its end to write what can't be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _open_what_is_closed() -> None:
    """Have something behind the standard streams, so that nothing else gets their numbers.

    What is written to a closed one fails, as it should.
    """
    for number, device in enumerate((os.devnull, "/dev/full", os.devnull)):
        try:
            os.fstat(number)
        except OSError:
            os.open(device, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for good
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - ditto
