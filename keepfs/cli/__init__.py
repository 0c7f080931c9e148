"""The command line: which commands there are; each is loaded when it is used."""

from __future__ import annotations

import importlib
import os
import sys

import click

from keepfs import __version__

#: Command → the module that has a click command of that name.
_COMMANDS = {
    "mount": "keepfs.cli.mounting",
    "unmount": "keepfs.cli.mounting",
    "put": "keepfs.cli.blocks",
    "get": "keepfs.cli.blocks",
    "stat": "keepfs.cli.blocks",
    "verify": "keepfs.cli.blocks",
    "where": "keepfs.cli.blocks",
    "unsaved": "keepfs.cli.unsaved",
    "locate": "keepfs.cli.blocks",
}


class _Commands(click.Group):
    """A group that imports a command's module when the command is asked for.

    So `keepfs --version` needs neither trio nor requests.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """Return the commands' names."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Load a command."""
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


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 used wrongly."""
    _open_what_is_closed()
    try:
        keepfs.main(standalone_mode=True, prog_name="keepfs")
    except KeyboardInterrupt:
        sys.exit(130)


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
