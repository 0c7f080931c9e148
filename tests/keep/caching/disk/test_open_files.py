"""Files that stay open between reads of parts: nothing wrong comes out of them, and they close."""

from __future__ import annotations

import array
import hashlib
import os
import random
import resource
import threading
import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from keepfs.keep.caching.disk import block_file
from keepfs.keep.caching.disk.block_file import (
    MOST_BEGUN,
    MOST_NOWAIT,
    PIECE,
    PieceTable,
    read_table,
)
from keepfs.keep.caching.disk.block_folder import BlockFolder
from keepfs.keep.caching.disk.open_files import OpenFiles
from keepfs.keep.caching.disk.read_ahead import ReadAhead
from tests.fakes.threads import Running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 160 * PIECE + 5
BLOCK = random.Random(3).randbytes(SIZE)  # noqa: S311 - test data
DIGEST = hashlib.md5(BLOCK, usedforsecurity=False).hexdigest()


@pytest.fixture
def damage() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path, damage: list[str]) -> Iterator[BlockFolder]:
    opened = BlockFolder(tmp_path, lambda _, reason: damage.append(reason))
    opened.add(DIGEST, BLOCK)
    yield opened
    opened.close()


@pytest.fixture
def path(tmp_path: Path, folder: BlockFolder) -> Path:  # noqa: ARG001 - it has the file
    return tmp_path / "blocks-2" / DIGEST[:3] / DIGEST


