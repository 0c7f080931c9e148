"""The command line: the table of commands, whose modules are imported on use."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click
from click.exceptions import NoArgsIsHelpError
from click.shell_completion import CompletionItem

from keepfs import __version__
from keepfs.cli import variables
from keepfs.messages import of_commands
from keepfs.messages.message import ids_in

#: Exit code after an interrupt, as in shells: 128 + SIGINT.
_INTERRUPTED = 130

#: Command name: the module with its click command, and the first line of its help. The line is
#: here so that --help and completions need not import every command; a test compares it.
_COMMANDS = {
    "mount": ("keepfs.cli.mounting", "Mount Keep on the directory MOUNTPOINT."),
    "unmount": ("keepfs.cli.unmounting", "Store everything and unmount MOUNTPOINT."),
    "status": (
        "keepfs.cli.status",
        "Show what the mount on MOUNTPOINT does, or all mounts of this user.",
    ),
    "put": ("keepfs.cli.put_get", "Store each FILE and print its locator."),
    "get": ("keepfs.cli.put_get", "Write verified blocks to standard output."),
    "stat": ("keepfs.cli.asking", "Print the size and locator of each block."),
    "verify": ("keepfs.cli.asking", "Make every service check its copies."),
    "where": ("keepfs.cli.asking", "Show which services have each block."),
    "unsaved": ("keepfs.cli.unsaved_files", "List, retry, export or drop unstored files."),
    "locate": ("keepfs.cli.locate", "Print the locator of each FILE in a mount."),
    "uploads": (
        "keepfs.cli.uploads",
        "List the files of upload/, mounted or not: size, state, blocks, expiry and path.",
    ),
    "manifest": (
        "keepfs.cli.committing",
        "Print the manifest of PATH, a file or folder in upload/ of a mount.",
    ),
    "commit": (
        "keepfs.cli.committing",
        "Make a collection of PATH, a file or folder in upload/ of a mount.",
    ),
    "import": (
        "keepfs.cli.importing",
        "Put the files of a collection into DIR, in upload/ of a mount, as names.",
    ),
    "renew": (
        "keepfs.cli.renewing",
        "Keep what is stored in upload/ of MOUNTPOINT, and renew its signatures.",
    ),
    "service": ("keepfs.cli.servicing", "Set up mounts as services of systemd, and /etc/fstab."),
    "warm": ("keepfs.cli.disk_caching", "Fetch blocks into the disk cache, ahead of a job."),
    "cache": (
        "keepfs.cli.disk_caching",
        "Show the disk cache, verify every block in it, or remove them all.",
    ),
    "explain": ("keepfs.cli.explaining", "Explain a message: its cause, and what to do."),
    "check": ("keepfs.cli.checking", "Check what a mount needs, step by step."),
    "bugreport": (
        "keepfs.cli.bugreport",
        "Write what a developer needs to find a fault into one file.",
    ),
    "completion": (
        "keepfs.cli.completing",
        "Print the script that completes keepfs's commands and options in SHELL.",
    ),
    "man": ("keepfs.cli.man", "Show the man page of COMMAND, or of keepfs."),
}
#: Commands that run although a variable is misspelt: they report it, or read none.
_ANY_VARIABLES = frozenset(("check", "bugreport", "explain", "completion", "man"))
#: Other names of commands.
_ALIASES = {"umount": "unmount"}


class _Commands(click.Group):
    """A group that imports a command's module on use.

    So `keepfs --version` imports neither trio nor requests.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """Return the names of the commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Load a command."""
        cmd_name = _ALIASES.get(cmd_name, cmd_name)
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands for the help."""
        limit = formatter.width - 6 - max(map(len, _COMMANDS))
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, click.Command(name, help=line).get_short_help_str(limit))
                    for name, (_, line) in _COMMANDS.items()
                ]
            )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands, or options, that begin with a text."""
        found = [
            CompletionItem(name, help=line)
            for name, (_, line) in _COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)


