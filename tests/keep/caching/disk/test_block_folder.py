"""Blocks on the disk: each byte that is read is verified, with any damage to the file."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import time
from typing import TYPE_CHECKING, NoReturn

import pytest

from keepfs.keep.caching.disk import block_file
from keepfs.keep.caching.disk.block_file import PIECE
from keepfs.keep.caching.disk.block_folder import BlockFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZES = [1, 100, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE, 5 * PIECE + 7]


class Damage:
    """Collects what was thrown out."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def __call__(self, md5sum: str, reason: str) -> None:
        self.found.append((md5sum, reason))


@pytest.fixture
def damage() -> Damage:
    return Damage()


@pytest.fixture
def folder(tmp_path: Path, damage: Damage) -> Iterator[BlockFolder]:
    opened = BlockFolder(tmp_path, damage)
    yield opened
    opened.close()


def block_of(size: int, seed: int = 0) -> tuple[str, bytes]:
    block = random.Random(seed).randbytes(size)  # noqa: S311 - test data
    return hashlib.md5(block, usedforsecurity=False).hexdigest(), block


def file_of(tmp_path: Path, md5sum: str) -> Path:
    return tmp_path / "blocks-2" / md5sum[:3] / md5sum


@pytest.mark.parametrize("size", SIZES)
def test_a_block_comes_back_whole_and_in_parts(folder: BlockFolder, size: int) -> None:
    md5sum, block = block_of(size)

    assert folder.add(md5sum, block) > size
    assert folder.add(md5sum, block) == 0

    assert folder.read(md5sum) == block
    for begin, end in ((0, 1), (size - 1, size), (size // 3, size // 2), (0, size)):
        assert folder.read_part(md5sum, begin, end, size) == memoryview(block)[begin:end]
    assert folder.read_part(md5sum, 0, 1, size + 1) is None


def test_another_process_s_blocks_are_found_without_a_scan(
    folder: BlockFolder, tmp_path: Path
) -> None:
    other = BlockFolder(tmp_path)
    md5sum, block = block_of(1000)

    other.add(md5sum, block)

    assert folder.read(md5sum) == block
    assert [(it.md5sum, it.visited_before) for it in folder.files()] == [(md5sum, 0)]
    assert other.remove(md5sum)
    assert not folder.remove(md5sum)
    other.close()


@pytest.mark.parametrize("size", [100, 3 * PIECE + 5])
def test_a_flipped_bit_anywhere_is_found(
    folder: BlockFolder, damage: Damage, tmp_path: Path, size: int
) -> None:
    md5sum, block = block_of(size)
    odds = random.Random(1)  # noqa: S311 - test data
    for number in range(200):
        folder.add(md5sum, block)
        path = file_of(tmp_path, md5sum)
        content = bytearray(path.read_bytes())
        bit = odds.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)

        assert folder.read(md5sum) is None
        assert len(damage.found) == number + 1
        assert not path.exists()


def test_a_part_is_returned_only_if_its_pieces_are_intact(
    folder: BlockFolder, damage: Damage, tmp_path: Path
) -> None:
    md5sum, block = block_of(4 * PIECE)
    folder.add(md5sum, block)
    with file_of(tmp_path, md5sum).open("r+b") as file:
        file.seek(2 * PIECE + 9)
        file.write(bytes([block[2 * PIECE + 9] ^ 1]))

    part = folder.read_part(md5sum, PIECE, PIECE + 10, len(block))
    assert part == memoryview(block)[PIECE : PIECE + 10]
    assert damage.found == []
    assert folder.read_part(md5sum, 2 * PIECE, 2 * PIECE + 1, len(block)) is None
    assert damage.found == [(md5sum, "piece 2 doesn't match its checksum")]


def test_a_truncated_file_is_removed_at_any_length(
    folder: BlockFolder, damage: Damage, tmp_path: Path
) -> None:
    md5sum, block = block_of(2 * PIECE)
    length = folder.add(md5sum, block)
    for left in (0, 1, 55, 56, 1000, PIECE, 2 * PIECE, length - 1):
        folder.add(md5sum, block)
        os.truncate(file_of(tmp_path, md5sum), left)
        assert folder.read(md5sum) is None
    assert len(damage.found) == 8


def test_a_file_with_a_wrong_name_or_content_is_removed(
    folder: BlockFolder, damage: Damage, tmp_path: Path
) -> None:
    md5sum, block = block_of(1000)
    folder.add(md5sum, block)
    wrong = md5sum[:3] + "0" * 29
    shutil.copy(file_of(tmp_path, md5sum), file_of(tmp_path, wrong))
    assert folder.read(wrong) is None

    file_of(tmp_path, wrong).write_bytes(os.urandom(5000))
    assert folder.read(wrong) is None

    file_of(tmp_path, wrong).symlink_to(file_of(tmp_path, md5sum))
    assert folder.read(wrong) is None

    assert [it for it, _ in damage.found] == [wrong] * 3
    assert folder.read(md5sum) == block


def test_files_are_private_to_the_user(folder: BlockFolder, tmp_path: Path) -> None:
    md5sum, block = block_of(1000)
    folder.add(md5sum, block)

    path = file_of(tmp_path, md5sum)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.parent.stat().st_mode & 0o777 == 0o700


def test_a_symbolic_link_in_the_place_of_a_folder_is_not_followed(
    folder: BlockFolder, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    md5sum, block = block_of(1000)
    (tmp_path / "blocks-2" / md5sum[:3]).symlink_to(elsewhere)

    with pytest.raises(OSError, match="directory"):
        folder.add(md5sum, block)

    assert list(elsewhere.iterdir()) == []
    assert not list((tmp_path / "blocks-2").rglob("tmp/*"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "blocks-2").symlink_to(elsewhere)
    with pytest.raises(OSError, match="directory"):
        BlockFolder(other)


def test_a_visit_is_recorded_with_the_one_before(folder: BlockFolder, tmp_path: Path) -> None:
    md5sum, block = block_of(1000)
    folder.add(md5sum, block)
    before = 1_700_000_000 * 10**9
    os.utime(file_of(tmp_path, md5sum), ns=(before, 0))

    folder.read(md5sum)
    folder.read(md5sum)

    (found,) = folder.files()
    assert found.visited_before == before
    assert found.visited > before


def test_leftovers_of_a_killed_process_are_removed_after_an_hour(
    folder: BlockFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "blocks-2" / "tmp" / "left"
    left.parent.mkdir()
    left.write_bytes(b"half a block")

    folder.remove_leftovers()
    assert left.exists()

    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3601 * 10**9)  # no file can be made older
    folder.remove_leftovers()
    assert not left.exists()


def test_an_interrupted_opening_leaves_no_descriptor(
    folder: BlockFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    md5sum, block = block_of(1000)
    folder.add(md5sum, block)
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        patch.setattr("keepfs.keep.caching.disk.block_file.read_table", interrupted)
        with pytest.raises(KeyboardInterrupt):
            folder.read(md5sum)

    assert os.listdir("/proc/self/fd") == before
    assert folder.read(md5sum) == block


def test_a_read_without_a_visit_leaves_the_times(folder: BlockFolder, tmp_path: Path) -> None:
    md5sum, block = block_of(1000)
    folder.add(md5sum, block)
    long_ago = time.time_ns() - 30 * 24 * 3600 * 10**9
    os.utime(file_of(tmp_path, md5sum), ns=(long_ago, long_ago - 10**12))
    before = list(folder.files())

    assert folder.read(md5sum, is_visit=False) == block
    assert list(folder.files()) == before
    assert folder.read(md5sum) == block
    assert list(folder.files()) != before


def test_what_cannot_be_listed_read_or_removed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[tuple[str, str, int | None]] = []
    folder = BlockFolder(
        tmp_path,
        failed=lambda action, path, error: failed.append(
            (action, str(path.relative_to(tmp_path / "blocks-2")), error.errno)
        ),
    )
    md5sum, block = block_of(1000)
    folder.add(md5sum, block)
    (tmp_path / "blocks-2" / "ccc").touch()
    (tmp_path / "blocks-2" / "ddd" / ("d" * 32)).mkdir(parents=True)

    assert {it.md5sum for it in folder.files()} == {md5sum, "d" * 32}
    assert failed.pop() == ("list", "ccc", errno.ENOTDIR)
    assert not folder.remove("d" * 32)
    assert failed.pop() == ("remove", f"ddd/{'d' * 32}", errno.EISDIR)
    with monkeypatch.context() as patched:
        refused = PermissionError(errno.EACCES, "Permission denied")
        patched.setattr(block_file, "read_whole", raising(refused))
        assert folder.read(md5sum) is None
    assert failed.pop() == ("read", f"{md5sum[:3]}/{md5sum}", errno.EACCES)
    assert folder.read("0" * 32) is None
    assert not folder.remove("0" * 32)
    folder.remove_names()
    assert failed == []
    folder.close()


def raising(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise error

    return fail
