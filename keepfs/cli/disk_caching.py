"""Commands: `keepfs warm` fills the disk cache, `keepfs cache` shows, verifies and clears it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from keepfs.cli import clients, progress, reporting
from keepfs.cli.cache_findings import CacheFindings
from keepfs.cli.settings import absolute, config_file, setting, store_settings
from keepfs.cli.values import FilledPath, InputFile
from keepfs.cli.warming import locators_named_by
from keepfs.collection_sources import collections_of
from keepfs.config.options import format_size
from keepfs.keep.caching.disk.block_folder import BlockFolder
from keepfs.keep.caching.disk.disk_cache import default_directory
from keepfs.keep.locator import KeepLocator
from keepfs.messages import of_commands, of_stores
from keepfs.renewing_store import RenewingStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.config.options import StoreOptions
    from keepfs.keep.caching.disk.disk_cache import DiskCache

#: Most seconds to wait for the disk, for each block and at the end.
_PATIENCE = 600.0


@click.command("warm")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option(
    "--from",
    "listed",
    type=InputFile(),
    help="Take the sources in this file too, or a manifest; - is standard input.",
)
@clients.json_option
@progress.progress_option
@store_settings
def warm_command(
    store: StoreOptions, sources: tuple[str, ...], listed: TextIO | None, *, is_json: bool
) -> None:
    """Fetch blocks into the disk cache, ahead of a job. Give --disk-cache.

    A SOURCE is a locator, a collection's uuid or portable data hash, or a file or folder in a
    mount, whose blocks are fetched with the settings of this command.
    """
    if not store.disk_cache:
        raise click.UsageError(
            of_commands.OPTIONS_CONFLICT(
                text="the disk cache is off; give its size with --disk-cache"
            )
        )
    failed = clients.Failures()
    named = [*sources, *(_locators_of(listed) if listed else ())]
    if not named:
        raise click.UsageError(
            of_commands.USAGE(
                text="give locators, collections or paths, or a file of them with --from"
            )
        )
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(clients.command_client(store, _PATIENCE))
        disk = client.block_cache.disk
        assert disk is not None  # noqa: S101 - the options turn it on
        stack.enter_context(_hurried(disk))

        def warm(locator: KeepLocator) -> None:
            with failed.noted():
                client.get_block(locator)  # waits until the writer of the disk takes the block

        renewing = RenewingStore(client, store)
        with collections_of(store, client, renewing) as collections:
            get = None if collections is None else collections.get
            texts = [text for each in named for text in locators_named_by(each, get, failed)]
        found = dict.fromkeys(clients.locators_in(texts, failed)) if texts else {}
        sizes = [each.size for each in found]
        total = None if None in sizes else sum(each or 0 for each in sizes)
        with progress.shown("warming", total, is_bytes=True) as advance:
            for locator, _ in clients.side_by_side(warm, found):
                advance(locator.size or 0)
        with progress.shown("writing to the disk"):
            disk.flush(_PATIENCE)
        counted = disk.statistics()
        missing = sum(1 for it in found if it.size != 0 and not disk.has(it.md5sum))
        if missing:
            reason = counted.problem or "they don't fit the budget, or the disk's free space"
            failed.note(
                of_stores.DISK_CACHE_INCOMPLETE(missing=missing, count=len(found), reason=reason)
            )
    if is_json:
        row = {
            "blocks": len(found),
            "size": sum(each.size or 0 for each in found),
            "missing": missing,
            "directory": str(disk.directory),
        }
        clients.print_json(row)
    failed.exit()


@contextlib.contextmanager
def _hurried(disk: DiskCache) -> Iterator[None]:
    """Let no fetch wait if the body fails or is interrupted: its thread would hold up the exit."""
    try:
        yield
    except BaseException:
        disk.end_waits()
        raise


#: The actions of `keepfs cache`, as progress is described.
_WORK = {"stat": "listing", "verify": "verifying", "clear": "removing"}


@click.command("cache")
@click.argument("action", type=click.Choice([*_WORK]), default="stat")
@setting(
    "--disk-cache-dir",
    type=FilledPath(path_type=Path, file_okay=False),
    help="The directory of the cache.  [default: ~/.cache/keepfs]",
)
@clients.json_option
@config_file
@progress.progress_option
def cache_command(action: str, disk_cache_dir: Path | None, *, is_json: bool) -> None:
    """Show the disk cache, verify every block in it, or remove them all.

    Mounts that use it go on. Damaged blocks are removed. Exits with 1 if verify found damage, or
    if a block or folder could not be listed, read or removed.
    """
    try:
        directory = absolute(disk_cache_dir) if disk_cache_dir else default_directory()
    except RuntimeError as error:
        raise click.UsageError(
            of_commands.USAGE(text="there is no home directory; give --disk-cache-dir")
        ) from error
    found = CacheFindings()
    count = total = 0
    with reporting.in_one_line():
        folder = _folder_in(directory, found, is_given=disk_cache_dir is not None)
        if folder is not None:
            with contextlib.closing(folder):
                count, total = _work_through(folder, action)
        said = {"stat": "", "verify": " verified", "clear": " removed"}[action]
        if is_json:
            row = {
                "directory": str(directory),
                "action": action,
                "blocks": count,
                "size": total,
                **found.row(),
            }
            clients.print_json(row)
        else:
            counted = f"{count} blocks, {format_size(total)}{said}{found.counts()}"
            clients.print_line(f"{directory}: {counted}")
        for each in found.lines():
            click.echo(each, err=True)
    if found:
        raise SystemExit(1)


def _folder_in(directory: Path, found: CacheFindings, *, is_given: bool) -> BlockFolder | None:
    """Open the folder of blocks in a directory; None if there is none, and none is made.

    Raises:
        click.ClickException: The user gave the directory, and it doesn't exist.
        OSError: The folder can't be opened.
    """
    try:
        return BlockFolder(directory, found.note_damage, found.note_failure, makes=False)
    except FileNotFoundError:
        if is_given and not directory.exists():
            raise click.ClickException(of_stores.DISK_CACHE_MISSING(directory=directory)) from None
        return None


def _work_through(folder: BlockFolder, action: str) -> tuple[int, int]:
    """Return the number of blocks that are there, are good or were removed, and their bytes."""
    count = total = 0
    with progress.shown(_WORK[action], is_bytes=True) as advance:
        for file in folder.files():
            advance(file.length)
            if action == "verify" and folder.read(file.md5sum, is_visit=False) is None:
                continue
            if action == "clear" and not folder.remove(file.md5sum):
                continue
            count += 1
            total += file.length
    if action == "clear":
        folder.remove_names()
    return count, total


def _locators_of(listed: TextIO) -> Iterator[str]:
    """Yield the words of a file that are locators; a line without a locator is yielded whole."""
    for line in listed:
        words = line.split()
        found = [word for word in words if _is_locator(word)]
        yield from found or ([line.strip()] if words else [])


def _is_locator(word: str) -> bool:
    try:
        KeepLocator(word)
    except ValueError:
        return False
    return True
