"""Trees that exceed one request are kept by several collections."""

from __future__ import annotations

import itertools
import json
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfs.fs.nodes import Metadata, directory_mode, file_mode
from keepfs.fs.upload.snapshot import StoredNode, manifest_of
from keepfs.fs.upload.stored import StoredBytes, StoredRange
from keepfs.keep.locator import KeepLocator
from keepfs.keep.store import Receipt
from keepfs.retention.parts import cut, default_name, most_text, numbered, part_of, text_size

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNED = "acbd18db4cc2f85cedef654fccc4a4d8+3+A" + "0" * 40 + "@6b08f4a2"


@pytest.mark.parametrize(
    ("firsts", "sizes", "limit", "expected"),
    [
        ([0], [], 10, [0]),
        ([0], [(2, 5), (3, 5)], 10, [0]),  # exactly full
        ([0], [(2, 5), (3, 5), (4, 1)], 10, [0, 4]),  # what is new goes into a new part
        ([0, 4], [(2, 5), (4, 1), (5, 9)], 10, [0, 4]),  # parts stay
        ([0, 4], [(2, 5), (3, 7), (4, 1)], 10, [0, 3, 4]),  # one that grew is cut
        ([0, 4], [(4, 1)], 10, [0, 4]),  # an empty part stays
        ([0], [(2, 50), (3, 50)], 10, [0, 3]),  # one entry is never cut
        ([0], [(4, 1), (3, 5), (2, 5)], 10, [0, 4]),  # in any order
    ],
)
def test_parts_are_cut(
    firsts: Sequence[int], sizes: list[tuple[int, int]], limit: int, expected: list[int]
) -> None:
    assert cut(firsts, sizes, limit) == expected


@given(st.dictionaries(st.integers(1, 500), st.integers(0, 30)), st.integers(30, 100))
def test_no_part_is_too_large_and_none_is_cut_twice(sizes: dict[int, int], limit: int) -> None:
    firsts = cut([0], sizes.items(), limit)

    filled = dict.fromkeys(range(len(firsts)), 0)
    for number, size in sizes.items():
        filled[part_of(firsts, number)] += size
    assert max(filled.values()) <= limit
    assert cut(firsts, sizes.items(), limit) == firsts


@given(
    st.lists(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 3),
    st.lists(st.integers(0, 2), max_size=9),
    st.lists(st.integers(0, 3), max_size=12),
)
def test_a_file_takes_no_more_than_was_estimated(
    names: list[str], blocks: int, parts: list[int], others: list[int]
) -> None:
    if any(name in {".", ".."} for name in names):
        return
    receipt = Receipt(KeepLocator(SIGNED), 2, ())
    size = receipt.locator.size or 0
    whole = StoredRange(receipt, 0, size)
    # From the last to the first, they can't be joined.
    ranges = [whole] * blocks + [StoredRange(receipt, n, 1) for n in parts]
    for each in others:  # of blocks that occur several times
        other = Receipt(KeepLocator(f"{each}{SIGNED[1:]}"), 2, ())
        ranges.append(StoredRange(other, 0, size))
    stored = StoredBytes(ranges)
    file = StoredNode("/".join(names), 2, Metadata(file_mode(0o644), 0, 0, 0), stored)
    folders = [
        StoredNode("/".join(path), 3, Metadata(directory_mode(0o755), 0, 0, 0))
        for path in itertools.accumulate([name] for name in names[:-1])
    ]

    manifest, left_out = manifest_of([*folders, file])

    if not left_out:
        text = len(json.dumps(manifest.text())) - 2
        assert text <= text_size(file) + sum(map(text_size, folders))


def test_symlinks_take_no_bytes() -> None:
    link = StoredNode("a", 2, Metadata(stat.S_IFLNK | 0o777, 0, 0, 0), target=b"b")

    assert text_size(link) == 0


def test_a_request_has_room_beside_the_manifest() -> None:
    assert most_text(128 * 2**20) == 128 * 2**20 - 16 * 1024
    assert 0 < most_text(1000) < 1000


def test_the_first_collection_has_the_plain_name() -> None:
    name = default_name("host", "/mnt/keep")

    assert name == "keepfs upload/ of host:/mnt/keep"
    assert [numbered(name, number) for number in (1, 2)] == [name, f"{name} (2)"]
