"""keepfs import: adds the files of a collection to upload/ of a mount."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keepfs import stores
from keepfs.cli import clients, progress, uploaded_files
from keepfs.cli.settings import config_file, path_argument, setting, token_setting
from keepfs.collections.local_collections import LocalCollections
from keepfs.collections.manifest_errors import ManifestError
from keepfs.collections.names import is_hash, is_uuid
from keepfs.collections.parsing import parse
from keepfs.config.options import StoreOptions
from keepfs.fs.upload.origins import Origins
from keepfs.fs.upload.snapshot import store_of
from keepfs.keep.locator import EMPTY_BLOCK, MAX_BLOCK_SIZE, KeepLocator
from keepfs.messages import of_commands, of_uploads
from keepfs.mount import runtime
from keepfs.mount.control_requests import ControlConnection, ControlError
from keepfs.privacy import sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.collections.manifest import Directory, File, Manifest
    from keepfs.collections.records import CollectionRecord
    from keepfs.keep.client import KeepClient
    from keepfs.mount.uploaded import UploadedPath

#: Most files, and blocks, of one request: the mount records them within some milliseconds.
_MOST_FILES, _MOST_BLOCKS = 200, 2000


@click.command("import")
@click.argument("name", metavar="UUID|PDH")
@path_argument("[DIR]", required=False)
@setting("--keep-services", metavar="URI...", help="As given to mount.")
@token_setting
@config_file
@clients.json_option
@progress.progress_option
def import_command(
    name: str,
    path: Path | None,
    keep_services: str | None,
    token_file: Path | None,
    *,
    is_json: bool,
) -> None:
    """Put the files of a collection into DIR, in upload/ of a mount, as names.

    DIR must not exist, or be empty; without it, it is named for the collection,
    in the working directory. It has that name only when it is complete. Prints the
    portable data hash, a tab, and the folder. Files of whole blocks are named
    without reading them. A file that shares a block with others, as small files
    of other programs do, is read and stored anew: upload/ has whole blocks only.
    A line on standard error tells how much that was.
    """
    if not is_uuid(name) and not is_hash(name):
        raise click.UsageError(of_commands.BAD_COLLECTION(name=name))
    above = uploaded_files.path_in_upload(
        Path() if path is None else path.absolute().parent, is_following=True
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(clients.ended_by_signals())
        stack.enter_context(uploaded_files.upload_failures_in_one_line())
        identity = store_of(above.catalog)
        local = identity.removeprefix("local:") if identity.startswith("local:") else None
        record = _record(name, identity, local, token_file)
        manifest = _parsed(record)
        target = above.path / (path.absolute().name if path else _folder_name(record, name))
        store = StoreOptions(
            local_store=None if local is None else Path(local),
            keep_services=keep_services if local is None else None,
            token_file=token_file,
        )
        client = stack.enter_context(clients.command_client(store))
        moved, size = _imported(manifest, above, target, client)
        below = f"{above.below}/{target.name}".lstrip("/")
        if record.uuid:
            Origins(above.state_dir).note(
                below, record.uuid, record.portable_data_hash, record.modified_at
            )
    if is_json:
        found = {
            "uuid": record.uuid or None,
            "portable_data_hash": record.portable_data_hash,
            "folder": str(target),
            "files": manifest.file_count,
            "stored_anew": moved,
            "stored_anew_size": size,
        }
        clients.print_json(found)
        return
    clients.print_line(f"{record.portable_data_hash}\t{target}")
    click.echo(
        f"keepfs: {manifest.file_count} files imported;"
        f" {moved} of them ({size} bytes) are parts of blocks, and were stored anew",
        err=True,
    )


def _record(
    name: str, identity: str, local: str | None, token_file: Path | None
) -> CollectionRecord:
    if local is not None:
        if is_uuid(name):
            raise click.ClickException(
                of_uploads.NOT_IN_LOCAL_STORE(limit="knows collections by portable data hash only")
            )
        return LocalCollections(local).get(name)
    try:
        with stores.open_collections(identity, token_file) as collections:
            return collections.get(name)
    except stores.StoreError as error:
        raise click.ClickException(str(error)) from error


def _parsed(record: CollectionRecord) -> Manifest:
    try:
        return parse(record.manifest or b"")
    except ManifestError as error:
        raise click.ClickException(
            of_uploads.BAD_MANIFEST(name=record.portable_data_hash, reason=error)
        ) from error


def _folder_name(record: CollectionRecord, name: str) -> str:
    """Return the collection's name if it can be a file name, else its uuid or the given name."""
    own = record.name
    return own if own not in {"", ".", ".."} and "/" not in own else record.uuid or name


