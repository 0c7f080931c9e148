"""The catalog of upload/: names, modes, times and ranges of blocks, in a lasting database.

Every change is one transaction, committed before the call returns: a crash of
keepfs leaves the old version or the new one. A commit goes to the operating
system, not to the disk: that survives a crash of keepfs, and takes some 50 µs,
so the trio thread may wait for it. `sync` makes what is committed survive a
power cut; it waits for the disk, so it is called in worker threads.

Only the stored version of a file is recorded. A file that isn't stored yet has no
entry, or the entry of the version before.

A damaged entry is reported once in the log, and affects no other: it is listed,
and reading it fails.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
from typing import TYPE_CHECKING, Any

from keepfs import privacy
from keepfs.fs.upload.entries import (
    COLUMNS,
    Entry,
    damage_of,
    damaged_entry,
    entry_of,
    stored_as_text,
    stored_of,
    values_of,
)
from keepfs.fs.upload.schema import MIGRATIONS
from keepfs.fs.upload.sqlite_errors import as_os_errors, reason
from keepfs.fs.upload.stored import NOTHING, StoredBytes
from keepfs.messages import of_mounts
from keepfs.messages.message import MessageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from keepfs.fs.nodes import Metadata

_log = logging.getLogger(__name__)

#: The number of upload/ itself.
ROOT = 1

#: Most directories above an entry that are read: a damaged catalog may have a cycle.
_DEEPEST = 100_000
#: Bytes of the log beyond which `checkpoint` does anything.
_LONG_LOG = 4 * 2**20


class CatalogError(MessageError):
    """The catalog can't be used; the message is one line: why, and what to do."""


