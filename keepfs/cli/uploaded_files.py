"""Files in upload/ for commands: their manifest, or a message that names refused files."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING

import click

from keepfs.cli import reporting
from keepfs.fs.upload.following import follow
from keepfs.fs.upload.snapshot import manifest_of, open_snapshot
from keepfs.messages import of_commands, of_uploads
from keepfs.mount import uploaded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from keepfs.collections.manifest import Manifest
    from keepfs.fs.upload.snapshot import StoredNode
    from keepfs.mount.uploaded import UploadedPath

#: Default of --timeout: seconds to wait for files that are not stored yet.
PATIENCE = 300.0
#: Most files that a refusal names.
_MOST_NAMED = 20

follow_option = click.option(
    "--follow",
    "is_following",
    is_flag=True,
    help="Put what symbolic links in PATH point to, within PATH, in their place.",
)
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=PATIENCE,
    show_default=True,
    metavar="SECONDS",
    help="How long files that are not stored yet are waited for.",
)


def path_in_upload(path: Path, *, is_following: bool) -> UploadedPath:
    """Return the file or folder of upload/ at a path.

    Raises:
        click.ClickException: It is not in upload/ of a running mount.
    """
    with reporting.in_one_line():
        return uploaded.find_uploaded(path, follow=is_following)


def stored_manifest(
    where: UploadedPath, *, is_following: bool, timeout: float, is_signed: bool = True
) -> Manifest:
    """Return the manifest of a file or folder, once all of it is stored. Blocks.

    The entries of a folder, or the file itself, are at the top of the manifest.

    Args:
        where: The file or folder.
        is_following: Whether symbolic links are replaced by what they point to.
        timeout: Seconds to wait for files that are not stored.
        is_signed: Whether files with an expired signature are refused.

    Raises:
        click.ClickException: Files are not stored, or can't be in a manifest; it names them.
    """
    with reporting.in_one_line():
        _refuse("not stored", uploaded.store_all(where, timeout), "see keepfs unsaved list")
        ended: list[tuple[str, str]] = []
        with open_snapshot(where.catalog, where.below) as found:
            nodes: Iterable[StoredNode] = _relative_nodes(found, where.below)
            if is_following:
                nodes, refused = follow(nodes, str(where.path))
                _refuse("can't be followed", refused, "remove the links")
            manifest, left_out = manifest_of(_noted(nodes, ended))
    links = "; --follow, or remove the links" if not is_following else ""
    _refuse("can't be in a manifest", left_out, f"rename or remove them{links}")
    if is_signed:
        _refuse(
            "can't be read any more",
            ended,
            "the signatures of their blocks have ended: read and store them with a new signature",
        )
    if not manifest.file_count and manifest.directory_count == 1 and where.path.is_file():
        raise click.ClickException(
            of_commands.FILE_FAILED(text=f"{where.path} was removed meanwhile")
        )
    return manifest


def _relative_nodes(nodes: Iterable[StoredNode], top: str) -> Iterator[StoredNode]:
    """Make paths relative to the top; leave out the top itself if it is a folder."""
    for node in nodes:
        if node.path != top:
            cut = len(top) + 1 if top else 0
            yield dataclasses.replace(node, path=node.path[cut:])
        elif not node.is_directory:
            yield dataclasses.replace(node, path=node.path.rpartition("/")[2])


def _noted(nodes: Iterable[StoredNode], ended: list[tuple[str, str]]) -> Iterator[StoredNode]:
    """Yield the nodes; add files with a block whose signature has ended to `ended`."""
    now = dt.datetime.now(dt.UTC)
    for node in nodes:
        for receipt in node.stored.receipts():
            if receipt.locator.permission_expired(now):
                ended.append((node.path, f"signed until {receipt.locator.perm_expiry}"))
                break
        yield node


def _refuse(what: str, names: list[tuple[str, str]], advice: str) -> None:
    """Refuse named files.

    Raises:
        click.ClickException: There are such files; the message has names and reasons.
    """
    if not names:
        return
    lines = [f"  {name!r}: {reason}" for name, reason in names[:_MOST_NAMED]]
    if len(names) > _MOST_NAMED:
        lines.append(f"  and {len(names) - _MOST_NAMED} more")
    count = "1 name" if len(names) == 1 else f"{len(names)} names"
    said = of_uploads.REFUSED_NAMES(count=count, what=what, advice=advice, names="\n".join(lines))
    raise click.ClickException(said)