# After \b click does not rewrap the lines that follow.
_HELP = """Mount Arvados Keep, a content-addressed block store, as a file system.

\b
keepfs mount --local-store ~/blocks /mnt/keep   mount; keep the blocks on this machine
cp FILE /mnt/keep/upload/                       store a file
keepfs locate /mnt/keep/upload/FILE             print its locator
cat /mnt/keep/by_id/LOCATOR                     read the block, verified
keepfs commit /mnt/keep/upload/FILE --name N    make it a collection, to keep it
keepfs unmount /mnt/keep                        wait until everything is stored, unmount
"""


@click.group(cls=_Commands, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="keepfs", message="%(prog)s %(version)s")
@click.pass_context
def keepfs(context: click.Context) -> None:
    """Run a command."""
    if context.invoked_subcommand not in _ANY_VARIABLES:
        _check_variables()


def main() -> NoReturn:
    """Run the command line and exit: 0 success, 1 failure, 2 usage error, 130 interrupted.

    A command may exit with another code: `check` with 3, `mount --exec` with that of its program.
    """
    _read_names_as_bytes()
    _open_what_is_closed()
    try:
        code = keepfs.main(standalone_mode=False, prog_name="keepfs")
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        code = _INTERRUPTED
    except click.ClickException as error:
        _show(error)
        code = error.exit_code
    except BrokenPipeError:  # the reader has closed the pipe: no message
        code = 1
    except OSError as error:
        from keepfs.fs.failure_text import failure_text  # noqa: PLC0415 - on use

        click.echo(f"Error: {failure_text(error)}", err=True)
        code = 1
    except SystemExit as leaving:
        code = leaving.code
        if isinstance(code, str):  # as in Python, a text is an error
            click.echo(f"Error: {of_commands.USAGE(text=code)}", err=True)
            code = 1
    _forget_output()
    sys.exit(code if isinstance(code, int) else 0)


def _show(error: click.ClickException) -> None:
    """Print an error with the id of its message; an error of click itself gets its id here.

    A group without a command is no error with a message: its help is printed.
    """
    text = error.format_message()
    if isinstance(error, NoArgsIsHelpError):
        click.echo(text, err=True)
        return
    if not ids_in(text):
        is_value = isinstance(error, click.BadParameter)
        is_value = is_value and not isinstance(error, click.MissingParameter)
        text = (of_commands.BAD_VALUE if is_value else of_commands.USAGE)(text=text)
    if isinstance(error, click.UsageError):
        click.UsageError(text, error.ctx).show()
    else:
        click.ClickException(text).show()


def _check_variables() -> None:
    """Refuse a variable KEEPFS_... that no option reads: it is probably misspelt.

    Raises:
        click.UsageError: There is such a variable.
    """
    for name in variables.unknown(os.environ):
        raise click.UsageError(variables.text_of_unknown(name))


def _read_names_as_bytes() -> None:
    """Restart Python in UTF-8 mode if the locale has another encoding.

    File names are bytes. In UTF-8, Python converts them to text and back without
    loss. In some other encodings two names become the same text.
    """
    if sys.getfilesystemencoding() != "utf-8" and "PYTHONUTF8" not in os.environ:
        with open("/proc/self/cmdline", "rb") as file:  # noqa: PTH123 - before anything is imported
            arguments = file.read().split(b"\0")[:-1]
        os.execve(sys.executable, arguments, {**os.environ, "PYTHONUTF8": "1"})  # noqa: S606


def _forget_output() -> None:
    """Redirect standard output if it can't be flushed, so that the exit does not retry it."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _open_what_is_closed() -> None:
    """Open closed standard streams, so that no other file gets their descriptors.

    Writing to a closed standard output still fails: it becomes /dev/full.
    """
    for number, device in enumerate((os.devnull, "/dev/full", os.devnull)):
        try:
            os.fstat(number)
        except OSError:
            os.open(device, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - stays open until exit
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - stays open until exit
