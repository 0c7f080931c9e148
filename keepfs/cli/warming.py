"""Sources of `keepfs warm`: locators, collections and paths in a mount, as lists of locators."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keepfs.cli import reporting
from keepfs.cli.locate import locator_of
from keepfs.collections.names import is_hash, is_uuid
from keepfs.collections.parsing import parse
from keepfs.keep.errors import Cause, KeepRequestError
from keepfs.messages import of_stores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keepfs.cli.clients import Failures
    from keepfs.collections.records import CollectionRecord


def locators_named_by(
    source: str, collection: Callable[[str], CollectionRecord] | None, failed: Failures
) -> list[str]:
    """Return the locators of a source; any other text is returned unchanged. Blocks.

    A name of the form MD5+size is a collection if there is one, else a block. A source without
    blocks is no failure, but a line on standard error says so.

    Args:
        source: One or several locators, a collection's uuid or portable data hash, or the path
            of a file or folder in a mount.
        collection: Returns a collection; None if only Keep services are configured.
        failed: Counts and prints the failures.
    """
    before = failed.count
    found = list(_locators_of(source, collection, failed))
    if not found and failed.count == before:
        click.echo(of_stores.NOTHING_TO_WARM(source=source), err=True)
    return found


def _locators_of(
    source: str, collection: Callable[[str], CollectionRecord] | None, failed: Failures
) -> Iterator[str]:
    if collection is not None and (is_uuid(source) or is_hash(source)):
        found: CollectionRecord | None = None
        try:
            found = collection(source)
        except KeepRequestError as error:
            if is_uuid(source) or error.cause is not Cause.NOT_FOUND:
                failed.note(reporting.text_of(error))
                return
        if found is not None:
            yield from parse(found.manifest or b"").blocks()
            return
    if os.path.lexists(source):
        for file in _files_in(Path(source), failed):
            with failed.noted():
                yield locator_of(str(file))
        return
    yield source


def _files_in(path: Path, failed: Failures) -> Iterator[Path]:
    """Yield the files of a folder, or a file itself; note each folder that can't be listed."""
    if not os.path.isdir(path):  # noqa: PTH112 - that of Path raises if a link can't be followed
        yield path
        return

    def note(error: OSError) -> None:
        failed.note(reporting.text_of(error))

    for folder, _, names in os.walk(path, onerror=note):
        yield from (Path(folder, name) for name in sorted(names))
