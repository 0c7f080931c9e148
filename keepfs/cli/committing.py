"""keepfs manifest and commit: files in upload/ as a manifest, and as a collection."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keepfs import stores
from keepfs.cli import clients, progress, reporting, uploaded_files
from keepfs.cli.settings import config_file, path_argument, token_setting
from keepfs.cli.values import FilledPath
from keepfs.collections.local_collections import LocalCollections
from keepfs.collections.names import is_hash, is_uuid
from keepfs.collections.remote_errors import NameTakenError, TooLargeError
from keepfs.collections.wishes import CollectionAttributes, Expected
from keepfs.fs.upload.origins import Origins
from keepfs.fs.upload.snapshot import store_of
from keepfs.messages import of_commands, of_uploads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.collections.manifest import Manifest
    from keepfs.collections.records import CollectionRecord
    from keepfs.collections.remote_collections import RemoteCollections
    from keepfs.mount.uploaded import UploadedPath

_path = path_argument("PATH")


class _Moment(click.ParamType[dt.datetime]):
    """A future time, in ISO 8601."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime:
        """Read a time; without a zone it is local."""
        try:
            moment = dt.datetime.fromisoformat(str(value)).astimezone()
        except ValueError:
            self.fail(f"{value!r} is no time: write 2030-12-31T18:00:00Z", param, ctx)
        if moment <= dt.datetime.now(dt.UTC):
            self.fail(f"{value} is past", param, ctx)
        return moment


class _Properties(click.ParamType[dict[str, Any]]):
    """A JSON object."""

    name = "json"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """Read an object."""
        try:
            found = json.loads(str(value))
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail('not a JSON object: write {"key": "value"}', param, ctx)
        return found


@click.command("manifest")
@_path
@click.option("--strip", is_flag=True, help="Cut locators to digest and size.")
@click.option(
    "-o",
    "--output",
    type=FilledPath(path_type=Path, dir_okay=False),
    help="Write to this file, whole or not at all.",
)
@clients.json_option
@uploaded_files.follow_option
@uploaded_files.timeout_option
@progress.progress_option
def manifest_command(
    path: Path,
    output: Path | None,
    *,
    strip: bool,
    is_json: bool,
    is_following: bool,
    timeout: float,
) -> None:
    """Print the manifest of PATH, a file or folder in upload/ of a mount.

    Locators are signed as the mount has them. Files that are not stored yet are
    stored first. What can't be in a manifest is refused by name.
    """
    where = uploaded_files.path_in_upload(path, is_following=is_following)
    with clients.ended_by_signals():
        with progress.shown("storing what is not stored"):
            manifest = uploaded_files.stored_manifest(
                where, is_following=is_following, timeout=timeout, is_signed=not strip
            )
        shown = manifest.stripped() if strip else manifest
        pieces = shown.pieces()
        if is_json:
            found = {
                "portable_data_hash": manifest.portable_data_hash(),
                "files": manifest.file_count,
                "size": sum(file.size for file in manifest.files()),
                "manifest_text": shown.text(),
            }
            pieces = iter([f"{json.dumps(found)}\n".encode()])
        if output is not None:
            with clients.written_whole(output) as file:
                file.writelines(pieces)
            return
        with clients.writing():
            sys.stdout.buffer.writelines(pieces)
            sys.stdout.buffer.flush()


@click.command("commit")
@progress.progress_option
@_path
@click.option("--name", help="Name of the new collection, unique in its project.")
@click.option(
    "--project",
    metavar="UUID",
    help="Project that the collection is made in.  [default: your home project]",
)
@click.option(
    "--properties",
    type=_Properties(),
    metavar="JSON",
    help="Properties of the collection, a JSON object.",
)
@click.option(
    "--replication",
    type=click.IntRange(1),
    metavar="N",
    help="Copies of each block that the cluster keeps.",
)
@click.option(
    "--storage-classes",
    "classes",
    metavar="CLASS,...",
    help="Storage classes in which the cluster keeps the blocks.",
)
@click.option(
    "--trash-at",
    type=_Moment(),
    metavar="TIME",
    help="Time at which the collection goes to the trash.",
)
@click.option(
    "--ensure-unique-name", "is_unique", is_flag=True, help="Append the time to a name in use."
)
@click.option(
    "--update",
    metavar="UUID",
    help="Change this collection, if it is as it was imported or last committed.",
)
@click.option("--expect", metavar="PDH", help="With --update: change it if it has this content.")
@clients.json_option
@uploaded_files.follow_option
@uploaded_files.timeout_option
@token_setting
@config_file
def commit_command(
    path: Path,
    token_file: Path | None,
    *,
    is_following: bool,
    is_json: bool,
    timeout: float,
    is_unique: bool,
    update: str | None,
    expect: str | None,
    **wanted: Any,  # noqa: ANN401 - click's own
) -> None:
    """Make a collection of PATH, a file or folder in upload/ of a mount.

    Prints its uuid, a tab, and its portable data hash. No data moves. Files that
    are not stored yet are stored first. What can't be in a manifest is refused
    by name. On a local store the manifest is kept by its hash; there is no uuid
    and no name, and a dash is printed for the uuid.
    """
    _check_update(update, expect, wanted["name"], is_unique=is_unique)
    where = uploaded_files.path_in_upload(path, is_following=is_following)
    with reporting.in_one_line():
        identity = store_of(where.catalog)
    local = identity.removeprefix("local:") if identity.startswith("local:") else None
    if local is not None:
        _check_local(update, wanted)
    elif not wanted["name"] and not update:
        raise click.UsageError(
            of_commands.OPTIONS_CONFLICT(
                text="a collection needs a name: --name NAME, or --update UUID"
            )
        )
    with clients.ended_by_signals():
        origins = Origins(where.state_dir)
        expected = None if update is None else _expected(origins, where, update, expect)
        with progress.shown("storing what is not stored"):
            manifest = uploaded_files.stored_manifest(
                where, is_following=is_following, timeout=timeout
            )
        if local is not None:
            with reporting.in_one_line():
                record = LocalCollections(local).put(manifest)
        else:
            attributes = _attributes(wanted)
            with _remote(identity, token_file) as collections, progress.shown("committing"):
                record = _committed(
                    collections, manifest, attributes, update, expected, is_unique=is_unique
                )
            with reporting.in_one_line():
                origins.note(
                    where.below, record.uuid, record.portable_data_hash, record.modified_at
                )
    if is_json:
        found = {
            "uuid": record.uuid or None,
            "portable_data_hash": record.portable_data_hash,
            "files": manifest.file_count,
        }
        clients.print_json(found)
        return
    clients.print_line(f"{record.uuid or '-'}\t{record.portable_data_hash}")