def open_files_of(path: Path) -> int:
    """Count this process's descriptors of a file, also of one that was removed."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith(str(path))
        except OSError:
            continue
    return found


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def part(folder: BlockFolder, begin: int, end: int) -> bytes | None:
    found = folder.read_part(DIGEST, begin, end, SIZE)
    return None if found is None else bytes(found)


def test_one_descriptor_serves_many_parts_until_it_is_idle(
    folder: BlockFolder, path: Path
) -> None:
    for begin in range(0, SIZE - 100, PIECE // 3):
        assert part(folder, begin, begin + 100) == BLOCK[begin : begin + 100]
    assert open_files_of(path) == 1

    folder.close_idle()

    assert open_files_of(path) == 0
    assert part(folder, 5, 6) == BLOCK[5:6]


def test_damage_after_the_file_was_opened_is_found(
    folder: BlockFolder, path: Path, damage: list[str]
) -> None:
    assert part(folder, 0, 10) == BLOCK[:10]
    flip(path, 3 * PIECE)

    assert part(folder, 0, 10) == BLOCK[:10]
    assert folder.read_part_nowait(DIGEST, 3 * PIECE, 3 * PIECE + 10, SIZE) is None
    assert damage == []
    assert part(folder, 3 * PIECE, 3 * PIECE + 10) is None

    assert damage == ["piece 3 doesn't match its checksum"]
    assert not path.exists()
    assert open_files_of(path) == 0


def test_a_file_that_was_cut_off_while_open_is_thrown_out(
    folder: BlockFolder, path: Path, damage: list[str]
) -> None:
    assert part(folder, 0, 10) == BLOCK[:10]
    os.truncate(path, 2 * PIECE)

    assert folder.read_part_nowait(DIGEST, 2 * PIECE, 2 * PIECE + 1, SIZE) is None
    assert part(folder, 2 * PIECE, 2 * PIECE + 1) is None
    assert damage == ["the file is cut off"]


def test_a_damaged_open_file_does_not_take_its_successor_with_it(
    folder: BlockFolder, path: Path, damage: list[str], tmp_path: Path
) -> None:
    assert part(folder, 0, 10) == BLOCK[:10]
    flip(path, 0)
    other = BlockFolder(tmp_path)
    assert other.remove(DIGEST)
    other.add(DIGEST, BLOCK)
    other.close()

    assert part(folder, 0, 10) is None
    assert part(folder, 0, 10) == BLOCK[:10]
    assert damage == []


def test_an_evicted_block_s_file_is_closed(folder: BlockFolder, path: Path) -> None:
    part(folder, 0, 10)

    assert folder.remove(DIGEST)

    assert open_files_of(path) == 0
    assert part(folder, 0, 10) is None


def test_a_part_in_the_page_cache_needs_no_wait(folder: BlockFolder) -> None:
    assert folder.read_part_nowait(DIGEST, 0, 10, SIZE) is None  # not open yet
    part(folder, 0, SIZE)  # now it is, and its pages are in memory

    for begin, end in ((0, 1), (PIECE - 1, PIECE + 1), (SIZE - 1, SIZE), (7, MOST_NOWAIT)):
        found = folder.read_part_nowait(DIGEST, begin, end, SIZE)
        assert found is not None
        assert bytes(found) == BLOCK[begin:end]
    assert folder.read_part_nowait(DIGEST, 0, MOST_NOWAIT + 1, SIZE) is None
    assert folder.read_part_nowait(DIGEST, 0, 1, SIZE + 1) is None


def test_a_part_keeps_its_bytes_while_others_are_read(folder: BlockFolder) -> None:
    size = 10 * PIECE  # its memory is used again, but not while somebody has it
    parts = [folder.read_part(DIGEST, n * size, (n + 1) * size, SIZE) for n in range(4)]

    for number, found in enumerate(parts):
        assert found is not None
        assert bytes(found) == BLOCK[number * size : (number + 1) * size]


def test_a_file_is_opened_again_after_some_seconds(path: Path) -> None:
    now = [0.0]
    files = OpenFiles(clock=lambda: now[0])
    with path.open("rb") as file:
        table = read_table(file.fileno(), path.stat().st_size, DIGEST)
        files.add(DIGEST, file.fileno(), table)
    assert files.get(DIGEST) is not None

    now[0] = 11.0

    assert files.get(DIGEST) is None
    assert files.table(DIGEST) is table
    with path.open("rb") as file:
        files.add(DIGEST, file.fileno(), table)
    assert files.get(DIGEST) is not None
    assert open_files_of(path) == 1  # the old one is closed


def test_files_that_are_not_read_again_are_closed_when_another_is_opened(path: Path) -> None:
    now = [0.0]
    files = OpenFiles(clock=lambda: now[0])
    with path.open("rb") as file:
        table = read_table(file.fileno(), path.stat().st_size, DIGEST)
        for number in range(100):
            files.add(f"{number:032x}", file.fileno(), table)
            now[0] += 1.0

        assert files.get(f"{99:032x}") is not None

    assert open_files_of(path) <= 12  # of the last seconds


@pytest.mark.parametrize(
    ("descriptors", "most"),
    [(resource.RLIM_INFINITY, 512), (20_000, 512), (1024, 128), (2, 1)],
)
def test_open_files_take_a_quarter_of_the_descriptors_at_most(
    path: Path, monkeypatch: pytest.MonkeyPatch, descriptors: int, most: int
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (descriptors, descriptors))
    files = OpenFiles()
    with path.open("rb") as file:
        table = read_table(file.fileno(), path.stat().st_size, DIGEST)
        for number in range(most + 3):
            files.add(f"{number:032x}", file.fileno(), table)
            opened = files.get(f"{number:032x}")
            assert opened is not None
            opened.read_on(SIZE - 1)  # takes another descriptor
            del opened

    assert open_files_of(path) == 2 * most


def test_the_open_files_of_all_caches_are_bounded_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (160, 160))
    now = [0.0]
    caches = [OpenFiles(clock=lambda: now[0]) for _ in range(4)]
    with path.open("rb") as file:
        table = read_table(file.fileno(), path.stat().st_size, DIGEST)
        for number in range(15):
            for each in caches:
                now[0] += 0.01
                each.add(f"{number:032x}", file.fileno(), table)

        assert open_files_of(path) == 1 + 20
        for each in caches:  # the oldest were closed, whosever they were
            kept = [each.get(f"{number:032x}") is not None for number in range(15)]
            assert kept == [False] * 10 + [True] * 5

        alone = caches.pop()
        caches.clear()
        for number in range(30):
            alone.add(f"{number:032x}", file.fileno(), table)
        assert open_files_of(path) == 1 + 20


def test_tables_of_small_blocks_take_33_mib_at_most(path: Path) -> None:
    files = OpenFiles()
    with path.open("rb") as file:
        tracemalloc.start()
        try:
            for number in range(50_000):
                sums = memoryview(array.array("Q", [number])).toreadonly()
                files.add(f"{number:032x}", file.fileno(), PieceTable(1, number, sums))
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert taken <= 33 * 1024 * 1024


def test_the_kernel_reads_on_only_in_a_block_that_is_there(folder: BlockFolder) -> None:
    assert folder.read_on(DIGEST, 0)
    assert folder.read_on(DIGEST, SIZE)
    assert not folder.read_on("0" * 32, 0)


def test_a_sequential_reader_s_file_is_read_into_the_page_cache(
    folder: BlockFolder, path: Path
) -> None:
    part(folder, 0, 1)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    for begin in (0, PIECE, 0, SIZE - 1):
        assert folder.read_on(DIGEST, begin)

    found = folder.read_part_nowait(DIGEST, SIZE - MOST_NOWAIT + 2 * PIECE, SIZE, SIZE)
    assert found is not None
    assert bytes(found) == BLOCK[SIZE - MOST_NOWAIT + 2 * PIECE :]
    assert open_files_of(path) == 2
    folder.close_idle()
    assert open_files_of(path) == 0


def test_a_file_that_was_cut_off_is_read_ahead_to_its_end(folder: BlockFolder, path: Path) -> None:
    part(folder, 0, 1)
    os.truncate(path, PIECE)

    assert folder.read_on(DIGEST, 0)


def test_two_threads_do_not_read_one_file_ahead(path: Path) -> None:
    with path.open("rb") as file:
        ahead = ReadAhead(file.fileno())
        begun, goes_on = threading.Event(), threading.Event()

        def slow_open(*arguments: object) -> int:
            begun.set()
            assert goes_on.wait(60)
            raise OSError(arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.open", slow_open)
            first = Running(lambda: ahead.read_on(0, SIZE))
            assert begun.wait(60)
            ahead.read_on(0, SIZE)  # returns, and reads nothing
            goes_on.set()
            with pytest.raises(OSError, match="self/fd"):
                first.result()
        ahead.read_on(0, SIZE)
        assert open_files_of(path) == 2
        ahead.close()


@pytest.mark.parametrize("flag", [0, 1 << 20], ids=["no such reads", "unknown"])
def test_without_reads_that_do_not_wait_parts_are_left_to_threads(
    folder: BlockFolder, monkeypatch: pytest.MonkeyPatch, flag: int
) -> None:
    part(folder, 0, SIZE)
    assert folder.read_part_nowait(DIGEST, 0, 1, SIZE) is not None
    monkeypatch.setattr(block_file, "_NOWAIT", flag)

    assert folder.read_part_nowait(DIGEST, 0, 1, SIZE) is None

    assert not folder.begin_part(DIGEST, 0, 1, SIZE)
    assert part(folder, 0, 1) == BLOCK[:1]


def test_a_small_part_is_begun_without_a_wait_and_then_in_memory(
    folder: BlockFolder, path: Path
) -> None:
    page = 2 * PIECE - 10, 2 * PIECE + 10  # in two pieces
    assert not folder.begin_part(DIGEST, *page, SIZE)  # not open yet
    assert not folder.is_open(DIGEST)
    folder.read_part(DIGEST, 0, 1, SIZE)
    assert folder.is_open(DIGEST)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    assert folder.begin_part(DIGEST, *page, SIZE)

    deadline = time.monotonic() + 60
    while (found := folder.read_part_nowait(DIGEST, *page, SIZE)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert bytes(found) == BLOCK[page[0] : page[1]]
    assert folder.begin_part(DIGEST, SIZE - 1, SIZE, SIZE)
    assert not folder.begin_part(DIGEST, 0, MOST_BEGUN + 1, SIZE)  # a thread is faster
    assert not folder.begin_part(DIGEST, 0, 1, SIZE + 1)
    assert not folder.begin_part(DIGEST, SIZE, SIZE + 1, SIZE)
    assert not folder.begin_part("0" * 32, *page, SIZE)
