"""mount.keepfs: what mount(8) and umount(8) run for a file system of the type keepfs."""

from __future__ import annotations

import getopt
import os
import sys
from pathlib import Path
from typing import NoReturn

import click

import keepfs.cli
from keepfs.config.arvados import load_settings
from keepfs.messages import of_commands

#: Sources that name no store: the settings name it.
_NO_SOURCES = frozenset({"", "none", "keepfs"})
_USAGE = "usage: mount.keepfs SOURCE MOUNTPOINT [-fnsv] [-o OPTIONS] [-t TYPE]"
#: The exit code of mount(8) for a wrong call.
_WRONG_CALL = 1


def main() -> NoReturn:
    """Mount, or unmount if the program's name begins with `umount`; exit as mount(8) does.

    The exit codes are 0 for success, 1 for a wrong call or option, and 32 for a failure.
    """
    is_unmounting = Path(sys.argv[0]).name.startswith("umount")
    try:
        if is_unmounting:
            sys.argv = _unmount_call(sys.argv[1:])
        else:
            sys.argv = _mount_call(sys.argv[1:])
    except (getopt.GetoptError, click.UsageError) as error:
        message = error.message if isinstance(error, click.UsageError) else f"{error}; {_USAGE}"
        click.echo(f"mount.keepfs: {message}", err=True)
        sys.exit(_WRONG_CALL)
    try:
        keepfs.cli.main()
    except SystemExit as leaving:
        # As mount(8): 1 for a wrong option, 32 for a mount that failed.
        sys.exit({0: 0, 1: 32, 2: _WRONG_CALL}.get(leaving.code or 0, leaving.code))  # type: ignore[arg-type]


def _mount_call(arguments: list[str]) -> list[str]:
    """Return the call of `keepfs mount`.

    Raises:
        click.UsageError: The call or its source is wrong.
        getopt.GetoptError: There is an option that mount(8) doesn't pass.
    """
    flags, rest = getopt.gnu_getopt(arguments, "fnsvo:t:N:")
    if len(rest) != 2:  # noqa: PLR2004 - source and mount point
        raise click.UsageError(
            of_commands.USAGE(text=f"needs a source and a mount point; {_USAGE}")
        )
    if any(flag == "-N" for flag, _ in flags):
        raise click.UsageError(
            of_commands.USAGE(text="can't mount in another namespace; use nsenter")
        )
    if any(flag == "-f" for flag, _ in flags):
        sys.exit(0)  # fake: do everything except the mount itself
    words = [value for flag, value in flags if flag == "-o"]
    if any(flag == "-s" for flag, _ in flags):
        words = _known(words)
    options = [each for text in words for each in ("-o", text)]
    source, where = rest
    return ["keepfs", "mount", *_store_of(source, ",".join(words)), *options, "--", where]


def _store_of(source: str, words: str) -> list[str]:
    """Return the options that a source stands for; for a host, set the environment.

    Raises:
        click.UsageError: The settings have the token of another cluster.
    """
    if source in _NO_SOURCES:
        return []
    if source.startswith("/"):
        return ["--local-store", source]
    if "://" in source:
        return ["--keep-services", source]
    settings = load_settings()
    if settings.api_host != source:
        if settings.api_host and "token-file=" not in words:
            raise click.UsageError(
                of_commands.OPTIONS_CONFLICT(
                    text=f"the source is {source}, and the settings have the token of"
                    f" {settings.api_host} ({settings.origin('ARVADOS_API_HOST')}); give the"
                    " other: -o token-file=FILE"
                )
            )
        # The services of the settings are another cluster's.
        os.environ.update(ARVADOS_API_HOST=source, ARVADOS_KEEP_SERVICES="", ARVADOS_KEEP_PROXY="")
    return ["--local-store", ""]


def _known(words: list[str]) -> list[str]:
    """Return the options that `keepfs mount` has or ignores; `mount -s` drops the others."""
    from keepfs.cli.fstab_words import is_known_word, split_words  # noqa: PLC0415 - on use
    from keepfs.cli.mounting import mount_command  # noqa: PLC0415 - on use

    return [
        each.replace("\\", "\\\\").replace(",", "\\,")
        for text in words
        for each in split_words(text)
        if is_known_word(each, mount_command)
    ]


def _unmount_call(arguments: list[str]) -> list[str]:
    """Return the call of `keepfs unmount`; with -l or -f, replace this process by umount(8).

    Raises:
        click.UsageError: The call is wrong.
        getopt.GetoptError: There is an option that umount(8) doesn't pass.
    """
    flags, rest = getopt.gnu_getopt(arguments, "flnrvt:N:")
    if len(rest) != 1:
        raise click.UsageError(
            of_commands.USAGE(text="needs a mount point; usage: umount.keepfs MOUNTPOINT [-flnrv]")
        )
    given = [flag for flag, _ in flags]
    if "-l" in given or "-f" in given:
        kept = [flag for flag in given if flag in {"-l", "-f"}]
        os.execvp("umount", ["umount", "-i", *kept, "--", rest[0]])  # noqa: S606, S607 - no shell
    return ["keepfs", "unmount", "--", rest[0]]
