"""The catalog: what is in it, what becomes of a change that fails, and when the disk is synced."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import stat
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from keepfs.fs.nodes import Metadata
from keepfs.fs.upload.catalog import ROOT, Catalog, CatalogError
from keepfs.fs.upload.schema import MIGRATIONS
from keepfs.fs.upload.snapshot import open_snapshot
from keepfs.fs.upload.stored import NOTHING, StoredBytes, StoredRange
from keepfs.keep.locator import KeepLocator
from keepfs.keep.store import Receipt
from tests.messages.provoking import assert_shows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIRECTORY, FILE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644
RECEIPTS = (
    Receipt(
        KeepLocator("acbd18db4cc2f85cedef654fccc4a4d8+3+A" + "5" * 40 + "@ffffffff"), 2, ("a", "b")
    ),
    Receipt(KeepLocator("37b51d194a7513e45b56f6524f2d51f2+3"), 1, ()),
)
STORED = StoredBytes.of_blocks(RECEIPTS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a catalog is."""
    return tmp_path / "state" / "catalog"


@pytest.fixture
def catalog(path: Path) -> Iterator[Catalog]:
    """A new one."""
    with closing(Catalog(path, "http://keep/")) as it:
        yield it


def metadata(mode: int = FILE, **times: int) -> Metadata:
    return Metadata(mode, 1000, 1001, **times)


def add(catalog: Catalog, *names: str, parent: int = ROOT) -> list[int]:
    with catalog.change():
        return [catalog.add(parent, name, metadata()) for name in names]


def add_root(catalog: Catalog) -> None:
    with catalog.change():
        catalog.add_root(metadata(DIRECTORY))


# --- what is in it -----------------------------------------------------------


def test_entries_are_there_when_the_catalog_is_opened_again(path: Path) -> None:
    times = {"atime_ns": 1, "mtime_ns": 2, "ctime_ns": 3}
    with closing(Catalog(path)) as first, first.change():
        first.add_root(metadata(DIRECTORY))
        number = first.add_file(ROOT, "f\udcff", metadata(**times), STORED)
        link = first.add(ROOT, "link", metadata(stat.S_IFLNK | 0o777), 3, b"\xff/x")

    with closing(Catalog(path)) as second:
        root, entry = second.root(), second.child(ROOT, "f\udcff")
        receipts, target = second.version(number), second.target(link)

    assert root is not None
    assert (root.mode, root.uid, root.gid) == (DIRECTORY, 1000, 1001)
    assert entry is not None
    assert (entry.number, entry.name, entry.size) == (number, "f\udcff", 6)
    assert entry.metadata == metadata(**times)
    assert receipts == STORED
    assert target == b"\xff/x"


def test_missing_entries_are_none(catalog: Catalog) -> None:
    assert catalog.root() is None
    assert catalog.child(ROOT, "x") is None
    assert catalog.version(7) == NOTHING
    assert catalog.target(7) == b""
    assert not catalog.has_children(ROOT)
    with catalog.change():
        catalog.remove(ROOT, "x")


def test_names_are_returned_in_byte_order_in_chunks(catalog: Catalog) -> None:
    add(catalog, "b", "a", "\u00e4", "A", "aa")

    first = catalog.names(ROOT, b"", 3)

    assert first == [b"A", b"a", b"aa"]
    assert catalog.names(ROOT, first[-1], 3) == [b"b", b"\xc3\xa4"]
    assert catalog.names(ROOT, b"\xff", 3) == []


def test_a_new_entry_replaces_the_one_of_its_name(catalog: Catalog) -> None:
    old, other = add(catalog, "a", "b")
    (new,) = add(catalog, "a")
    with catalog.change():
        catalog.move(other, ROOT, "a")

    entry = catalog.child(ROOT, "a")

    assert entry is not None
    assert entry.number == other
    assert len({old, other, new}) == 3
    assert catalog.names(ROOT, b"", 9) == [b"a"]


def test_a_number_is_never_used_twice(path: Path) -> None:
    with closing(Catalog(path)) as catalog:
        (first,) = add(catalog, "a")
        with catalog.change():
            catalog.remove(ROOT, "a")
    with closing(Catalog(path)) as catalog:
        (second,) = add(catalog, "a")

    assert second > first


