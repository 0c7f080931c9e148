"""Stored bytes: ranges of blocks that are joined, sliced and written as JSON."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfs.collections.manifest import Range
from keepfs.fs.upload.stored import (
    MOST_RANGES,
    NOTHING,
    StoredBytes,
    StoredRange,
    as_rows,
    checked_range,
    from_rows,
)
from keepfs.fs.upload.version import identity_of, locators_of, unsigned
from keepfs.keep import KeepLocator, Receipt
from keepfs.keep.locator import EMPTY_BLOCK

CONTENTS = (b"0123456789", b"abcdefghijklmnop", b"ABC")
SIGNATURE = f"+A{1:040x}@7fffffff"
BLOCKS = [
    Receipt(KeepLocator(f"{KeepLocator.of_block(each)}{SIGNATURE}"), number, ("http://one/",))
    for number, each in enumerate(CONTENTS)
]
EMPTY = Receipt(EMPTY_BLOCK, 2, ())


@st.composite
def ranges(draw: st.DrawFn) -> StoredRange:
    number = draw(st.integers(0, len(BLOCKS) - 1))
    begin = draw(st.integers(0, len(CONTENTS[number]) - 1))
    length = draw(st.integers(1, len(CONTENTS[number]) - begin))
    return StoredRange(BLOCKS[number], begin, length)


def bytes_of(stored: StoredBytes) -> bytes:
    """Return what it stands for."""
    found = b""
    for each in stored.ranges:
        block = CONTENTS[BLOCKS.index(each.receipt)]
        found += block[each.offset : each.offset + each.length]
    return found


@given(st.lists(ranges()), st.integers(0, 60), st.integers(0, 60))
def test_slices_have_the_bytes_of_the_whole(
    given_ranges: list[StoredRange], begin: int, end: int
) -> None:
    stored = StoredBytes(given_ranges)
    content = b"".join(bytes_of(StoredBytes([each])) for each in given_ranges)

    assert bytes_of(stored) == content
    assert stored.size == len(content)
    assert bytes_of(stored.slice(begin, end)) == content[begin:end]
    joined = StoredBytes([*stored.slice(0, begin).ranges, *stored.slice(begin, 10**6).ranges])
    assert joined == stored
    for offset in range(len(content)):
        number = stored.number_at(offset)
        assert stored.start_of(number) <= offset < stored.start_of(number + 1)
    assert stored.number_at(len(content)) == len(stored)


@given(st.lists(ranges()))
def test_no_two_ranges_in_a_row_could_be_one(given_ranges: list[StoredRange]) -> None:
    found = StoredBytes(given_ranges).ranges

    assert not any(one.goes_on_with(two) for one, two in itertools.pairwise(found))


def test_ranges_are_joined_whatever_the_signatures_are() -> None:
    other = Receipt(KeepLocator(BLOCKS[0].locator.stripped()), 1, ())

    assert StoredBytes([StoredRange(BLOCKS[0], 0, 4), StoredRange(other, 4, 6)]).ranges == (
        StoredRange(BLOCKS[0], 0, 10),
    )


@given(st.lists(ranges()), st.integers(0, 3))
def test_json_has_all_of_it(given_ranges: list[StoredRange], holes: int) -> None:
    stored = StoredBytes([*given_ranges, *[StoredRange(BLOCKS[2], 0, 3)] * holes])
    rows = json.loads(json.dumps(as_rows(stored)))

    assert from_rows(rows) == stored
    assert len(list(from_rows(rows).receipts())) == len(list(stored.receipts()))


def test_the_block_of_an_empty_file_is_kept_and_dropped_before_others() -> None:
    empty = StoredBytes.of_blocks([EMPTY])

    assert empty
    assert (empty.size, len(empty)) == (0, 1)
    assert empty.slice(0, 8) == empty
    assert empty.slice(8, 16) == NOTHING
    assert StoredBytes([*empty.ranges, StoredRange(BLOCKS[0], 0, 1)]).ranges == (
        StoredRange(BLOCKS[0], 0, 1),
    )
    assert not NOTHING
    assert repr(empty) == f"<StoredBytes [('{EMPTY_BLOCK}', 0, 0)] ...>"


LOCATOR = str(BLOCKS[0].locator)


@pytest.mark.parametrize(
    "row",
    [
        [LOCATOR, 1],
        [LOCATOR, -1, []],
        [LOCATOR, 1, ["a"], 1, 0],
        [LOCATOR, 1, ["a"], 1, 0, 11],
        [LOCATOR, 1, ["a"], 1, 11, 0],
        [LOCATOR, 1, ["a"], 1, 4, 7],
        [LOCATOR, 1, ["a"], 1, -1, 2],
        [LOCATOR, 1, ["a"], 1, 0.5, 2],
        [LOCATOR, 1, ["a"], True, 0, 2],
        [LOCATOR, 1, "a"],
        [LOCATOR, 1, [5]],
        [LOCATOR, 1, ["a"], 3 * MOST_RANGES + 1],
        [[LOCATOR], 1, ["a"]],
        [f"{LOCATOR[:32]}", 1, ["a"]],
        [f"{LOCATOR[:32]}+67108865", 1, ["a"], 1, 0, 5],
        5,
    ],
)
def test_rows_that_cannot_be_are_refused(row: Any) -> None:  # noqa: ANN401 - of any type
    with pytest.raises((ValueError, TypeError)):
        from_rows([row])


def test_a_range_is_within_its_block() -> None:
    assert checked_range(BLOCKS[0], 9, 1) == StoredRange(BLOCKS[0], 9, 1)
    assert checked_range(BLOCKS[0], 9, 1).as_range() == Range(LOCATOR, 9, 1)
    with pytest.raises(ValueError, match="a length is 2, not from 0 to 1"):
        checked_range(BLOCKS[0], 9, 2)


# --- names ---------------------------------------------------------------------------------


def test_a_list_of_whole_blocks_stands_for_the_bytes_and_another_names_each_block_once() -> None:
    first, second = BLOCKS[0], BLOCKS[1]
    whole = StoredBytes.of_blocks([first, first, second])
    packed = StoredBytes([*whole.ranges, StoredRange(first, 3, 1)])

    assert locators_of(whole) == [first.locator, first.locator, second.locator]
    assert locators_of(packed) == [first.locator, second.locator]


def test_the_identity_tells_parts_of_a_block_apart_whatever_the_signatures_are() -> None:
    first, unsigned_first = BLOCKS[0], Receipt(KeepLocator(BLOCKS[0].locator.stripped()), 1, ())
    texts = [
        unsigned(identity_of(StoredBytes([StoredRange(it, begin, length)])))
        for it in (first, unsigned_first)
        for begin, length in ((0, 10), (0, 3), (3, 3))
    ]

    assert texts[:3] == texts[3:]
    assert texts[:3] == [
        [first.locator.stripped()],
        [f"{first.locator.stripped()}:0:3"],
        [f"{first.locator.stripped()}:3:3"],
    ]
    assert unsigned("") == []
