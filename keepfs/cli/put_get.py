"""keepfs put and get: store and read blocks without a mount."""

from __future__ import annotations

import codecs
import contextlib
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from keepfs import stores
from keepfs.cli import clients, progress
from keepfs.cli.settings import store_settings
from keepfs.cli.values import FilledPath, check_input
from keepfs.keep.errors import KeepRequestError
from keepfs.keep.locator import MAX_BLOCK_SIZE, KeepLocator, parse_list
from keepfs.messages import of_commands

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.config.options import StoreOptions
    from keepfs.keep.client import KeepClient

#: Bytes of the beginning of a block that are examined for text. Guessed.
_LOOKED_AT = 64 * 1024


def _size_of(names: tuple[str, ...]) -> int | None:
    """Return the total size of files, in bytes, for the progress; None if it isn't known."""
    total = 0
    for name in names:
        try:
            status = Path(name).stat()
        except OSError:
            return None
        if name == "-" or not stat.S_ISREG(status.st_mode):
            return None
        total += status.st_size
    return total


@click.command("put")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@clients.json_option
@progress.progress_option
@clients.zero_option
@store_settings
def put_command(files: tuple[str, ...], store: StoreOptions, *, null: bool, is_json: bool) -> None:
    """Store each FILE and print its locator.

    A line of output is the locator, a tab, and the name of FILE. `-` is
    standard input. A file larger than 64 MiB becomes several blocks. Their locators are
    joined by commas; `keepfs get` and by_id/ accept such a list. If a FILE
    fails, put continues with the next one and exits with 1 at the end.
    """
    failed = clients.Failures()
    with (
        clients.command_client(store) as client,
        progress.shown("storing", _size_of(files), is_bytes=True) as advance,
    ):
        stores.check_token(client, store)
        stores.check_classes(client, store)
        copies = stores.copies_of(client, store)
        for name in files:
            with failed.noted("standard input" if name == "-" else name):
                clients.check_name(name, null=null)
                with _open_input(name) as file:
                    locators, size = [], 0
                    for part in _parts(file):
                        receipt = client.put_block(part, copies, store.storage_classes)
                        locators.append(str(receipt.locator))
                        size += len(part)
                        advance(len(part))
                found = {"file": name, "size": size, "locators": locators}
                if is_json:
                    clients.print_json(found, null=null)
                else:
                    clients.print_line(f"{','.join(locators)}\t{name}", null=null)
    failed.exit()


@click.command("get")
@click.argument("locators", metavar="LOCATOR...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=FilledPath(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write to this file; - is standard output.",
)
@click.option("--force", is_flag=True, help="Write binary data to a terminal, too.")
@progress.progress_option
@store_settings
def get_command(
    locators: tuple[str, ...], output: Path | None, store: StoreOptions, *, force: bool
) -> None:
    """Write verified blocks to standard output.

    The blocks are written one after the other. A LOCATOR may be a list joined
    by commas. At the first block that can't be read, get stops and exits with
    1: the output never has a gap. If a LOCATOR is invalid, get writes nothing.
    """
    wanted = _parse_locators(locators)
    with clients.command_client(store) as client:
        if output is None or str(output) == "-":
            for locator in wanted:
                block = _block(client, locator)
                if not force and sys.stdout.isatty() and not _is_text(block):
                    raise click.ClickException(
                        of_commands.BINARY_OUTPUT(locator=locator.stripped())
                    )
                with clients.writing():
                    sys.stdout.buffer.write(block)
            with clients.writing():
                sys.stdout.buffer.flush()
            return
        total = sum(locator.size or 0 for locator in wanted)
        with (
            clients.written_whole(output) as file,
            progress.shown("reading", total, is_bytes=True) as advance,
        ):
            for locator in wanted:
                advance(file.write(_block(client, locator)))


def _open_input(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if name != "-":
        return Path(name).open("rb")
    check_input()
    # Leave it open: a second `-` reads an empty file.
    return contextlib.nullcontext(sys.stdin.buffer)


def _parts(file: BinaryIO) -> Iterator[bytes]:
    """Cut a file into blocks; an empty file is one empty block."""
    part = file.read(MAX_BLOCK_SIZE)
    yield part
    while len(part) == MAX_BLOCK_SIZE and (part := file.read(MAX_BLOCK_SIZE)):
        yield part


def _is_text(block: memoryview) -> bool:
    """Return whether the beginning of a block is printable text."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(bytes(block[:_LOOKED_AT]))
    except UnicodeDecodeError:
        return False
    return all(it.isprintable() or it in "\n\t\r\f" for it in text)


def _block(client: KeepClient, locator: KeepLocator) -> memoryview:
    try:
        return client.get_block(locator)
    except KeepRequestError as error:
        raise click.ClickException(clients.failure_of(locator, error)) from error


def _parse_locators(texts: tuple[str, ...]) -> list[KeepLocator]:
    found: list[KeepLocator] = []
    for text in texts:
        try:
            found += parse_list(text)
        except ValueError as error:
            said = clients.flaw_of(text, error)
            raise click.UsageError(of_commands.BAD_LOCATOR(text=said)) from error
    return found
