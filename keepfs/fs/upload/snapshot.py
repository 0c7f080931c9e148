"""Snapshots of upload/: its stored files, read from the catalog, of a running mount too.

A snapshot is one transaction on a separate connection: a mount in this or another process
may change the catalog meanwhile. Blocking; not for the trio thread.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keepfs.collections.builder import ManifestBuilder
from keepfs.collections.manifest_errors import EntryError
from keepfs.fs.upload.catalog import ROOT, CatalogError
from keepfs.fs.upload.entries import COLUMNS, damage_of, entry_of, stored_of
from keepfs.fs.upload.schema import MIGRATIONS
from keepfs.fs.upload.sqlite_errors import reason
from keepfs.fs.upload.stored import NOTHING, StoredBytes
from keepfs.messages import of_mounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from keepfs.collections.manifest import Manifest, Range
    from keepfs.fs.nodes import Metadata

#: Name of the catalog in a state directory.
CATALOG = "catalog.sqlite"


@dataclass(frozen=True, slots=True)
class StoredNode:
    """A file, directory or symlink of upload/ whose last version is stored.

    Attributes:
        path: The path below upload/: names joined by slashes, as `os.fsdecode` returns them.
        number: Its number in the catalog.
        metadata: Mode, owner and times; None if the entry is damaged.
        stored: For a file: where its bytes are.
        target: For a symbolic link: its target.
        damage: The flaw of a damaged entry, of which only path and number are known; else empty.
    """

    path: str
    number: int
    metadata: Metadata | None
    stored: StoredBytes = NOTHING
    target: bytes = b""
    damage: str = ""

    @property
    def kind(self) -> int:
        """The type as in st_mode: S_IFREG, S_IFDIR or S_IFLNK; 0 if the entry is damaged."""
        return 0 if self.metadata is None else stat.S_IFMT(self.metadata.mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.kind == stat.S_IFDIR


@contextlib.contextmanager
def open_snapshot(catalog: Path, path: str = "") -> Iterator[Iterator[StoredNode]]:
    """Open a catalog and iterate over its nodes; a directory comes before its entries.

    Only the paths of directories that are yet to be read are kept in memory.

    Args:
        catalog: The database, such as `state_dir / CATALOG`.
        path: A path below upload/: iterate over its node and all nodes below it; over none,
            if the catalog has no such node. Empty for all nodes but upload/ itself.

    Raises:
        CatalogError: There is no catalog, or it can't be read; raised by the iterator too.
    """
    with _reported(catalog), contextlib.closing(_open_read_only(catalog)) as database:
        database.execute("BEGIN")
        yield _with_reports(catalog, _nodes(database, path))


def lost_files(catalog: Path) -> dict[int, str]:
    """Return, by number, why files can't be read any more, as their mount has recorded it.

    Raises:
        CatalogError: There is no catalog, or it can't be read.
    """
    with _reported(catalog), contextlib.closing(_open_read_only(catalog)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'lost'").fetchone():
            return {}  # of a version without retention
        return dict(database.execute("SELECT number, reason FROM lost"))


def store_of(catalog: Path) -> str:
    """Return the store that has a catalog's blocks, as the mount named it; may be empty.

    Raises:
        CatalogError: There is no catalog, or it can't be read.
    """
    with _reported(catalog), contextlib.closing(_open_read_only(catalog)) as database:
        row = database.execute("SELECT value FROM about WHERE key = 'store'").fetchone()
        return str(row[0]) if row else ""


def check_store(catalog: Path, store: str) -> None:
    """Check that a mount of this version with this store can use a catalog; open it read-only.

    Args:
        catalog: The database.
        store: As for `Catalog`.

    Raises:
        CatalogError: It can't, or there is no catalog, or it can't be read.
    """
    known = store_of(catalog)
    with _reported(catalog), contextlib.closing(_open_read_only(catalog)) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        query = "SELECT 1 FROM entries WHERE number != ? LIMIT 1"
        has_entries = database.execute(query, (ROOT,)).fetchone() is not None
    if version > len(MIGRATIONS):
        raise CatalogError(
            of_mounts.CATALOG_NEWER(path=catalog, version=version, known=len(MIGRATIONS))
        )
    if store and known and known != store and has_entries:
        raise CatalogError(
            of_mounts.CATALOG_OF_OTHER_STORE(path=catalog, known=known, store=store)
        )


def _with_reports(catalog: Path, nodes: Iterator[StoredNode]) -> Iterator[StoredNode]:
    with _reported(catalog):
        yield from nodes


def _nodes(database: sqlite3.Connection, path: str) -> Iterator[StoredNode]:
    directories = [(ROOT, "")]
    query = f"SELECT {COLUMNS}, content FROM entries WHERE parent = ? ORDER BY name"  # noqa: S608
    if path:
        top = _top(database, path)
        directories = []
        if top is not None:
            yield top
        if top is not None and top.kind == stat.S_IFDIR:
            directories = [(top.number, f"{path}/")]
    while directories:
        parent, prefix = directories.pop()
        inner = []
        for row in database.execute(query, (parent,)):
            node = _node(prefix, row)
            if node.kind == stat.S_IFDIR:
                inner.append((node.number, f"{node.path}/"))
            yield node
        directories += reversed(inner)


def _top(database: sqlite3.Connection, path: str) -> StoredNode | None:
    """Return the node of a path."""
    query = f"SELECT {COLUMNS}, content FROM entries WHERE parent = ? AND name = ?"  # noqa: S608
    number, row = ROOT, None
    for name in path.split("/"):
        row = database.execute(query, (number, os.fsencode(name))).fetchone()
        if row is None:
            return None
        number = row[0]
    above, slash, _ = path.rpartition("/")
    return None if row is None else _node(above + slash, row)


def _node(prefix: str, row: tuple[Any, ...]) -> StoredNode:
    *columns, content = row
    number, name = columns[0], columns[1]
    path = prefix + os.fsdecode(name)
    damage = damage_of(tuple(columns))
    if damage:
        return StoredNode(path, number, None, damage=damage)
    entry = entry_of(tuple(columns), (None, None))
    kind = stat.S_IFMT(entry.metadata.mode)
    if kind == stat.S_IFLNK:
        return StoredNode(path, number, entry.metadata, target=content)
    if kind == stat.S_IFDIR:
        return StoredNode(path, number, entry.metadata)
    try:
        stored = stored_of(content, size=entry.size)
    except ValueError as error:
        return StoredNode(path, number, None, damage=str(error))
    return StoredNode(path, number, entry.metadata, stored)


class SnapshotManifest:
    """The manifest of nodes that are added one after the other. Not for several threads."""

    def __init__(self) -> None:
        self._builder = ManifestBuilder()
        self._names: dict[str, str] = {}  # the locator of each block, by digest and size
        #: Path and reason of each node that the manifest can't hold.
        self.left_out: list[tuple[str, str]] = []

    def add(self, node: StoredNode) -> None:
        """Add a node under its path, or to `left_out`.

        A manifest holds no symlinks, no damaged entries, and no names and blocks that its
        format can't express.
        """
        try:
            if node.damage:
                reason = f"its entry in the catalog is damaged: {node.damage}"
                self.left_out.append((node.path, reason))
            elif node.kind == stat.S_IFDIR:
                self._builder.add_directory(node.path)
            elif node.kind == stat.S_IFLNK:
                self.left_out.append((node.path, "manifests have no symbolic links"))
            else:
                self._builder.add_file(node.path, _ranges(node.stored, self._names))
        except EntryError as error:
            self.left_out.append((node.path, str(error)))

    def build(self) -> Manifest:
        """Return the manifest of what was added."""
        return self._builder.build()


def manifest_of(nodes: Iterable[StoredNode]) -> tuple[Manifest, list[tuple[str, str]]]:
    """Return a manifest of files and directories, and what it leaves out.

    Args:
        nodes: The nodes; their paths become the paths in the manifest.

    Returns:
        The manifest, and (path, reason) of each node that a manifest can't hold.
    """
    made = SnapshotManifest()
    for node in nodes:
        made.add(node)
    return made.build(), made.left_out


def _ranges(stored: StoredBytes, names: dict[str, str]) -> Iterator[Range]:
    """Yield the ranges of a file, each block under the first of its locators.

    A block with several signatures would be in the text several times, and give it another
    portable data hash.
    """
    for each in stored.ranges:
        if each.length:
            name = names.setdefault(each.locator.stripped(), str(each.locator))
            yield each.as_range()._replace(locator=name)


def _open_read_only(catalog: Path) -> sqlite3.Connection:
    if not catalog.is_file():
        raise CatalogError(of_mounts.NO_CATALOG(path=catalog))
    return sqlite3.connect(
        f"{catalog.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None
    )


@contextlib.contextmanager
def _reported(catalog: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise CatalogError(
            of_mounts.CATALOG_UNUSABLE(path=f" {catalog}", reason=reason(error))
        ) from error