class Catalog:
    """The names of one mount's upload/.

    For one thread at a time, except `sync` and `checkpoint`. A method that changes entries
    must be called within `change`, unless its description names a transaction. Reads raise
    OSError, EIO or ENOSPC, if the database can't be read.

    Args:
        path: The database, created if missing. None for one in memory.
        store: The name of the store of the blocks; a catalog belongs to one store
            once it has an entry.
        owner: User and group of all entries, unless None.

    Raises:
        CatalogError: The catalog is in use, of another store, of a newer version,
            damaged, of another user, or a symbolic link.
    """

    def __init__(
        self,
        path: Path | None = None,
        store: str = "",
        owner: tuple[int | None, int | None] = (None, None),
    ) -> None:
        self._owner, self._path = owner, path
        self._lock: int | None = None
        self._reported: set[int] = set()
        #: Called with the number of a file whose new version is recorded.
        self.on_version: Callable[[int], None] = lambda _: None
        if path is not None:
            try:
                _create_private(path)
                self._lock = _locked(path)
            except privacy.NotPrivateError as error:
                raise CatalogError(of_mounts.CATALOG_UNUSABLE(path="", reason=error)) from error
        try:
            self._database = sqlite3.connect(
                ":memory:" if path is None else path,
                isolation_level=None,
                check_same_thread=False,  # one at a time is enough
            )
            self._open(store)
        except sqlite3.Error as error:
            raise CatalogError(
                of_mounts.CATALOG_UNUSABLE(path=f" {path}", reason=reason(error))
            ) from error
        if path is not None:
            # `sync` syncs the log's content; its name, and the catalog's, are synced here.
            privacy.sync_directory(path.parent)

    def _open(self, store: str) -> None:
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        # A checkpoint syncs the disk: `checkpoint` does it, in a worker thread.
        self._database.execute("PRAGMA wal_autocheckpoint = 0")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise CatalogError(
                of_mounts.CATALOG_NEWER(path=self._path, version=version, known=len(MIGRATIONS))
            )
        for number, migration in enumerate(MIGRATIONS[version:], version + 1):
            self._database.executescript(
                f"BEGIN IMMEDIATE; {migration} PRAGMA user_version = {number}; COMMIT;"
            )
        known = self._database.execute("SELECT value FROM about WHERE key = 'store'").fetchone()
        if known is None:
            self._database.execute("INSERT INTO about VALUES ('store', ?)", (store,))
        elif store and known[0] != store and not self._has_entries():
            self._database.execute("UPDATE about SET value = ? WHERE key = 'store'", (store,))
        elif store and known[0] and known[0] != store:
            raise CatalogError(
                of_mounts.CATALOG_OF_OTHER_STORE(path=self._path, known=known[0], store=store)
            )

    def _has_entries(self) -> bool:
        query = "SELECT 1 FROM entries WHERE number != ? LIMIT 1"
        return self._database.execute(query, (ROOT,)).fetchone() is not None

    def close(self) -> None:
        """Sync all commits to the disk, and close the database. Blocks.

        SQLite syncs at a close too, but not while another process has the database open.

        Raises:
            OSError: The commits could not be synced; the database is closed.
        """
        try:
            self.sync()
        finally:
            with as_os_errors():
                self._database.close()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    # --- reading ------------------------------------------------------------

    def root(self) -> Metadata | None:
        """Return the metadata of upload/ itself; None if it has no entry, or a damaged one."""
        row = self._one(f"SELECT {COLUMNS} FROM entries WHERE number = ?", ROOT)  # noqa: S608
        return None if row is None or damage_of(row) else self._entry(row).metadata

    def child(self, parent: int, name: str) -> Entry | None:
        """Return the entry with this name in a directory, or None."""
        query = f"SELECT {COLUMNS} FROM entries WHERE parent = ? AND name = ?"  # noqa: S608
        row = self._one(query, parent, os.fsencode(name))
        return None if row is None else self._entry(row)

    def names(self, parent: int, after: bytes, most: int) -> list[bytes]:
        """Return at most `most` names of a directory that follow `after`, in byte order."""
        query = "SELECT name FROM entries WHERE parent = ? AND name > ? ORDER BY name LIMIT ?"
        with as_os_errors():
            return [name for (name,) in self._database.execute(query, (parent, after, most))]

    def has_children(self, parent: int) -> bool:
        """Return whether a directory has entries."""
        return self._one("SELECT 1 FROM entries WHERE parent = ? LIMIT 1", parent) is not None

    def access(self, number: int) -> object:
        """Return (mode, group) of an entry, to detect changes; None if there is none."""
        row = self._one("SELECT mode, gid FROM entries WHERE number = ?", number)
        return None if row is None else tuple(row)

    def version(self, number: int) -> StoredBytes:
        """Return where the bytes of a file are; nothing if there is no such entry.

        Raises:
            OSError: EIO, the entry is damaged.
        """
        row = self._one(f"SELECT {COLUMNS}, content FROM entries WHERE number = ?", number)  # noqa: S608
        if row is None:
            return NOTHING
        damage = damage_of(row[:-1])
        if not damage:
            try:
                return stored_of(row[-1], size=row[8])
            except ValueError as error:
                damage = str(error)
        self._report(number, row[1], damage)
        raise OSError(errno.EIO, f"the entry {number} of the catalog is damaged: {damage}")

    def content(self, number: int) -> bytes:
        """Return an entry's content as it is recorded; empty if there is no such entry."""
        row = self._one("SELECT content FROM entries WHERE number = ?", number)
        return row[0] if row is not None and isinstance(row[0], bytes) else b""

    def path_of(self, number: int) -> str:
        """Return the path of an entry below upload/; empty if there is none."""
        names: list[str] = []
        while number != ROOT and len(names) < _DEEPEST:
            row = self._one("SELECT parent, name FROM entries WHERE number = ?", number)
            if row is None:
                return ""
            number = row[0]
            names.append(os.fsdecode(row[1]))
        return "/".join(reversed(names))

    def target(self, number: int) -> bytes:
        """Return the target of a symlink."""
        row = self._one("SELECT content FROM entries WHERE number = ?", number)
        return b"" if row is None else row[0]

    # --- changing -----------------------------------------------------------

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """Run the changes of the body in one transaction: all of them, or none.

        Raises:
            OSError: They couldn't be written.
        """
        with as_os_errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                # After some errors SQLite has rolled back; a second rollback would hide them.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def add(
        self, parent: int, name: str, metadata: Metadata, size: int = 0, content: bytes = b""
    ) -> int:
        """Add an entry, in place of one with this name; return its number."""
        self.remove(parent, name)
        values = (parent, os.fsencode(name), *values_of(metadata), size, content)
        found = self._database.execute(
            "INSERT INTO entries (parent, name, mode, uid, gid, atime_ns, mtime_ns, ctime_ns,"
            " size, content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )
        return found.lastrowid or 0

    def add_root(self, metadata: Metadata) -> None:
        """Add upload/ itself."""
        self._database.execute(
            "INSERT OR REPLACE INTO entries VALUES (?, 0, x'', ?, ?, ?, ?, ?, ?, 0, x'')",
            (ROOT, *values_of(metadata)),
        )

    def add_file(self, parent: int, name: str, metadata: Metadata, stored: StoredBytes) -> int:
        """Add a stored file, in place of an entry with this name; return its number."""
        number = self.add(parent, name, metadata, stored.size, stored_as_text(stored))
        self.on_version(number)
        return number

    def set_version(self, number: int, metadata: Metadata, stored: StoredBytes) -> None:
        """Record a file's new version."""
        self._database.execute(
            "UPDATE entries SET size = ?, content = ? WHERE number = ?",
            (stored.size, stored_as_text(stored), number),
        )
        self.set_metadata(number, metadata)
        self._database.execute("DELETE FROM lost WHERE number = ?", (number,))
        self.on_version(number)

    def replace_contents(self, rows: Iterable[tuple[int, bytes, bytes]]) -> None:
        """Replace contents in one transaction, with new locators of the same blocks.

        Entries that were changed since they were read are skipped.

        Args:
            rows: Number of the entry, its content as it was read, and the new one.

        Raises:
            OSError: They couldn't be written; none is replaced.
        """
        with self.change():
            self._database.executemany(
                "UPDATE entries SET content = ?3 WHERE number = ?1 AND content = ?2", rows
            )

    def mark_lost(self, reasons: Iterable[tuple[int, str]]) -> None:
        """Record why files can't be read any more, by their numbers, in a transaction."""
        with self.change():
            self._database.executemany("INSERT OR REPLACE INTO lost VALUES (?, ?)", reasons)

    def lost(self, number: int) -> str:
        """Return why a file can't be read any more; empty if nothing is known to be lost."""
        row = self._one("SELECT reason FROM lost WHERE number = ?", number)
        return "" if row is None else str(row[0])

    def count_lost(self) -> int:
        """Return the number of files that can't be read any more."""
        query = "SELECT count(*) FROM lost WHERE number IN (SELECT number FROM entries)"
        row = self._one(query)
        return 0 if row is None else int(row[0])

    def forget_lost(self) -> None:
        """Remove all marks of `mark_lost`, in a transaction: the files are tried again."""
        with self.change():
            self._database.execute("DELETE FROM lost")

    def about(self, key: str) -> str:
        """Return a text that belongs to the catalog as a whole; empty if there is none."""
        with as_os_errors():
            row = self._database.execute(
                "SELECT value FROM about WHERE key = ?", (key,)
            ).fetchone()
        return "" if row is None else str(row[0])

    def set_about(self, key: str, value: str) -> None:
        """Record a text that belongs to the catalog as a whole, in a transaction."""
        with self.change():
            self._database.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, value))

    @property
    def changes(self) -> int:
        """How many rows were changed through this connection so far; only grows."""
        return self._database.total_changes

    def set_metadata(self, number: int, metadata: Metadata) -> None:
        """Record an entry's mode, owner and times."""
        self._database.execute(
            "UPDATE entries SET mode = ?, uid = ?, gid = ?, atime_ns = ?, mtime_ns = ?,"
            " ctime_ns = ? WHERE number = ?",
            (*values_of(metadata), number),
        )

    def move(self, number: int, parent: int, name: str) -> None:
        """Move an entry to another name, in place of an entry with that name."""
        self.remove(parent, name)
        self._database.execute(
            "UPDATE entries SET parent = ?, name = ? WHERE number = ?",
            (parent, os.fsencode(name), number),
        )

    def exchange(self, number: int, other: int) -> None:
        """Exchange the places of two entries."""
        places = [
            self._database.execute(
                "SELECT parent, name FROM entries WHERE number = ?", (each,)
            ).fetchone()
            for each in (number, other)
        ]
        for each, (parent, name) in ((number, (-1, b"")), (other, places[0]), (number, places[1])):
            self._database.execute(
                "UPDATE entries SET parent = ?, name = ? WHERE number = ?", (parent, name, each)
            )

    def remove(self, parent: int, name: str) -> None:
        """Remove the entry with this name, if there is one."""
        self._database.execute(
            "DELETE FROM entries WHERE parent = ? AND name = ?", (parent, os.fsencode(name))
        )

    def mark_obsolete(self, spilled: str) -> None:
        """Record, within a `change`, that a spill record must not be restored any more."""
        self._database.execute("INSERT OR IGNORE INTO obsolete_spills VALUES (?)", (spilled,))

    def obsolete_spills(self) -> set[str]:
        """Return the names of the spill records that must not be restored any more."""
        with as_os_errors():
            return {name for (name,) in self._database.execute("SELECT * FROM obsolete_spills")}

    def forget_obsolete(self, spilled: Iterable[str]) -> None:
        """Remove the marks of spill records that were deleted, in a transaction."""
        with self.change():
            self._database.executemany(
                "DELETE FROM obsolete_spills WHERE name = ?", ((each,) for each in spilled)
            )

    def sync(self) -> None:
        """Sync all commits to the disk. Blocks; any thread may call it.

        Raises:
            OSError: It couldn't be written.
        """
        if self._path is None:
            return
        # Commits are in the log; a checkpoint syncs the log before it moves
        # anything out of it.
        with contextlib.suppress(FileNotFoundError):
            log = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(log)
            finally:
                os.close(log)

    def checkpoint(self) -> None:
        """Checkpoint the log if it exceeds 4 MiB. Blocks; any thread may call it."""
        if self._path is None:
            return
        with contextlib.suppress(FileNotFoundError), as_os_errors():
            if os.stat(f"{self._path}-wal").st_size > _LONG_LOG:  # noqa: PTH116 - one suffix
                with contextlib.closing(sqlite3.connect(self._path, timeout=0)) as database:
                    database.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        damage = damage_of(row)
        if damage:
            self._report(row[0], row[1], damage)
            return damaged_entry(row, self._owner)
        return entry_of(row, self._owner)

    def _report(self, number: int, name: bytes, damage: str) -> None:
        if number not in self._reported:
            self._reported.add(number)
            _log.error(
                "%s",
                of_mounts.CATALOG_ENTRY_DAMAGED(
                    path=self._path, number=number, name=repr(os.fsdecode(name)), reason=damage
                ),
            )

    def _one(self, query: str, *values: int | bytes) -> tuple[Any, ...] | None:
        with as_os_errors():
            row: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
            return row


def _create_private(path: Path) -> None:
    """Create the catalog's file, with mode 0600, if missing; refuse another user's files.

    SQLite opens its files by name, and would follow a symbolic link.
    """
    privacy.make_directory(path.parent)
    for suffix in ("-wal", "-shm", "-journal"):
        privacy.check_file(path.with_name(path.name + suffix))
    os.close(privacy.open_file(path, os.O_RDWR))


def _locked(path: Path) -> int:
    """Lock the catalog for this process, until the returned descriptor is closed."""
    descriptor = privacy.open_file(f"{path}.lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CatalogError(of_mounts.CATALOG_IN_USE(path=path)) from None
    return descriptor
