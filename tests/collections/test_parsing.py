"""Texts that are no manifests: the error has the flaw, the line and the column."""

from __future__ import annotations

import pytest

from keepfs.collections.manifest import Directory, File
from keepfs.collections.manifest_errors import ManifestError
from keepfs.collections.parsing import MAX_TOKEN, parse
from tests.collections.blocks import BAR, EMPTY, FOO, MOST

SIGNATURE = f"+A{'0' * 40}@00000000"

WRONG = [
    ("the newline is missing", f". {FOO} 0:3:a", 1, 43, "the text ends within a line: it was cut"),
    ("a cut after a blank", f". {FOO} ", 1, 38, "the text ends within a line: it was cut"),
    ("an empty line", f". {FOO} 0:3:a\n\n", 2, 1, "a token is missing"),
    ("two blanks", f". {FOO}  0:3:a\n", 1, 38, "a token is missing"),
    ("a blank at the end", f". {FOO} 0:3:a \n", 1, 44, "a token is missing"),
    ("a tab", f". {FOO} 0:3:a\tb\n", 1, 43, "the control character 0x09 is not escaped"),
    ("a carriage return", f". {FOO} 0:3:a\r\n", 1, 43, "the control character 0x0d is not"),
    ("not UTF-8", f". {FOO} 0:3:\udcff\n", 1, 42, "the byte 0xed is not UTF-8"),
    ("the stream has no dot", f"a {FOO} 0:3:a\n", 1, 1, "'.' or begins with './', not 'a'"),
    ("the stream ends with a slash", f"./a/ {FOO} 0:3:a\n", 1, 1, "'a/' has an empty name"),
    ("the stream is ./", f"./ {FOO} 0:3:a\n", 1, 1, "'./' has an empty name"),
    ("the stream goes up", f"./a/.. {FOO} 0:3:a\n", 1, 1, "'a/..' has the name '..'"),
    ("the stream has a dot", f"./\\056 {FOO} 0:3:a\n", 1, 1, "'.' has the name '.'"),
    ("a stream alone", ".\n", 1, 2, "the stream has no blocks"),
    ("no blocks", ". 0:0:a\n", 1, 3, "not a locator: '0:0:a'"),
    ("no files", f". {FOO}\n", 1, 37, "the stream has no files"),
    ("no size", f". {FOO[:32]} 0:0:a\n", 1, 3, f"the locator '{FOO[:32]}' has no size"),
    ("a bad hint", f". {FOO}+a 0:0:a\n", 1, 3, "a hint is an upper-case letter"),
    ("two signatures", f". {FOO}{2 * SIGNATURE} 0:0:a\n", 1, 3, "two permission"),
    ("a bad signature", f". {FOO}+A0 0:0:a\n", 1, 3, "a permission hint is +A"),
    ("a block after a file", f". {FOO} 0:3:a {BAR}\n", 1, 44, "comes after a file: blocks come"),
    ("junk after a file", f". {FOO} 0:3:a b\n", 1, 44, "'b' is not position:size:name"),
    ("one colon", f". {FOO} 0:a\n", 1, 38, "'0:a' is not position:size:name"),
    ("a negative size", f". {FOO} 0:-1:a\n", 1, 38, "position and size are decimal numbers"),
    ("an underscore", f". {FOO} 0:1_0:a\n", 1, 38, "position and size are decimal numbers"),
    ("other digits", f". {FOO} 0:\u0663:a\n", 1, 38, "position and size are decimal numbers"),
    ("no name", f". {FOO} 0:3:\n", 1, 38, "the name is missing: '0:3:'"),
    ("too many digits", f". {FOO} 0:{'9' * 20}:a\n", 1, 38, "have at most 19 digits"),
    ("beyond the end", f". {FOO} 1:3:a\n", 1, 38, "bytes 1 to 4 of a stream of 3 bytes"),
    ("far beyond the end", f". {FOO} 0:{MOST}:a\n", 1, 38, "of a stream of 3 bytes"),
    ("a directory with data", f". {FOO} 0:3:\\056\n", 1, 38, "empty directory '.' has 3 bytes"),
    ("a NUL", f". {FOO} 0:3:a\\000\n", 1, 38, "'a\\x00' has a NUL byte"),
    ("an absolute name", f". {FOO} 0:3:/a\n", 1, 38, "'/a' has an empty name"),
    ("an escaped slash", f". {FOO} 0:3:\\057a\n", 1, 38, "'/a' has an empty name"),
    ("a name that goes up", f". {FOO} 0:3:../a\n", 1, 38, "'../a' has the name '..'"),
    ("a slash at the end", f". {FOO} 0:3:a/\n", 1, 38, "'a/' has an empty name"),
    ("a huge block", f". {FOO[:33]}{2**63} 0:0:a\n", 1, 3, "more than 2**63 - 1 bytes"),
    ("a huger block", f". {FOO[:33]}{10**19} 0:0:a\n", 1, 3, "a size of more than 19 digits"),
    ("a huge sum", f". {FOO[:33]}{MOST} {FOO} 0:0:a\n", 1, 56, "the blocks have more than 2**63"),
    (
        "a huge file",
        f". {FOO[:33]}{MOST} 0:{MOST}:a 0:1:a\n",
        1,
        80,
        "'a' has more than 2**63 - 1 bytes",
    ),
    ("a file, then a directory", f". {FOO} 0:3:a\n./a {FOO} 0:3:b\n", 2, 1, "'a' is a file and a"),
    ("a directory, then a file", f"./a {FOO} 0:3:b\n. {FOO} 0:3:a\n", 2, 38, "'a' is a file and"),
    ("both in one line", f". {FOO} 0:3:a/b 0:3:a\n", 1, 46, "'a' is a file and a directory"),
    ("columns are bytes", f"./é {FOO} 0:4:a\n", 1, 41, "bytes 0 to 4"),
    ("a long token", "./" + "a" * MAX_TOKEN, 1, 1, f"a token has more than {MAX_TOKEN} bytes"),
    (
        "a long name",
        f". {FOO} 0:3:{'a' * MAX_TOKEN}b\n",
        1,
        38,
        f"a token has more than {MAX_TOKEN} bytes",
    ),
    ("a long hint", f". {FOO}+Z{'a' * MAX_TOKEN} 0:3:b\n", 1, 3, "a token has more than"),
]