def _imported(
    manifest: Manifest, above: UploadedPath, target: Path, client: KeepClient
) -> tuple[int, int]:
    """Make the folder; return the numbers of files and bytes that were stored anew."""
    part = target.with_name(f".{target.name[:200]}.part")
    if os.path.lexists(target) and (target.is_symlink() or any(target.iterdir())):
        raise click.ClickException(
            of_uploads.FOLDER_EXISTS(path=target, why=" and isn't empty: name a new folder")
        )
    try:
        part.mkdir()
    except FileExistsError:
        raise click.ClickException(
            of_uploads.FOLDER_EXISTS(
                path=part, why=", of an import that was ended or is under way: remove it"
            )
        ) from None
    packed: list[tuple[Path, File]] = []
    below = f"{above.below}/{part.name}".lstrip("/")
    try:
        with ControlConnection(runtime.control_socket(above.mountpoint)) as mount:
            for directory in manifest.directories():
                where = part / directory.path
                if directory.number:
                    where.mkdir()
                packed += (
                    (where / file.name, file) for file in _add_whole(directory, mount, below)
                )
        copied = clients.side_by_side(lambda each: _copy(*each, client), packed)
        for _ in progress.counted(copied, "storing anew", len(packed)):
            pass
        sync_directory(part)
        part.rename(target)
    except ControlError as error:
        raise click.ClickException(
            of_uploads.IMPORT_INCOMPLETE(path=part, reason=error)
        ) from error
    except BaseException:
        said = of_uploads.IMPORT_INCOMPLETE(path=part, reason="the import ended early")
        click.echo(f"keepfs: {said}", err=True)
        raise
    return len(packed), sum(file.size for _, file in packed)


def _add_whole(directory: Directory, mount: ControlConnection, below: str) -> Iterator[File]:
    """Add a folder's files of whole blocks through the mount; yield the other files."""
    umask = os.umask(0o022)
    os.umask(umask)
    path = f"{below}/{directory.path}".rstrip("/")
    now, batch, blocks = time.time_ns(), [], 0
    for file in directory.files():
        locators = _whole_blocks(file)
        if locators is None:
            yield file
            continue
        batch.append((file.name, 0o666 & ~umask, now, locators))
        blocks += len(locators)
        if len(batch) >= _MOST_FILES or blocks >= _MOST_BLOCKS:
            mount.add_files(path, batch)
            batch, blocks = [], 0
    if batch:
        mount.add_files(path, batch)


def _whole_blocks(file: File) -> list[str] | None:
    """Return the locators of a file of whole blocks, all but the last full; None for others."""
    if not file.size:
        return [str(EMPTY_BLOCK)]
    found = []
    left = file.size
    for each in file.ranges():
        size = KeepLocator(each.locator).size
        left -= each.length
        if each.offset or each.length != size or (left and size != MAX_BLOCK_SIZE):
            return None
        found.append(each.locator)
    return found


def _copy(path: Path, file: File, client: KeepClient) -> None:
    """Store the bytes of a file anew, through the mount."""
    with path.open("xb") as written:
        for each in file.ranges():
            block = client.get_block(KeepLocator(each.locator))
            written.write(block[each.offset : each.offset + each.length])
