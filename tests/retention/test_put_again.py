"""Blocks are stored again, and the rows of all their files are rewritten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keepfs.fs.nodes import Metadata, file_mode
from keepfs.fs.upload.catalog import ROOT, Catalog
from keepfs.fs.upload.entries import stored_of
from keepfs.fs.upload.stored import StoredBytes, StoredRange
from keepfs.keep import KeepClient
from keepfs.keep.locator import KeepLocator
from keepfs.keep.store import Receipt
from keepfs.retention.put_again import PutAgain
from tests.retention.test_signatures import NEW, OLD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keepfs.retention.rows import Rewrite


class Again:
    """A catalog, and a store that renews the locators of its blocks."""

    def __init__(self, directory: Path) -> None:
        self.client = KeepClient(local_store=directory / "store")
        self.path = directory / "catalog.sqlite"
        self.catalog = Catalog(self.path)
        self.asked: list[str] = []
        self.lost: dict[int, str] = {}
        self.putting = PutAgain(self, self.path, 1, self.lost.__setitem__)
        self.stops_after = 1000

    def add(self, name: str, locator: str, begin: int = 0, length: int = 3) -> int:
        """Add a file with some bytes of a block."""
        stored = StoredBytes([StoredRange(Receipt(KeepLocator(locator), 1, ()), begin, length)])
        with self.catalog.change():
            return self.catalog.add_file(ROOT, name, Metadata(file_mode(0o644), 0, 0, 0), stored)

    def put_again(self, locator: KeepLocator, copies: int) -> KeepLocator:
        self.asked.append(str(locator))
        if len(self.asked) >= self.stops_after:
            self.putting.stop()
        again = self.client.put(self.client.get(locator.stripped()), copies)
        return KeepLocator(again + NEW)

    def round(self) -> list[Rewrite]:
        found = self.putting.round(lambda _: True, seconds=0.1)
        return [row for batch, _ in found for row in batch]


@pytest.fixture
def again(tmp_path: Path) -> Iterator[Again]:
    it = Again(tmp_path)
    yield it
    it.catalog.close()
    it.client.close()


def test_a_block_of_several_files_is_stored_once_and_all_their_rows_change(again: Again) -> None:
    block = again.client.put(b"foo", 1)
    numbers = [again.add("a", block + OLD), again.add("b", block + OLD, 1, 2)]

    rewrites = again.round()

    assert again.asked == [block + OLD]
    assert [number for number, *_ in rewrites] == numbers
    assert all(NEW.encode() in new for *_, new in rewrites)
    assert [
        stored_of(new, size=size).size for (*_, new), size in zip(rewrites, (3, 2), strict=True)
    ] == [3, 2]
    assert not again.lost


def test_each_file_of_a_missing_block_is_recorded_as_lost(again: Again) -> None:
    missing = "acbd18db4cc2f85cedef654fccc4a4d8+3"
    numbers = [again.add(name, missing + OLD) for name in ("a", "b", "c")]

    assert again.round() == []

    assert len(again.asked) == 1
    assert list(again.lost) == numbers
    assert all("not found" in reason for reason in again.lost.values())


def test_blocks_stored_again_before_a_stop_are_in_the_rows(again: Again) -> None:
    blocks = [again.client.put(content, 1) for content in (b"foo", b"bar", b"baz")]
    numbers = [again.add(f"file {block}", block + OLD) for block in blocks]
    again.stops_after = 2

    rewrites = again.round()

    assert len(again.asked) == 2
    assert [number for number, *_ in rewrites] == numbers[:2]
    assert again.round() == []
