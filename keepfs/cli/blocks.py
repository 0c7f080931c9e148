"""keepfs put, get, stat, verify, where and locate: blocks without a mount, and their locators."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from keepfs import stores
from keepfs.cli import failures
from keepfs.cli.settings import store_settings
from keepfs.keep.errors import Cause, KeepRequestError
from keepfs.keep.locator import MAX_BLOCK_SIZE, KeepLocator, parse_list
from keepfs.keep.survey import Sighting, survey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.keep.client import KeepClient
    from keepfs.options import StoreOptions


@contextlib.contextmanager
def _client(store: StoreOptions) -> Iterator[KeepClient]:
    """Open a client for one command, which fails in one line."""
    with failures.in_one_line(), stores.open_client(store) as client:
        yield client


@click.command("put")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@store_settings
def put_command(files: tuple[str, ...], store: StoreOptions) -> None:
    """Store each FILE; print its locator, a tab, and its name. `-` is standard input.

    A file of more than 64 MiB becomes several blocks: their locators are
    joined by commas, as `keepfs get` and by_id/ take them.
    """
    with _client(store) as client:
        copies = stores.copies_of(client, store)
        for name in files:
            with failures.in_one_line(), _opened(name) as file:
                locators = [
                    str(client.put_block(part, copies, store.storage_classes).locator)
                    for part in _parts(file)
                ]
            click.echo(os.fsencode(f"{','.join(locators)}\t{name}"))  # a name needn't be text


@click.command("get")
@click.argument("locators", metavar="LOCATOR...", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file."
)
@store_settings
def get_command(locators: tuple[str, ...], output: Path | None, store: StoreOptions) -> None:
    """Write blocks to standard output, verified, one after the other.

    A LOCATOR may be several, joined by commas.
    """
    wanted = _parsed(locators)
    with _client(store) as client:
        if output is None:
            for locator in wanted:
                sys.stdout.buffer.write(client.get_block(locator))
            sys.stdout.buffer.flush()
            return
        with _written(output) as file:
            for locator in wanted:
                file.write(client.get_block(locator))


@click.command("stat")
@click.argument("locators", metavar="LOCATOR...", nargs=-1, required=True)
@store_settings
def stat_command(locators: tuple[str, ...], store: StoreOptions) -> None:
    """Print each block's size and locator, if it is there; exit with 1 if any isn't."""
    missing = False
    with _client(store) as client:
        for locator in _parsed(locators):
            try:
                with failures.in_one_line():
                    click.echo(f"{client.head_block(locator)}\t{locator}")
            except click.ClickException as error:
                error.show()
                missing = True
    if missing:
        raise SystemExit(1)


@click.command("verify")
@click.argument("locators", metavar="LOCATOR...", nargs=-1, required=True)
@store_settings
def verify_command(locators: tuple[str, ...], store: StoreOptions) -> None:
    """Have every service check its copy of each block, without a transfer.

    Prints, for each block and service: ok, missing, DAMAGED or unknown, the
    service, and the locator. Exits with 1 if a copy is damaged or can't be
    checked, or a block has no sound copy at all. A local store reads its file.
    """
    is_sound = True
    with _client(store) as client:
        for locator in _parsed(locators):
            sightings = _sightings(client, store, locator)
            for each in sightings:
                click.echo(f"{_verdict(each)}\t{each.root}\t{locator}")
            verdicts = {_verdict(each) for each in sightings}
            is_sound = is_sound and "ok" in verdicts and verdicts <= {"ok", "missing"}
    if not is_sound:
        raise SystemExit(1)


@click.command("where")
@click.argument("locators", metavar="LOCATOR...", nargs=-1, required=True)
@store_settings
def where_command(locators: tuple[str, ...], store: StoreOptions) -> None:
    """Show which services have each block, in the order they are asked, and how fast they answer.

    Exits with 1 if a block is nowhere.
    """
    is_somewhere = True
    with _client(store) as client:
        for locator in _parsed(locators):
            click.echo(locator)
            sightings = _sightings(client, store, locator)
            for number, each in enumerate(sightings, 1):
                milliseconds = f"{each.seconds * 1000:.0f} ms"
                why = "" if each.cause is None else f"  ({each.reason})"
                click.echo(f"{number:3}  {_verdict(each):8}{milliseconds:>10}  {each.root}{why}")
            is_somewhere = is_somewhere and any(each.cause is None for each in sightings)
    if not is_somewhere:
        raise SystemExit(1)


@click.command("locate")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
def locate_command(files: tuple[str, ...]) -> None:
    """Print the locator of each FILE in a mount, a tab, and its name."""
    for name in files:
        with failures.in_one_line():
            found = {
                attribute: os.getxattr(name, attribute).decode()
                for attribute in os.listxattr(name)
                if attribute.startswith("user.keep.")
            }
        state = found.get("user.keep.state")
        if state is None:
            raise click.ClickException(f"{name} isn't a file in a mount of keepfs")
        if "user.keep.locator" not in found:
            why = found.get("user.keep.error", "close it, or wait until it is")
            raise click.ClickException(f"{name} isn't stored yet ({state}): {why}")
        click.echo(os.fsencode(f"{found['user.keep.locator']}\t{name}"))


def _sightings(client: KeepClient, store: StoreOptions, locator: KeepLocator) -> list[Sighting]:
    """Ask every service for a block; a local store is one that reads it."""
    if store.local_store is None:
        return survey(client, locator)
    begin, where = time.monotonic(), f"local:{store.local_store}"
    try:
        client.get_block(locator)
    except KeepRequestError as error:
        return [Sighting(where, error.cause, 0, str(error), time.monotonic() - begin)]
    return [Sighting(where, None, 0, "", time.monotonic() - begin)]


def _verdict(sighting: Sighting) -> str:
    words = {None: "ok", Cause.NOT_FOUND: "missing", Cause.CORRUPT: "DAMAGED"}
    return words.get(sighting.cause, "unknown")


@contextlib.contextmanager
def _written(output: Path) -> Iterator[BinaryIO]:
    """Open a file to be written; a regular one is replaced only when the new one is whole."""
    target = output.resolve()
    if target.exists() and not target.is_file():  # a device, a pipe
        with target.open("wb") as file:
            yield file
        return
    part = target.with_name(f".{target.name[:200]}.part")
    try:
        with part.open("wb") as file:
            yield file
        if target.exists():
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _opened(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    # Standard input stays open: `-` may come again, and is empty then.
    return contextlib.nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb")


def _parts(file: BinaryIO) -> Iterator[bytes]:
    """Cut a file into blocks; an empty file is one empty block."""
    part = file.read(MAX_BLOCK_SIZE)
    yield part
    while len(part) == MAX_BLOCK_SIZE and (part := file.read(MAX_BLOCK_SIZE)):
        yield part


def _parsed(texts: tuple[str, ...]) -> list[KeepLocator]:
    try:
        return [each for text in texts for each in parse_list(text)]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