def test_two_entries_change_places_across_directories(catalog: Catalog) -> None:
    one, other = *add(catalog, "a"), *add(catalog, "b", parent=7)

    with catalog.change():
        catalog.exchange(one, other)

    there, here = catalog.child(7, "b"), catalog.child(ROOT, "a")
    assert there is not None
    assert here is not None
    assert (there.number, here.number) == (one, other)


def test_a_new_version_has_new_blocks_and_times(catalog: Catalog) -> None:
    (number,) = add(catalog, "a")

    with catalog.change():
        catalog.set_version(number, metadata(mtime_ns=5), STORED)

    entry = catalog.child(ROOT, "a")
    assert entry is not None
    assert (entry.size, entry.metadata.mtime_ns) == (6, 5)
    assert catalog.version(number) == STORED


def test_equal_blocks_in_a_row_take_the_room_of_one(catalog: Catalog) -> None:
    receipts = (RECEIPTS[0], *(RECEIPTS[1],) * 65533, *RECEIPTS)
    with catalog.change():
        number = catalog.add_file(ROOT, "sparse", metadata(), StoredBytes.of_blocks(receipts))

    assert catalog.version(number) == StoredBytes.of_blocks(receipts)
    assert list(catalog.version(number).receipts()) == list(RECEIPTS)
    entry = catalog.child(ROOT, "sparse")
    assert entry is not None
    assert entry.size == 3 * 65536
    assert len(catalog.target(number)) < 1000  # the row's content


@pytest.mark.parametrize("count", [0, -1, 65537, 10**30, "2", 1.0, None, [1]])
def test_an_impossible_count_is_reported_as_damage(path: Path, count: object) -> None:
    content = json.dumps([[str(RECEIPTS[1].locator), 1, [], count]])
    with closing(Catalog(path)) as catalog, catalog.change():
        number = catalog.add(ROOT, "a", metadata(), 3, content.encode())
    with closing(Catalog(path)) as catalog, pytest.raises(OSError, match="is damaged"):
        catalog.version(number)


def test_a_given_owner_owns_all_entries(path: Path) -> None:
    with closing(Catalog(path, owner=(7, None))) as catalog:
        add(catalog, "a")
        entry = catalog.child(ROOT, "a")

    assert entry is not None
    assert (entry.metadata.uid, entry.metadata.gid) == (7, 1001)


# --- changes that fail --------------------------------------------------------


def test_a_failed_change_is_rolled_back(catalog: Catalog) -> None:
    add(catalog, "a")

    def fail() -> None:
        with catalog.change():
            catalog.remove(ROOT, "a")
            catalog.add(ROOT, "b", metadata())
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert catalog.names(ROOT, b"", 9) == [b"a"]
    add(catalog, "c")  # nothing is in its way


def test_errors_of_the_database_become_os_errors(path: Path) -> None:
    catalog = Catalog(path)
    catalog.close()

    with pytest.raises(OSError, match="the catalog can't be written or read"):
        add(catalog, "a")
    with pytest.raises(OSError, match="the catalog can't be written or read"):
        catalog.names(ROOT, b"", 9)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid():
        pytest.skip("only root can mount a file system to fill")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, pages: int) -> Path:
    """Leave that many pages free; return the file that takes the others."""
    filling = disk / "filling"
    with filling.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(max(0, file.tell() - pages * 4096))
    return filling


@pytest.mark.parametrize("pages", [0, 1, 2, 5, 20])
def test_on_a_full_disk_a_change_is_enospc_and_works_again_later(
    small_disk: Path, pages: int
) -> None:
    with closing(Catalog(small_disk / "catalog")) as catalog:
        filling = fill(small_disk, pages)
        added: list[bytes] = []

        def add_more() -> None:
            while True:
                name = f"{len(added):04}" + "n" * 200
                add(catalog, name)
                added.append(name.encode())

        with pytest.raises(OSError, match="its disk is full") as failure:
            add_more()

        assert failure.value.errno == errno.ENOSPC
        assert catalog.names(ROOT, b"", 9999) == added
        catalog.sync()

        filling.unlink()

        add(catalog, "z")
        assert catalog.names(ROOT, b"", 9999) == [*added, b"z"]


@pytest.mark.parametrize("pages", [0, 1, 4])
def test_a_full_disk_where_the_catalog_is_opened_is_named(small_disk: Path, pages: int) -> None:
    Catalog(small_disk / "catalog").close()
    fill(small_disk, pages)

    # With one page free there is no room for the index of the log alone.
    with pytest.raises(CatalogError, match="its disk is full"):
        Catalog(small_disk / "catalog")


