"""keepfs uploads: the files of a mount's upload/, and which of them can't be read any more."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keepfs import stores
from keepfs.cli import clients, progress, reporting, settings, values
from keepfs.cli.settings import config_file, setting, token_setting
from keepfs.cli.unsaved_files import existing_state_dir
from keepfs.config.options import StoreOptions
from keepfs.fs.upload import failed_journal, unsaved
from keepfs.fs.upload.snapshot import CATALOG, lost_files, open_snapshot, store_of
from keepfs.fs.upload.version import locators_of
from keepfs.keep.errors import Cause, KeepRequestError
from keepfs.keep.locator import KeepLocator
from keepfs.mount import mountpoint, runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.cli.progress import Advance
    from keepfs.fs.upload.snapshot import StoredNode
    from keepfs.keep.client import KeepClient


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of upload/, as `--json` prints it.

    Attributes:
        path: The path below upload/. Bytes that are not UTF-8 are lone surrogates, U+DC80 to
            U+DCFF.
        size: Its size in bytes; 0 if its entry is damaged.
        state: `stored`; `failed`: its latest changes are not stored; `damaged`: its entry in
            the catalog is damaged; `lost`: the mount has recorded that a block can't be read, or
            --check has found it; `unknown`: with --check, a service gave no answer.
        copies: Confirmed copies of each block; None if it isn't stored, or if another client
            stored its blocks.
        expires: The time at which the first signature ends, in ISO 8601; None without one.
        locators: The locators of its blocks, in order; empty if it isn't stored.
        error: The reason of the state; empty if it is stored.
    """

    path: str
    size: int
    state: str
    copies: int | None = None
    expires: str | None = None
    locators: tuple[str, ...] = ()
    error: str = ""


@click.command("uploads")
@settings.mountpoint_argument()
@click.option(
    "--check",
    "is_checking",
    is_flag=True,
    help="Ask the services for each block, by HEAD: they read all of it.",
)
@click.option(
    "--lost",
    "is_lost_only",
    is_flag=True,
    help="Check, and show only files that can't be read any more, or are recorded as lost.",
)
@clients.json_option
@setting(
    "--state-dir",
    type=values.FilledPath(path_type=Path, file_okay=False),
    help="As given to mount.",
)
@setting("--keep-services", metavar="URI...", help="As given to mount; for --check.")
@token_setting
@config_file
@clients.zero_option
@progress.progress_option
def uploads_command(
    path: Path,
    state_dir: Path | None,
    keep_services: str | None,
    token_file: Path | None,
    *,
    is_checking: bool,
    is_lost_only: bool,
    is_json: bool,
    null: bool,
) -> None:
    """List the files of upload/, mounted or not: size, state, blocks, expiry and path.

    The fields of a line are separated by tabs; a dash stands for no expiry. The
    state of a file that the mount has recorded as lost is "lost" without --check
    too; keepfs renew forgets the record and looks again. Files
    that are being written are listed when they are stored, or have failed. With
    --check and --lost the exit code is 1 if a file can't be read.
    """
    directory = existing_state_dir(path, state_dir)
    failed = clients.Failures()
    with contextlib.ExitStack() as stack:
        stack.enter_context(reporting.in_one_line())
        stack.enter_context(clients.ended_by_signals())
        catalog = directory / CATALOG
        lines = _uploads(path, directory)
        if is_checking or is_lost_only:
            identity = store_of(catalog)
            local = identity.removeprefix("local:") if identity.startswith("local:") else None
            store = StoreOptions(
                local_store=None if local is None else Path(local),
                keep_services=keep_services if local is None else None,
                token_file=token_file,
            )
            client = stack.enter_context(clients.command_client(store))
            stores.check_token(client, store)  # with a refused one, each block would look lost
            advance = stack.enter_context(progress.shown("checking", is_bytes=True))
            lines = _with_states(client, lines, advance)
        for each in lines:
            if is_checking or is_lost_only:
                _count(each, failed)
            if is_lost_only and each.state != "lost":
                continue
            with failed.noted():
                clients.print_line(_row(each, is_json=is_json, null=null), null=null)
    failed.exit()


def _count(each: Upload, failed: clients.Failures) -> None:
    if each.state == "lost":
        failed.note()
    elif each.state == "unknown":
        failed.note(f"{each.path}: {each.error}")


def _row(each: Upload, *, is_json: bool, null: bool) -> str:
    if is_json:
        return json.dumps(dataclasses.asdict(each))
    clients.check_name(each.path, null=null)
    blocks, expires = len(each.locators), each.expires or "-"
    return f"{each.size}\t{each.state}\t{blocks}\t{expires}\t{each.path}"


def _uploads(path: Path, state_dir: Path) -> Iterator[Upload]:
    """Yield the files of the catalog, then those whose latest changes are not stored."""
    if runtime.find(mountpoint.resolve(path)) is not None:
        about = failed_journal.read(state_dir)
    else:
        about = [each.about for each in unsaved.find_records(state_dir)[0]]
    unstored = {each.path: each for each in about}
    lost = lost_files(state_dir / CATALOG)
    with open_snapshot(state_dir / CATALOG) as nodes:
        for node in nodes:
            if node.path not in unstored and node.kind in {0, stat.S_IFREG}:
                yield _of_node(node, lost.get(node.number, ""))
    for each in unstored.values():
        error = each.error or "waits for its turn"
        yield Upload(each.path, each.size, "failed", error=error)


def _of_node(node: StoredNode, lost: str) -> Upload:
    if node.damage:
        return Upload(node.path, 0, "damaged", error=node.damage)
    receipts = list(node.stored.receipts())
    ends = [it.locator.perm_expiry for it in receipts]
    expires = min((each for each in ends if each is not None), default=None)
    return Upload(
        node.path,
        node.stored.size,
        "lost" if lost else "stored",
        min((receipt.copies for receipt in receipts), default=0) or None,
        None if expires is None else expires.isoformat(),
        tuple(map(str, locators_of(node.stored))),
        lost,
    )


def _with_states(
    client: KeepClient, uploads: Iterator[Upload], advance: Advance
) -> Iterator[Upload]:
    """Request each file's blocks by HEAD, concurrently; an answer serves later files too."""
    known: dict[str, KeepRequestError | None] = {}

    def ask(text: str) -> KeepRequestError | None:
        if text not in known:
            try:
                client.head_block(KeepLocator(text))
                known[text] = None
            except KeepRequestError as error:
                known[text] = error
        return known[text]

    def check(each: Upload) -> Upload:
        failures = [
            (KeepLocator(text), failure)
            for text in dict.fromkeys(each.locators)
            if (failure := ask(text))
        ]
        if not failures:
            return each  # `lost` stays until `keepfs renew` forgets it
        worst = next((it for it in failures if _is_lost(*it)), None)
        if worst is not None:
            return dataclasses.replace(each, state="lost", error=str(worst[1]))
        locator, failure = failures[0]
        said = str(failure)
        if failure.cause is Cause.DENIED:
            said += f"; its signature is valid until {locator.perm_expiry}, but perhaps was made"
            said += " for another token: keepfs renew gets a new one"
        return dataclasses.replace(each, state="unknown", error=said)

    for _, checked in clients.side_by_side(check, uploads):
        advance(checked.size)
        yield checked


def _is_lost(locator: KeepLocator, failure: KeepRequestError) -> bool:
    """Return whether a repeated request has the same failure."""
    if failure.cause is Cause.DENIED:
        # A valid signature that is refused was made for another token, or with another key.
        return locator.permission_hint() is None or locator.permission_expired()
    return failure.cause is Cause.NOT_FOUND