def _check_update(
    update: str | None, expect: str | None, name: str | None, *, is_unique: bool
) -> None:
    if expect is not None and update is None:
        raise click.UsageError(
            of_commands.OPTIONS_CONFLICT(text="--expect goes with --update UUID")
        )
    if update is not None and not is_uuid(update):
        raise click.UsageError(
            of_commands.BAD_VALUE(text=f"--update {update!r}: not the uuid of a collection")
        )
    if expect is not None and not is_hash(expect):
        raise click.UsageError(
            of_commands.BAD_VALUE(text=f"--expect {expect!r}: not a portable data hash")
        )
    if update is not None and is_unique:
        raise click.UsageError(
            of_commands.OPTIONS_CONFLICT(
                text="--ensure-unique-name is for a new collection, not for --update"
            )
        )
    if name is not None and not name:
        raise click.UsageError(of_commands.BAD_VALUE(text="--name is empty"))


def _check_local(update: str | None, wanted: dict[str, Any]) -> None:
    if update is not None:
        raise click.UsageError(
            of_uploads.NOT_IN_LOCAL_STORE(
                limit="names collections by their content and keeps each: commit without --update"
            )
        )
    given = [name for name, value in wanted.items() if value is not None and name != "name"]
    if given:
        option = {"trash_at": "trash-at", "classes": "storage-classes"}.get(given[0], given[0])
        raise click.UsageError(
            of_uploads.NOT_IN_LOCAL_STORE(limit=f"keeps manifests and nothing else: no --{option}")
        )
    if wanted["name"] is not None:
        click.echo(
            "Note: a local store keeps no names; the hash that is printed names the collection",
            err=True,
        )


def _expected(origins: Origins, where: UploadedPath, uuid: str, expect: str | None) -> Expected:
    if expect is not None:
        return Expected(portable_data_hash=expect)
    with reporting.in_one_line():
        known = origins.find(where.below, uuid)
    if known is None:
        raise click.ClickException(of_uploads.NO_EXPECTATION(path=where.path, uuid=uuid))
    return Expected(*known)


def _attributes(wanted: dict[str, Any]) -> CollectionAttributes:
    classes = wanted["classes"]
    return CollectionAttributes(
        name=wanted["name"],
        owner_uuid=wanted["project"],
        properties=wanted["properties"],
        replication_desired=wanted["replication"],
        storage_classes_desired=None if classes is None else classes.split(","),
        trash_at=wanted["trash_at"],
    )


@contextlib.contextmanager
def _remote(identity: str, token_file: Path | None) -> Iterator[RemoteCollections]:
    """Open the collections of the mount's cluster; turn failures into messages."""
    with reporting.in_one_line(), stores.open_collections(identity, token_file) as collections:
        yield collections


def _committed(
    collections: RemoteCollections,
    manifest: Manifest,
    attributes: CollectionAttributes,
    update: str | None,
    expected: Expected | None,
    *,
    is_unique: bool,
) -> CollectionRecord:
    text = b"".join(manifest.pieces())
    most = collections.max_request_size()
    if len(text) > most:
        raise _too_large(len(text), most)
    try:
        if update is not None and expected is not None:
            return collections.update(update, attributes, expected=expected, manifest=text)
        return collections.create(text, attributes, unique_name=is_unique)
    except TooLargeError as error:
        raise _too_large(len(text), most) from error
    except NameTakenError as error:
        raise click.ClickException(
            of_uploads.NAME_TAKEN(reason=error, uuid=error.uuid or "UUID")
        ) from error


def _too_large(size: int, most: int) -> click.ClickException:
    return click.ClickException(of_uploads.MANIFEST_TOO_LARGE(size=size, most=most))