# --- whose it is ---------------------------------------------------------------


def test_two_mounts_cannot_use_one_catalog(path: Path, catalog: Catalog) -> None:
    add(catalog, "a")

    with pytest.raises(CatalogError, match="another mount uses"):
        Catalog(path)


def test_a_catalog_with_entries_belongs_to_its_store(path: Path) -> None:
    with closing(Catalog(path, "http://one/")) as catalog:
        add_root(catalog)
        add(catalog, "a")

    with pytest.raises(CatalogError, match="blocks in http://one/, not in http://other/"):
        Catalog(path, "http://other/")


def test_an_empty_catalog_fits_any_store(path: Path) -> None:
    with closing(Catalog(path, "http://one/")) as catalog:
        add_root(catalog)
    Catalog(path, "http://other/").close()

    with closing(Catalog(path, "http://other/")) as catalog:
        add(catalog, "a")

    with pytest.raises(CatalogError, match="not in http://one/"):
        Catalog(path, "http://one/")


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
def test_one_of_an_older_version_is_brought_up_to_date(path: Path, version: int) -> None:
    path.parent.mkdir(mode=0o700)
    old = json.dumps([[str(each.locator), each.copies, each.services] for each in RECEIPTS])
    with closing(sqlite3.connect(path)) as database, database:
        for each in MIGRATIONS[:version]:
            database.executescript(each)
        database.execute(f"PRAGMA user_version = {version}")
        if version:
            database.execute(
                "INSERT INTO entries VALUES (2, 1, CAST('old' AS BLOB), ?, 0, 0, 0, 0, 0, 6, ?)",
                (FILE, old.encode()),
            )
    part = StoredBytes([StoredRange(RECEIPTS[0], 1, 2)])

    with closing(Catalog(path)) as catalog:
        if version:
            assert catalog.version(2) == STORED
        with catalog.change():
            number = catalog.add_file(ROOT, "part", metadata(), part)
        assert not catalog.lost(number)
    with closing(Catalog(path)) as catalog:
        assert catalog.version(number) == part
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_parts_of_blocks_are_recorded(path: Path) -> None:
    other = StoredRange(RECEIPTS[1], 1, 1)
    stored = StoredBytes([StoredRange(RECEIPTS[0], 1, 2), other, other, *STORED.ranges])
    with closing(Catalog(path)) as catalog, catalog.change():
        number = catalog.add_file(ROOT, "part", metadata(), stored)

    with closing(Catalog(path)) as catalog:
        assert catalog.version(number) == stored
        entry = catalog.child(ROOT, "part")
        assert entry is not None
        assert entry.size == 10


def test_a_catalog_of_a_newer_version_is_refused_unchanged(path: Path) -> None:
    Catalog(path).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")

    with pytest.raises(CatalogError, match="written by a newer keepfs"):
        Catalog(path)


def test_a_damaged_catalog_is_refused_unchanged(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)

    with pytest.raises(CatalogError, match="move it away to begin a new one"):
        Catalog(path)

    assert path.read_bytes() == b"no database" * 1000


def test_only_its_owner_can_read_it(path: Path, catalog: Catalog) -> None:
    add(catalog, "a")

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# --- the disk ------------------------------------------------------------------


def test_sync_syncs_where_committed_changes_are(
    path: Path, catalog: Catalog, synced: list[str]
) -> None:
    add(catalog, "a")
    log = path.with_name("catalog-wal")
    assert b"a" in log.read_bytes()
    assert synced == []  # a commit doesn't

    catalog.sync()

    assert synced == [str(log)]


def test_the_names_of_a_new_catalog_and_its_log_are_synced(path: Path, synced: list[str]) -> None:
    with closing(Catalog(path)):
        assert path.with_name("catalog-wal").exists()  # so it is made before the sync

        assert synced == [str(path.parent.parent), str(path.parent)]


def test_closing_syncs_although_another_process_reads(path: Path, synced: list[str]) -> None:
    catalog = Catalog(path)
    add(catalog, "a")
    log = path.with_name("catalog-wal")
    with open_snapshot(path) as nodes:
        assert [node.path for node in nodes] == ["a"]
        synced.clear()

        catalog.close()

        assert log.stat().st_size > 0  # SQLite has moved nothing into the database
        assert synced == [str(log)]


