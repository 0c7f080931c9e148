"""Snapshots of upload/, taken while the catalog is in use."""

from __future__ import annotations

import stat
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from keepfs.fs.nodes import Metadata, directory_mode, file_mode
from keepfs.fs.upload.catalog import ROOT, Catalog, CatalogError
from keepfs.fs.upload.snapshot import StoredNode, manifest_of, open_snapshot
from keepfs.fs.upload.stored import StoredBytes, StoredRange
from keepfs.keep import KeepLocator, Receipt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIGNATURE = f"+A{1:040x}@12345678"
FOO = Receipt(KeepLocator("acbd18db4cc2f85cedef654fccc4a4d8+3" + SIGNATURE), 2, ("a", "b"))
BAR = Receipt(KeepLocator("37b51d194a7513e45b56f6524f2d51f2+3"), 1, ("a",))
EMPTY = Receipt(KeepLocator("d41d8cd98f00b204e9800998ecf8427e+0"), 1, ("a",))
FILE, DIRECTORY = Metadata(file_mode(0o640), 1, 2, 3), Metadata(directory_mode(0o755), 1, 2, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


@pytest.fixture
def catalog(path: Path) -> Iterator[Catalog]:
    with closing(Catalog(path, "store")) as it:
        with it.change():
            it.add_root(DIRECTORY)
            it.add_file(ROOT, "two", FILE, StoredBytes.of_blocks([FOO, BAR]))
            inner = it.add(ROOT, "d", DIRECTORY)
            it.add_file(inner, "e m p t y", FILE, StoredBytes.of_blocks([EMPTY]))
            it.add(inner, "none", DIRECTORY)
            it.add(ROOT, "link", Metadata(stat.S_IFLNK | 0o777, 1, 2, 3), 3, b"two")
        yield it


def nodes_of(path: Path) -> dict[str, StoredNode]:
    with open_snapshot(path) as nodes:
        return {node.path: node for node in nodes}


def test_a_snapshot_has_all_nodes_directories_before_entries(catalog: Catalog, path: Path) -> None:
    assert catalog.root() is not None
    found = nodes_of(path)

    assert list(found) == ["d", "link", "two", "d/e m p t y", "d/none"]
    assert found["two"].stored == StoredBytes.of_blocks([FOO, BAR])
    assert found["two"].metadata == FILE
    assert found["link"].target == b"two"
    assert found["d"].kind == stat.S_IFDIR


def test_a_snapshot_does_not_show_or_block_later_changes(catalog: Catalog, path: Path) -> None:
    with open_snapshot(path) as nodes:
        first = next(nodes)
        with catalog.change():
            catalog.remove(ROOT, "two")
            catalog.add_file(ROOT, "new", FILE, StoredBytes.of_blocks([BAR]))
        rest = {node.path for node in nodes}

    assert first.path == "d"
    assert rest == {"link", "two", "d/e m p t y", "d/none"}
    assert set(nodes_of(path)) == {"d", "link", "new", "d/e m p t y", "d/none"}


def test_a_manifest_has_the_files_and_names_what_it_leaves_out(
    catalog: Catalog, path: Path
) -> None:
    with catalog.change():
        catalog.add(ROOT, "broken", FILE, 3, b"nonsense")
    manifest, left_out = manifest_of(nodes_of(path).values())

    assert manifest.text() == (
        f". acbd18db4cc2f85cedef654fccc4a4d8+3{SIGNATURE} 37b51d194a7513e45b56f6524f2d51f2+3"
        " 0:6:two\n"
        "./d d41d8cd98f00b204e9800998ecf8427e+0 0:0:e\\040m\\040p\\040t\\040y\n"
        "./d/none d41d8cd98f00b204e9800998ecf8427e+0 0:0:\\056\n"
    )
    assert [name for name, _ in left_out] == ["broken", "link"]
    assert "its blocks can't be read" in left_out[0][1]


@pytest.mark.parametrize("content", [None, b"", b"no database at all, but long enough to be one"])
def test_a_file_that_is_no_catalog_is_refused_in_one_line(
    path: Path, content: bytes | None
) -> None:
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(CatalogError) as caught:
        nodes_of(path)

    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_has_files_in_their_blocks_each_block_under_one_signature(
    catalog: Catalog, path: Path
) -> None:
    later = Receipt(KeepLocator(FOO.locator.stripped() + f"+A{2:040x}@23456789"), 0, ())
    with catalog.change():
        catalog.remove(ROOT, "link")
        for name, receipt, begin, length in (
            ("b", FOO, 1, 2), ("c", later, 0, 2), ("e", later, 0, 3),
        ):  # fmt: skip
            stored = StoredBytes([StoredRange(receipt, begin, length)])
            catalog.add_file(ROOT, name, FILE, stored)
    manifest, left_out = manifest_of(
        node for node in nodes_of(path).values() if node.path in {"b", "c", "e"}
    )

    assert left_out == []
    assert manifest.text() == f". {FOO.locator} 1:2:b 0:2:c 0:3:e\n"
