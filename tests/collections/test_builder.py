"""Manifests from files: normal form for any order, and invalid entries."""

from __future__ import annotations

import tracemalloc

import pytest

from keepfs.collections.builder import ManifestBuilder
from keepfs.collections.manifest import File, Manifest, Range
from keepfs.collections.manifest_errors import EntryError
from keepfs.collections.parsing import parse
from tests.collections.blocks import BAR, EMPTY, FOO, MOST


def built(*entries: tuple[str, list[tuple[str, int, int]]]) -> Manifest:
    """Return a manifest of some files."""
    builder = ManifestBuilder()
    for path, ranges in entries:
        builder.add_file(path, ranges)
    return builder.build()


def test_files_in_any_order_have_one_normal_form() -> None:
    files = [
        ("b", [(FOO, 0, 3), (BAR, 0, 2)]),
        ("a", [(BAR, 2, 1)]),
        ("d/x", [(FOO, 0, 1), (FOO, 1, 2)]),
        ("d/a", []),
        ("a-b", [(BAR, 0, 3)]),
    ]

    one, other = built(*files), built(*reversed(files))

    assert (
        one.text()
        == other.text()
        == (f". {BAR} {FOO} 2:1:a 0:3:a-b 3:3:b 0:2:b\n./d {FOO} 0:0:a 0:3:x\n")
    )
    assert one == other
    assert hash(one) == hash(other)
    assert one != built(*files[1:])
    assert one != built(*files[:-1], ("a-b", [(BAR, 0, 2)]))
    assert one != one.text()


def test_directories_without_entries_are_kept() -> None:
    builder = ManifestBuilder()
    builder.add_directory("")
    builder.add_directory("d/e")
    builder.add_directory("d/f")
    builder.add_file("d/f/x", [])

    manifest = builder.build()

    assert manifest.text() == f"./d/e {EMPTY} 0:0:\\056\n./d/f {EMPTY} 0:0:x\n"
    assert [it.path for it in manifest.directories()] == ["", "d", "d/e", "d/f"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "'' has an empty name"),
        ("/a", "'/a' has an empty name"),
        ("a/", "'a/' has an empty name"),
        ("a//b", "'a/' has an empty name"),
        (".", "'.' has the name '.', which is reserved"),
        ("./a", "'./a' has the name '.', which is reserved"),
        ("a/..", "'a/..' has the name '..', which is reserved"),
        ("a/../b", "'a/..' has the name '..', which is reserved"),
        ("a\0b", "'a\\x00b' has a NUL byte"),
        ("\0/b", "'\\x00/b' has a NUL byte"),
        ("a\ud800", "'a\\ud800' has code points that UTF-8 can't represent"),
    ],
)
def test_a_name_that_no_manifest_can_hold_is_refused(path: str, why: str) -> None:
    builder = ManifestBuilder()

    with pytest.raises(EntryError) as caught:
        builder.add_file(path, [(FOO, 0, 3)])
    assert str(caught.value).startswith(why)
    if path:
        with pytest.raises(EntryError):
            builder.add_directory(path)
    assert builder.build().file_count == 0


@pytest.mark.parametrize(
    ("locator", "offset", "length", "why"),
    [
        ("foo", 0, 0, "not a locator: 'foo'"),
        (FOO[:32], 0, 0, "has no size, which a manifest needs"),
        (FOO, 0, 4, f"4 bytes from 0 on of a block of 3: {FOO}"),
        (FOO, 4, 0, "0 bytes from 4 on of a block of 3"),
        (FOO, -1, 1, "1 bytes from -1 on"),
        (FOO, 1, -1, "-1 bytes from 1 on"),
        (FOO[:33] + str(MOST + 1), 0, 1, "more than 2**63 - 1 bytes"),
    ],
)
def test_a_range_that_is_not_in_a_block_is_refused(
    locator: str, offset: int, length: int, why: str
) -> None:
    builder = ManifestBuilder()

    with pytest.raises(EntryError) as caught:
        builder.add_file("a", [(FOO, 0, 3), (locator, offset, length)])

    assert why in str(caught.value)
    assert builder.build().file_count == 0


def test_sizes_over_63_bits_are_refused() -> None:
    builder = ManifestBuilder()
    huge = FOO[:33] + str(MOST)
    builder.add_file("a", [(huge, 0, MOST)])

    with pytest.raises(EntryError, match="'a' has more than"):
        builder.add_file("a", [(huge, 0, 1)])
    with pytest.raises(EntryError, match="the blocks have more than"):
        builder.add_file("b", [(FOO, 0, 3)])

    manifest = builder.build()
    assert parse(manifest.text()) == manifest
    file = manifest.lookup("a")
    assert isinstance(file, File)
    assert list(file.ranges(MOST - 1)) == [Range(huge, MOST - 1, 1)]


def test_a_file_and_a_directory_of_one_path_are_refused() -> None:
    builder = ManifestBuilder()
    builder.add_file("d/a", [])
    builder.add_directory("d/a/b")

    with pytest.raises(EntryError, match="'d/a' is a file and a directory"):
        builder.build()
    with pytest.raises(RuntimeError, match="use a new builder"):
        builder.add_file("x")


def test_blocks_that_become_one_by_stripping_are_named_once() -> None:
    signed = [f"{FOO}+A{digit * 40}@00000000" for digit in "12"]
    manifest = built(("a", [(signed[0], 0, 1), (signed[1], 1, 2)]))

    assert manifest.text() == f". {signed[0]} {signed[1]} 0:1:a 4:2:a\n"
    assert manifest.stripped().text() == f". {FOO} 0:3:a\n"
    assert manifest.with_locators([*signed, BAR]).text() == f". {signed[1]} 0:3:a\n"
    with pytest.raises(EntryError, match="has no size"):
        manifest.with_locators([FOO[:32]])


def test_what_is_not_there_is_not_found() -> None:
    manifest = built(("d/a", [(FOO, 0, 3)]))

    for path in ("a", "d/b", "d/a/", "d/a/x", "/d", "d/", ".", "d/a\ud800"):
        assert manifest.lookup(path) is None, path
    for index in (-1, 1):
        with pytest.raises(IndexError):
            manifest.root.entry(index)
    file = manifest.lookup("d/a")
    assert isinstance(file, File)
    assert list(file.ranges(3)) == list(file.ranges(99, 1)) == list(file.ranges(1, 0)) == []
    assert repr(manifest) == "<Manifest of 1 files in 2 directories>"
    assert repr(file) == "<File 'd/a' of 3 bytes>"
    assert repr(file.parent) == "<Directory 'd'>"
    assert file != file.parent
    assert file.parent != file


def test_the_text_is_yielded_in_pieces_and_never_held_whole() -> None:
    count = 20_000
    builder = ManifestBuilder()
    for number in range(count):
        builder.add_file(f"d{number % 3}/name-{number:040}", [(FOO, 0, 3)])
    manifest = builder.build()
    tracemalloc.start()
    try:
        sizes = [len(piece) for piece in manifest.pieces()]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert sum(sizes) > 1_000_000
    assert all(65_536 <= size < 65_636 for size in sizes[:-1])
    assert peak < 500_000
