"""keepfs import: adds the files of a collection to upload/ of a mount."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keepfs import stores
from keepfs.cli import clients, progress, reporting, uploaded_files
from keepfs.cli.settings import config_file, path_argument, setting, token_setting
from keepfs.collections.local_collections import LocalCollections
from keepfs.collections.manifest_errors import ManifestError
from keepfs.collections.names import is_hash, is_uuid
from keepfs.collections.parsing import parse
from keepfs.config.options import StoreOptions
from keepfs.fs.upload.origins import Origins
from keepfs.fs.upload.snapshot import store_of
from keepfs.fs.upload.stored import MOST_RANGES
from keepfs.keep.locator import KeepLocator
from keepfs.messages import of_commands, of_uploads
from keepfs.mount import runtime
from keepfs.mount.control_requests import ControlConnection, ControlError
from keepfs.part_files import part_path
from keepfs.privacy import sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.collections.manifest import Directory, File, Manifest, Range
    from keepfs.collections.records import CollectionRecord
    from keepfs.keep.client import KeepClient
    from keepfs.mount.uploaded import UploadedPath

#: Most files, and ranges, of one request: the mount records them within some milliseconds.
_BATCH_FILES, _BATCH_RANGES = 200, 2000
#: Errors of a rename to a name that exists and is no empty directory.
_EXISTS = frozenset((errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR))


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
    portable data hash, a tab, and the folder. No data is read or stored: files
    stay where they are, also those that share a block with others. A file in more
    than 65,536 pieces is an exception: it is read and stored anew, and a line on
    standard error names how many bytes that were.
    """
    if not is_uuid(name) and not is_hash(name):
        raise click.UsageError(of_commands.BAD_COLLECTION(name=name))
    above = uploaded_files.path_in_upload(
        Path() if path is None else path.absolute().parent, is_following=True
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(clients.ended_by_signals())
        stack.enter_context(reporting.in_one_line())
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
        copied, size = _imported(manifest, above, target, store)
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
            "stored_anew": copied,
            "stored_anew_size": size,
        }
        clients.print_json(found)
        return
    clients.print_line(f"{record.portable_data_hash}\t{target}")
    said = f"keepfs: {manifest.file_count} files imported"
    if copied:
        said += f"; {copied} of them ({size} bytes), of too many pieces, were stored anew"
    click.echo(said, err=True)


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
    manifest: Manifest, above: UploadedPath, target: Path, store: StoreOptions
) -> tuple[int, int]:
    """Make the folder; return the numbers of files and bytes that were stored anew."""
    part = part_path(target)
    if os.path.lexists(target) and (target.is_symlink() or any(target.iterdir())):
        raise click.ClickException(
            of_uploads.FOLDER_EXISTS(path=target, why=" and isn't empty: name a new folder")
        )
    part.mkdir()
    scattered: list[tuple[Path, File]] = []
    below = f"{above.below}/{part.name}".lstrip("/")
    try:
        with ControlConnection(runtime.control_socket(above.mountpoint)) as mount:
            for directory in manifest.directories():
                where = part / directory.path
                if directory.number:
                    where.mkdir()
                scattered += (
                    (where / file.name, file) for file in _add_names(directory, mount, below)
                )
        if scattered:
            with clients.command_client(store) as client:
                copied = clients.side_by_side(lambda each: _copy(*each, client), scattered)
                for _ in progress.counted(copied, "storing anew", len(scattered)):
                    pass
        sync_directory(part)
        try:
            part.rename(target)
        except OSError as error:
            if error.errno not in _EXISTS:
                raise
            raise click.ClickException(
                of_uploads.FOLDER_EXISTS(path=target, why=", made meanwhile by another program")
            ) from error
    except ControlError as error:
        raise click.ClickException(
            of_uploads.IMPORT_INCOMPLETE(path=part, reason=error)
        ) from error
    except BaseException:
        said = of_uploads.IMPORT_INCOMPLETE(path=part, reason="the import ended early")
        click.echo(f"keepfs: {said}", err=True)
        raise
    return len(scattered), sum(file.size for _, file in scattered)


def _add_names(directory: Directory, mount: ControlConnection, below: str) -> Iterator[File]:
    """Add a folder's files through the mount; yield the files in too many pieces."""
    umask = os.umask(0o022)
    os.umask(umask)
    path = f"{below}/{directory.path}".rstrip("/")
    now, count = time.time_ns(), 0
    batch: list[tuple[str, int, int, list[Range]]] = []
    for file in directory.files():
        ranges = list(itertools.islice(file.ranges(), MOST_RANGES + 1))
        if len(ranges) > MOST_RANGES:
            yield file
            continue
        if batch and (len(batch) >= _BATCH_FILES or count + len(ranges) > _BATCH_RANGES):
            mount.add_stored(path, batch)
            batch, count = [], 0
        batch.append((file.name, 0o666 & ~umask, now, ranges))
        count += len(ranges)
    if batch:
        mount.add_stored(path, batch)


def _copy(path: Path, file: File, client: KeepClient) -> None:
    """Store the bytes of a file anew, through the mount."""
    with path.open("xb") as written:
        for each in file.ranges():
            block = client.get_block(KeepLocator(each.locator))
            written.write(block[each.offset : each.offset + each.length])
