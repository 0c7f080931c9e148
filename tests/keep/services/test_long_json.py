"""Very long texts are written to JSON and read from it in pieces, cut anywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfs.keep.services.long_json import PIECE, LongTexts, json_pieces

# Much that could be taken for a key, an end or an escape sequence.
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(alphabet='"\\ u0:mt\n\0é😀'),
    st.sampled_from(['"manifest_text":"', '\\"manifest_text\\": \\"', "manifest_text", "\\"]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.just("manifest_text"), TEXTS), inner, max_size=4),
    ),
    max_leaves=8,
)


def with_bytes(value: Any, key: str = "") -> Any:  # noqa: ANN401 - any JSON
    """Make the texts under the key bytes, as `LongTexts` does."""
    if isinstance(value, dict):
        return {name: with_bytes(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [with_bytes(each) for each in value]
    return value.encode() if key == "manifest_text" and isinstance(value, str) else value


@given(
    value=st.dictionaries(st.one_of(st.just("manifest_text"), st.just("a")), VALUES),
    is_ascii=st.booleans(),
    indent=st.sampled_from([None, 1]),
    cut=st.integers(min_value=1, max_value=40),
)
def test_a_text_read_in_pieces_equals_the_written_one(
    value: dict[str, Any], cut: int, indent: int | None, *, is_ascii: bool
) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode()
    reader = LongTexts("manifest_text", 1 << 20)

    for start in range(0, len(text), cut):
        reader.feed(text[start : start + cut])

    assert reader.parsed() == with_bytes(value)


@pytest.mark.parametrize("text", [b'{"a": {"\\u0000": 0}}', b'{"\\u0000": "x"}'])
def test_no_key_of_an_answer_is_taken_for_an_extracted_text(text: bytes) -> None:
    reader = LongTexts("manifest_text", 100)

    reader.feed(text)

    assert reader.parsed() == json.loads(text)


def test_a_long_text_without_a_blank_is_refused() -> None:
    reader = LongTexts("manifest_text", 100)

    reader.feed(b'{"manifest_text": "')
    with pytest.raises(ValueError, match="without a blank"):
        reader.feed(b"x" * (PIECE + 1))


@given(TEXTS)
def test_what_is_escaped_is_json(text: str) -> None:
    assert json.loads(b'"' + b"".join(json_pieces(text)) + b'"') == text
    assert json.loads(b'"' + b"".join(json_pieces(text.encode())) + b'"') == text


def test_a_text_may_be_cut_within_a_character() -> None:
    text = "x" * (PIECE - 1) + "😀\\" * PIECE

    for given_text in (text, text.encode()):
        assert json.loads(b'"' + b"".join(json_pieces(given_text)) + b'"') == text


@pytest.mark.parametrize("bad", ["\ud800", b"\xff", b"\xc3", b"x" * (PIECE - 1) + b"\xe2\x82"])
def test_a_text_that_is_not_utf_8_is_refused(bad: str | bytes) -> None:
    with pytest.raises(ValueError, match="codec can't"):
        list(json_pieces(bad))


@pytest.mark.parametrize(
    "bad",
    [
        b'{"manifest_text":"',
        b'{"manifest_text":"x\\',
        b'{"manifest_text":"x\ny"}',
        b'{"manifest_text":"x"',
        b'{"manifest_text":"\\ud800"}',
        b'{"a":"' + b"x" * 2000 + b'"}',
    ],
    ids=["no end", "escape", "raw line end", "no brace", "lone surrogate", "too long"],
)
def test_invalid_json_is_an_error(bad: bytes) -> None:
    reader = LongTexts("manifest_text", 1000)

    with pytest.raises(ValueError, match=r"."):
        _read(reader, bad)


def _read(reader: LongTexts, text: bytes) -> None:
    reader.feed(text)
    reader.parsed()