def test_a_catalog_that_cannot_be_synced_is_closed(path: Path) -> None:
    catalog = Catalog(path)
    log = path.with_name("catalog-wal")
    log.unlink()
    log.symlink_to("/proc/self/attr/current")  # fsync of it is EINVAL

    with pytest.raises(OSError, match="Invalid argument"):
        catalog.close()

    assert not log.is_symlink()  # SQLite has removed it
    Catalog(path).close()


def test_without_a_log_there_is_nothing_to_sync(path: Path, synced: list[str]) -> None:
    catalog = Catalog(path)
    catalog.close()  # which moves the log's content into the database
    assert not path.with_name("catalog-wal").exists()
    synced.clear()

    catalog.sync()

    assert synced == []


def test_a_catalog_in_memory_is_not_synced(synced: list[str]) -> None:
    with closing(Catalog()) as catalog:
        catalog.sync()
        catalog.checkpoint()

    assert synced == []


def test_a_long_log_is_checkpointed_without_loss(path: Path, catalog: Catalog) -> None:
    def grow(first: int) -> None:
        with catalog.change():
            for number in range(first, first + 20_000):
                catalog.add(ROOT, f"{number:0100}", metadata())

    grow(0)
    before = path.stat().st_size
    catalog.checkpoint()
    log = path.with_name("catalog-wal").stat().st_size

    assert path.stat().st_size > before + 2 * 2**20
    grow(20_000)
    assert path.with_name("catalog-wal").stat().st_size < 1.5 * log  # it was begun anew
    assert len(catalog.names(ROOT, b"", 50_000)) == 40_000


def test_a_short_log_is_not_checkpointed(path: Path, catalog: Catalog) -> None:
    add(catalog, "a")
    before = path.stat().st_size

    catalog.checkpoint()

    assert path.stat().st_size == before


# --- damage ------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "content = x'7b'",
        "content = CAST('[[\"no locator\", 1, []]]' AS BLOB)",
        "content = CAST('[7]' AS BLOB)",
        "content = CAST('[]' AS BLOB)",  # that is no file of six bytes
        "content = 'text'",
        "content = 5",
        "mode = 'text'",
        "mode = 0",
        "mode = -1",
        "uid = 'nobody'",
        "mtime_ns = 1.5",
        "size = 'large'",
    ],
)
def test_a_damaged_entry_is_reported_once_and_hides_no_other(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Catalog(path)) as catalog, catalog.change():
        catalog.add_root(metadata(DIRECTORY))
        for name in ("before", "damaged", "later"):
            catalog.add_file(ROOT, name, metadata(), STORED)
    with closing(sqlite3.connect(path)) as database, database:
        change = f"UPDATE entries SET {damage} WHERE name = CAST('damaged' AS BLOB)"  # noqa: S608
        database.execute(change)

    with closing(Catalog(path)) as catalog:
        entries = {}
        for _ in range(2):
            for listed in catalog.names(ROOT, b"", 10):
                entry = catalog.child(ROOT, listed.decode())
                assert entry is not None
                entries[entry.name] = entry
        damaged = entries["damaged"]

        assert list(entries) == ["before", "damaged", "later"]
        assert stat.S_ISREG(damaged.metadata.mode)
        assert damaged.size > 0
        for _ in range(2):
            with pytest.raises(OSError, match="is damaged") as caught:
                catalog.version(damaged.number)
            assert caught.value.errno == errno.EIO
        assert catalog.version(entries["later"].number) == STORED
        with catalog.change():
            catalog.remove(ROOT, "damaged")
        assert catalog.child(ROOT, "damaged") is None
    assert len([it for it in caplog.records if "damaged" in it.getMessage()]) == 1
    assert_shows(caplog.text, "catalog-entry-damaged")


def test_a_damaged_root_entry_is_replaced(path: Path) -> None:
    with closing(Catalog(path)) as catalog, catalog.change():
        catalog.add_root(metadata(DIRECTORY))
        catalog.add_file(ROOT, "file", metadata(), STORED)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE entries SET mode = 'text' WHERE number = ?", (ROOT,))

    with closing(Catalog(path)) as catalog:
        assert catalog.root() is None
        add_root(catalog)

        assert catalog.root() is not None
        assert catalog.names(ROOT, b"", 10) == [b"file"]
