"""keepfs put, get, stat and locate: blocks without a mount, and locators of files in one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from keepfs.cli import failures
from keepfs.keep.client import KeepClient
from keepfs.keep.locator import MAX_BLOCK_SIZE, KeepLocator, parse_list

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_local_store_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--local-store",
    type=click.Path(path_type=Path, file_okay=False),
    envvar=["KEEPFS_LOCAL_STORE", "KEEP_LOCAL_STORE"],
    help="The blocks are in this directory.",
)


def _client(local_store: Path | None) -> KeepClient:
    if local_store is None:
        raise click.UsageError(failures.NOTHING_CONFIGURED.replace("mount ", "COMMAND "))
    return KeepClient(local_store=local_store.expanduser())


@click.command("put")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--copies", type=click.IntRange(1), default=2, show_default=True)
@_local_store_option
def put_command(files: tuple[str, ...], copies: int, local_store: Path | None) -> None:
    """Store each FILE; print its locator, a tab, and its name. `-` is standard input.

    A file of more than 64 MiB becomes several blocks: their locators are
    joined by commas, as `keepfs get` and by_id/ take them.
    """
    client = _client(local_store)
    for name in files:
        with failures.in_one_line(), _opened(name) as file:
            locators = [str(client.put_block(part, copies).locator) for part in _parts(file)]
        click.echo(f"{','.join(locators)}\t{name}")


@click.command("get")
@click.argument("locators", metavar="LOCATOR...", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file."
)
@_local_store_option
def get_command(locators: tuple[str, ...], output: Path | None, local_store: Path | None) -> None:
    """Write blocks to standard output, verified, one after the other.

    A LOCATOR may be several, joined by commas.
    """
    client = _client(local_store)
    wanted = [each for text in locators for each in _parsed(text)]
    with failures.in_one_line():
        if output is None:
            for locator in wanted:
                sys.stdout.buffer.write(client.get_block(locator))
            sys.stdout.buffer.flush()
            return
        # Under another name until it is whole: a half file isn't taken for the block.
        part = output.with_name(f".{output.name}.part")
        try:
            with part.open("wb") as file:
                for locator in wanted:
                    file.write(client.get_block(locator))
            part.replace(output)
        finally:
            part.unlink(missing_ok=True)


@click.command("stat")
@click.argument("locators", metavar="LOCATOR...", nargs=-1, required=True)
@_local_store_option
def stat_command(locators: tuple[str, ...], local_store: Path | None) -> None:
    """Print each block's size and locator, if it is there; exit with 1 if any isn't."""
    client = _client(local_store)
    missing = False
    for locator in [each for text in locators for each in _parsed(text)]:
        try:
            with failures.in_one_line():
                click.echo(f"{client.head_block(locator)}\t{locator}")
        except click.ClickException as error:
            error.show()
            missing = True
    if missing:
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
        click.echo(f"{found['user.keep.locator']}\t{name}")


def _opened(name: str) -> BinaryIO:
    return sys.stdin.buffer if name == "-" else Path(name).open("rb")


def _parts(file: BinaryIO) -> Iterator[bytes]:
    """Cut a file into blocks; an empty file is one empty block."""
    part = file.read(MAX_BLOCK_SIZE)
    yield part
    while len(part) == MAX_BLOCK_SIZE and (part := file.read(MAX_BLOCK_SIZE)):
        yield part


def _parsed(text: str) -> tuple[KeepLocator, ...]:
    try:
        return parse_list(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
