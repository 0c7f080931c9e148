"""Sources of `keepfs warm`: locators, collections and paths in a mount, as lists of locators."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from keepfs.cli import reporting
from keepfs.cli.locate import locator_of
from keepfs.collections.names import is_hash, is_uuid
from keepfs.collections.parsing import parse
from keepfs.keep.errors import Cause, KeepRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keepfs.cli.clients import Failures
    from keepfs.collections.records import CollectionRecord


def locators_named_by(
    source: str, collection: Callable[[str], CollectionRecord] | None, failed: Failures
) -> Iterator[str]:
    """Yield the locators of a source; any other text is yielded unchanged. Blocks.

    A name of the form MD5+size is a collection if there is one, else a block.

    Args:
        source: One or several locators, a collection's uuid or portable data hash, or the path
            of a file or folder in a mount.
        collection: Returns a collection; None if only Keep services are configured.
        failed: Counts and prints the failures.
    """
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
        for file in _files_in(Path(source)):
            with failed.noted():
                yield locator_of(str(file))
        return
    yield source


def _files_in(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in sorted(names))
