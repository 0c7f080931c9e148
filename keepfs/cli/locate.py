"""keepfs locate: the locators of files in a mount."""

from __future__ import annotations

import errno
import os

import click

from keepfs.cli import clients
from keepfs.mount import mountpoint


@click.command("locate")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@clients.zero_option
def locate_command(files: tuple[str, ...], *, null: bool) -> None:
    """Print the locator of each FILE in a mount.

    A line of output is the locator, a tab, and the name of FILE.
    """
    failed = clients.Failures()
    for name in files:
        with failed.noted():
            clients.check_name(name, null=null)
            clients.print_line(f"{_locator_of(name)}\t{name}", null=null)
    failed.exit()


def _locator_of(name: str) -> str:
    device = os.stat(name).st_dev  # noqa: PTH116 - a name may be undecodable in this locale
    # On other file systems the attributes may be copies that do not match the bytes.
    if mountpoint.kind_of_device(device) != mountpoint.FILE_SYSTEM_TYPE:
        raise click.ClickException(f"{name} isn't in a keepfs mount; copy it to upload/ of one")
    state, locator = _attribute(name, "state"), _attribute(name, "locator")
    if not state:
        raise click.ClickException(f"{name} isn't a file of by_id/ or upload/")
    if not locator:
        why = _attribute(name, "error") or "close it, or wait until it is stored"
        raise click.ClickException(f"{name} isn't stored yet ({state}): {why}")
    return locator


def _attribute(name: str, attribute: str) -> str:
    try:
        return os.getxattr(name, f"user.keep.{attribute}").decode()
    except OSError as error:
        if error.errno in {errno.ENODATA, errno.ENOTSUP}:
            return ""
        raise
