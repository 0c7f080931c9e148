"""keepfs locate: the locators of files in a mount."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keepfs.cli import clients
from keepfs.cli.values import FilledPath
from keepfs.keep.locator import KeepLocator
from keepfs.messages import of_commands, of_uploads
from keepfs.mount import mountpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepfs.collections.manifest import Manifest


@click.command("locate")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=FilledPath(path_type=Path, dir_okay=False),
    help="Write the locators of one FILE in upload/ to this file, a line each; any number.",
)
@click.option("--manifest", "is_manifest", is_flag=True, help="With --output: write a manifest.")
@clients.json_option
@clients.zero_option
def locate_command(
    files: tuple[str, ...], output: Path | None, *, is_manifest: bool, is_json: bool, null: bool
) -> None:
    """Print the locator of each FILE in a mount.

    A line of output is the locator, a tab, and the name of FILE. The list of a
    file over about 44 GiB is too long for that: --output writes it. A file that
    shares a block with others, as in many collections, has the locator of that
    block: only the manifest says which part of the block it is.
    """
    if is_manifest and output is None:
        raise click.UsageError(
            of_commands.OPTIONS_CONFLICT(
                text="--manifest goes with --output; see keepfs manifest, too"
            )
        )
    if is_json and output is not None:
        raise click.UsageError(
            of_commands.OPTIONS_CONFLICT(text="--output writes a list or a manifest, not --json")
        )
    if output is not None:
        if len(files) > 1:
            raise click.UsageError(of_commands.OPTIONS_CONFLICT(text="--output takes one FILE"))
        _write_list(Path(files[0]), output, is_manifest=is_manifest)
        return
    failed = clients.Failures()
    for name in files:
        with failed.noted():
            clients.check_name(name, null=null or is_json)
            located = locator_of(name)
            if is_json:
                locators = located.split(",")
                size = sum(KeepLocator(each).size or 0 for each in locators)
                found = {"file": name, "size": size, "locators": locators}
                clients.print_json(found, null=null)
            else:
                clients.print_line(f"{located}\t{name}", null=null)
    failed.exit()


def _write_list(path: Path, output: Path, *, is_manifest: bool) -> None:
    """Write the locators of a file, read from the catalog once the file is stored."""
    from keepfs.cli import uploaded_files  # noqa: PLC0415 - 30 ms that `locate FILE` needn't spend

    where = uploaded_files.path_in_upload(path, is_following=True)
    if not where.path.is_file():
        raise click.ClickException(of_uploads.NO_BLOCK_FILE(path=path))
    with clients.ended_by_signals():
        manifest = uploaded_files.stored_manifest(
            where, is_following=False, timeout=uploaded_files.PATIENCE, is_signed=False
        )
        if is_manifest:
            pieces = manifest.pieces()
        else:
            pieces = (f"{name}\n".encode() for name in _block_names(manifest))
        with clients.written_whole(output) as file:
            file.writelines(pieces)


def _block_names(manifest: Manifest) -> Iterable[str]:
    """Return the locators of one file: each block once, if the file has parts of blocks."""
    ranges = [each for file in manifest.files() for each in file.ranges()]
    is_packed = any(each.length != KeepLocator(each.locator).size for each in ranges)
    names = [each.locator for each in ranges]
    return dict.fromkeys(names) if is_packed else names


def locator_of(name: str) -> str:
    """Return the locators of a file in a mount, joined by commas. Waits for the mount.

    Raises:
        click.ClickException: It isn't in a mount, not stored yet, or its list is too long.
        OSError: Its attributes can't be read.
    """
    device = os.stat(name).st_dev  # noqa: PTH116 - a name may be undecodable in this locale
    # On other file systems the attributes may be copies that do not match the bytes.
    if mountpoint.kind_of_device(device) != mountpoint.FILE_SYSTEM_TYPE:
        raise click.ClickException(
            of_uploads.NOT_IN_MOUNT(path=name, where="a keepfs mount; copy it to upload/ of one")
        )
    try:
        state, locator = _attribute(name, "state"), _attribute(name, "locator")
    except OSError as error:
        if error.errno not in {errno.E2BIG, errno.ERANGE}:
            raise
        raise click.ClickException(of_uploads.LIST_TOO_LONG(path=name)) from error
    if not state:
        raise click.ClickException(of_uploads.NO_BLOCK_FILE(path=name))
    if not locator:
        why = _attribute(name, "error") or "close it, or wait until it is stored"
        raise click.ClickException(of_uploads.NOT_STORED_YET(path=name, state=state, reason=why))
    return locator


def _attribute(name: str, attribute: str) -> str:
    try:
        return os.getxattr(name, f"user.keep.{attribute}").decode()
    except OSError as error:
        if error.errno in {errno.ENODATA, errno.ENOTSUP}:
            return ""
        raise
