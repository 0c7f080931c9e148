"""Any text parses or raises an error with its place; the SDK reads a parsed one equally."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keepfs.collections.builder import ManifestBuilder
from keepfs.collections.escapes import encoded, escape
from keepfs.collections.manifest import Directory, File, Manifest
from keepfs.collections.manifest_errors import EntryError, ManifestError
from keepfs.collections.parsing import parse
from keepfs.collections.portable import portable_data_hash, stripped
from tests.collections.sdk import read_by_sdk

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A byte of a file: the block it is in, and where.
Place: TypeAlias = tuple[str, int]
Entry: TypeAlias = tuple[str, list[tuple[str, int, int]]]

SIGNATURE = "+A1f27a35dd9af37191d63ad8eb8985624451e7b79@5835c8bc"
#: Small sizes, so that segments often meet, cross blocks and are empty.
BLOCKS = [
    f"{digit * 32}+{size}{hints}"
    for digit, size, hints in zip(
        "0123456789ab",
        itertools.cycle((1, 2, 3, 5)),
        itertools.cycle(("", SIGNATURE, f"+K@xyzzy{SIGNATURE}+Zfoo")),
        strict=False,
    )
]
ODD = " \n\t\x01:\\.-é\u1f600ab0\x7f\\040"

blocks = st.sampled_from(BLOCKS)
# The SDK splits a text at each blank of Unicode, and prints those beyond ASCII as they are.
names = st.text(
    st.one_of(
        st.sampled_from(ODD),
        st.characters(codec="utf-8", exclude_characters="/\0").filter(
            lambda it: it <= " " or not it.isspace()
        ),
    ),
    min_size=1,
    max_size=6,
).filter(lambda it: it not in {".", ".."})
paths = st.lists(st.one_of(st.sampled_from("abc"), names), min_size=1, max_size=4).map("/".join)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[str, int, int]:
    """Draw some bytes of a block, or none."""
    block = draw(blocks)
    size = size_of(block)
    offset = draw(st.integers(0, size))
    return block, offset, draw(st.integers(0, size - offset))


entries = st.lists(st.tuples(paths, st.lists(ranges(), max_size=5)), max_size=12)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Draw a manifest that is hardly ever in normal form."""
    lines = []
    for _ in range(draw(st.integers(0, 4))):
        listed = draw(st.lists(blocks, min_size=1, max_size=5))
        total = sum(size_of(block) for block in listed)
        tokens = [draw(st.sampled_from([".", "./a", "./b/c", f"./{escaped(draw(names))}"]))]
        tokens += listed
        for _ in range(draw(st.integers(1, 6))):
            start = draw(st.integers(0, total))
            size = draw(st.integers(0, total - start))
            name = draw(st.one_of(st.sampled_from(["f", "g", "d/f", "d/e/g"]), names.map(escaped)))
            tokens.append(f"{start}:{size}:{name}")
        if draw(st.booleans()):
            tokens.append(draw(st.sampled_from([r"0:0:\056", "0:0:.", r"0:0:d/x/\056"])))
        lines.append(" ".join(tokens) + "\n")
    return "".join(lines)


tokens = st.one_of(
    st.sampled_from([".", "./a", "./a/b", "./..", "0:0:\\056", "0:1:f", "3:3:a/b", "9:99:f"]),
    st.sampled_from([*BLOCKS, "d41d8cd98f00b204e9800998ecf8427e+0", "0" * 32, "", "\t", "\0"]),
    st.sampled_from(
        ["0:0:a\\", "0:0:a//b", "0:0:/", "0:0:..", "0:0:\\000", "0:x:a", ":::", "0::"]
    ),
    st.integers(0, 2**70).map(lambda it: f"{it}:{it}:f"),
    st.integers(0, 2**70).map(lambda it: f"{'f' * 32}+{it}"),
)
separators = st.sampled_from([" ", " ", " ", "\n", "  ", "", " \n"])
wrong_texts = st.lists(st.tuples(tokens, separators), max_size=12).map(
    lambda pairs: "".join(itertools.chain.from_iterable(pairs))
)
any_bytes = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(str.encode),
    wrong_texts.map(str.encode),
    texts().map(str.encode),
)


def size_of(block: str) -> int:
    """Return the bytes of a block."""
    return int(block.split("+")[1])


def escaped(name: str) -> str:
    """Return a name as a manifest has it."""
    return escape(encoded(name)).decode()


def places(pieces: Iterable[tuple[str, int, int]]) -> list[Place]:
    """Return where each byte of some ranges is."""
    return [
        (block, offset + number) for block, offset, length in pieces for number in range(length)
    ]


def build(tree: list[Entry]) -> tuple[Manifest, dict[str, list[Place]]] | None:
    """Return the manifest of a tree and its model; None if a file's path is a directory's."""
    model: dict[str, list[Place]] = {}
    above: set[str] = set()
    builder = ManifestBuilder()
    for path, pieces in tree:
        builder.add_file(path, pieces)
        model.setdefault(path, []).extend(places(pieces))
        above.update(itertools.accumulate(path.split("/")[:-1], lambda a, b: f"{a}/{b}"))
    if above & model.keys():
        with pytest.raises(EntryError, match="is a file and a directory"):
            builder.build()
        return None
    return builder.build(), model