@pytest.mark.parametrize(
    ("text", "line", "column", "reason"),
    [pytest.param(*case, id=what) for what, *case in WRONG],
)
def test_an_error_has_the_flaw_and_its_place(
    text: str, line: int, column: int, reason: str
) -> None:
    for source in (text, [text.encode("utf-8", "surrogatepass")]):
        with pytest.raises(ManifestError) as caught:
            parse(source)

        assert (caught.value.line, caught.value.column) == (line, column)
        assert reason in caught.value.reason


@pytest.mark.parametrize("text", ["", b"", []])
def test_the_empty_text_is_the_empty_collection(text: str | bytes | list[bytes]) -> None:
    empty = parse(text)

    assert (empty.file_count, empty.directory_count, len(empty.root)) == (0, 1, 0)
    assert empty.root
    assert empty.text() == ""
    assert empty.portable_data_hash() == "d41d8cd98f00b204e9800998ecf8427e+0"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (f". {FOO} 0:3:a:b\n", f". {FOO} 0:3:a\\072b\n"),
        (f". {FOO} 0:3:d/e/f\n", f"./d/e {FOO} 0:3:f\n"),
        (f". {FOO} 0:3:a\\b\\\\c\n", f". {FOO} 0:3:a\\134b\\134c\n"),
        (f". {FOO} 0:3:\\303\\251\n", f". {FOO} 0:3:é\n"),
        (f". {FOO} 0:3:\\377\n", f". {FOO} 0:3:\\377\n"),
        (f". {FOO} 0:3:\\777\n", f". {FOO} 0:3:\\134777\n"),
        (f". {FOO[:33]}003 0:3:a\n", f". {FOO} 0:3:a\n"),
        (f". {FOO} 99:0:a\n", f". {EMPTY} 0:0:a\n"),
        (f". {FOO} {EMPTY} {BAR} 0:6:a\n", f". {FOO} {BAR} 0:6:a\n"),
        (f". {FOO} {BAR} 3:3:a\n", f". {BAR} 0:3:a\n"),
        (f". {FOO} {FOO} 0:6:a 2:2:a\n", f". {FOO} 0:3:a 0:3:a 2:1:a 0:1:a\n"),
        (f". {EMPTY} 0:0:\\056\n", ""),
        (f". {EMPTY} 0:0:d/\\056\n", f"./d {EMPTY} 0:0:\\056\n"),
        (f"./d {EMPTY} 0:0:. 0:0:f\n", f"./d {EMPTY} 0:0:f\n"),
        (
            f"./b {FOO} 0:3:x\n./a-b {FOO} 0:3:x\n./a/b {FOO} 0:3:x\n",
            f"./a/b {FOO} 0:3:x\n./a-b {FOO} 0:3:x\n./b {FOO} 0:3:x\n",
        ),
    ],
)
def test_manifests_of_old_clients_have_a_normal_form(text: str, normal: str) -> None:
    assert parse(text).text() == normal


def test_memory_is_linear_where_many_files_cover_many_blocks() -> None:
    """Mapped to blocks, these would be 100 million ranges."""
    blocks = " ".join(f"{number:032x}+1" for number in range(10_000))
    files = " ".join(f"0:10000:{number:05}" for number in range(10_000))

    manifest = parse(f". {blocks} {files}\n")

    last = manifest.lookup("09999")
    assert isinstance(last, File)
    assert last.size == 10_000
    assert [each.locator for each in last.ranges(9_998)] == [f"{it:032x}+1" for it in (9998, 9999)]


def test_a_file_that_follows_another_starts_where_it_ends() -> None:
    blocks = [f"{number:032x}+10" for number in range(4)]
    manifest = parse(
        f". {blocks[0]} {EMPTY} {blocks[1]} 0:4:a 4:10:b 0:0:c 19:1:d 0:2:d 18:1:d\n"
        f"./e {blocks[2]} {blocks[3]} 0:20:f\n"
    )
    files = {each.name: each for each in manifest.files()}

    extents = {name: file.extent() for name, file in files.items()}
    assert extents == {"a": (0, 4), "b": (4, 14), "c": (0, 0), "d": (19, 19), "f": (20, 40)}
    assert list(files["a"].next_blocks()) == blocks[1:]
    assert list(files["b"].next_blocks()) == blocks[2:]
    assert list(files["c"].next_blocks()) == blocks
    assert list(files["f"].next_blocks()) == []


def test_a_path_of_very_many_directories_is_parsed() -> None:
    path = "/".join("a" * 100_000)

    manifest = parse(f"./{path} {FOO} 0:3:f\n")

    assert manifest.directory_count == 100_001
    assert isinstance(manifest.lookup(path), Directory)
    assert manifest.text() == f"./{path} {FOO} 0:3:f\n"