@given(any_bytes)
@example(b"")
@example(b". ")
@example(b".\n")
@example(b"\xff")
@example(b". \xc3")
@example(b". 00000000000000000000000000000000+3 0:3:f\n. \xc3(\n")
def test_any_text_parses_or_is_refused_with_its_place(text: bytes) -> None:
    try:
        found = parse(text)
    except ManifestError as caught:
        error = caught
    else:
        assert parse(found.text()) == found
        return
    lines = text.split(b"\n")
    assert 1 <= error.line <= len(lines)
    assert 1 <= error.column <= len(lines[error.line - 1]) + 1
    assert str(error) == (
        f"not a manifest: line {error.line}, column {error.column}: {error.reason}"
    )


@given(any_bytes, st.lists(st.integers(0, 100), max_size=5))
def test_pieces_cut_anywhere_are_the_whole_text(text: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(text)]
    pieces = [text[start:stop] for start, stop in itertools.pairwise(bounds)]

    def outcome(whole: bytes | list[bytes]) -> tuple[object, ...]:
        try:
            return (parse(whole),)
        except ManifestError as error:
            return error.args

    assert outcome(pieces) == outcome(text)
    assert b"".join(stripped(pieces)) == b"".join(stripped(text))


@given(entries)
def test_a_tree_is_what_was_built_and_what_the_sdk_reads(tree: list[Entry]) -> None:
    built = build(tree)
    if built is None:
        return
    manifest, model = built

    assert {file.path: places(file.ranges()) for file in manifest.files()} == model
    assert {file.path: file.size for file in manifest.files()} == {
        path: len(found) for path, found in model.items()
    }
    text = manifest.text()
    assert parse(text) == manifest
    sdk = read_by_sdk(text)
    assert text == sdk.normal
    assert manifest.portable_data_hash() == sdk.portable_data_hash
    assert manifest.stripped().text() == parse(b"".join(stripped(text))).text()
    assert portable_data_hash(text) == portable_data_hash(b"".join(stripped(text)))


@given(texts())
def test_the_normal_form_of_a_text_is_the_sdks(text: str) -> None:
    try:
        manifest = parse(text)
    except ManifestError as error:
        assert re.search("is a file and a directory", error.reason)  # noqa: PT017
        return
    sdk = read_by_sdk(text)

    assert manifest.text() == sdk.normal
    assert manifest.portable_data_hash() == sdk.portable_data_hash
    assert parse(manifest.text()) == manifest


@given(entries, st.data())
def test_entries_are_found_by_name_by_number_and_by_offset(
    tree: list[Entry], data: st.DataObject
) -> None:
    built = build(tree)
    if built is None:
        return
    manifest, model = built
    found = []
    for directory in manifest.directories():
        assert manifest.lookup(directory.path) == directory
        listed = list(directory.entries())
        assert len(directory) == len(listed)
        for kind in (Directory, File):
            own = [encoded(entry.name) for entry in listed if isinstance(entry, kind)]
            assert own == sorted(own)
        for index, entry in enumerate(listed):
            assert directory.entry(index) == entry
            assert directory.lookup(entry.name) == entry == manifest.lookup(entry.path)
            assert entry.parent == directory
            found.append(entry)
        assert directory.lookup("no such name") is None
    assert sum(isinstance(entry, File) for entry in found) == manifest.file_count == len(model)
    assert len({hash(entry) for entry in found}) <= len(found)
    for file in manifest.files():
        offset = data.draw(st.integers(0, file.size + 1))
        length = data.draw(st.integers(0, file.size + 1))
        wanted = model[file.path][offset : offset + length]
        assert places(file.ranges(offset, length)) == wanted
    used = [block for file in manifest.files() for block, _, _ in file.ranges()]
    assert list(manifest.blocks()) == list(dict.fromkeys(used))


@given(entries)
def test_new_signatures_change_nothing_else(tree: list[Entry]) -> None:
    built = build(tree)
    if built is None:
        return
    manifest, _ = built
    fresh = [
        re.sub(r"[+]A\w+@\w+", "+A" + "0" * 40 + "@00000001", block) for block in manifest.blocks()
    ]

    signed = manifest.with_locators(fresh)

    assert list(signed.blocks()) == fresh
    assert signed.portable_data_hash() == manifest.portable_data_hash()
    assert signed.with_locators(manifest.blocks()) == manifest


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=5))
def test_names_that_are_not_utf_8_come_back(raw: list[bytes]) -> None:
    wanted = {name.replace(b"/", b"").replace(b"\0", b"") for name in raw} - {b"", b".", b".."}
    builder = ManifestBuilder()
    for name in wanted:
        builder.add_file(name.decode("utf-8", "surrogateescape"))

    read = parse(builder.build().text())

    assert [encoded(file.name) for file in read.files()] == sorted(wanted)
