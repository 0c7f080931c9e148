"""A disk that is full or read-only: blocks come from the services, and the log has one line."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import KeepBlockCache, KeepClient
from keepfs.keep.caching.disk.disk_cache import DiskCache
from tests.cli.test_disk_caching import run
from tests.messages.provoking import assert_shows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCKS = [bytes([number]) * 500_000 for number in range(6)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(path)]
    with contextlib.suppress(OSError):
        if subprocess.run(words, check=False, capture_output=True).returncode == 0:
            yield path
            subprocess.run(["umount", "-l", str(path)], check=True)
            return
    pytest.skip("only root mounts a tmpfs")


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Return the locators of blocks in a local store."""
    with KeepClient(local_store=tmp_path / "store") as client:
        return [client.put(block, 1) for block in BLOCKS]


def client_of(tmp_path: Path, disk: DiskCache) -> KeepClient:
    return KeepClient(local_store=tmp_path / "store", block_cache=KeepBlockCache(disk=disk))


def test_a_disk_that_fills_up_is_logged_once_and_takes_newer_blocks(
    tmp_path: Path, small_disk: Path, names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    disk = DiskCache(small_disk, 10**9, least_free=-(10**9))  # so that writing fails
    with caplog.at_level(logging.WARNING), client_of(tmp_path, disk) as client:
        for name, block in zip(names, BLOCKS, strict=True):
            assert client.get(name) == block
            disk.flush()

    (line,) = (it.getMessage() for it in caplog.records)
    assert f"the disk cache in {small_disk} gives a tenth back" in line
    assert line.endswith(": No space left on device [disk-cache-shrunk]")
    counted = disk.statistics()
    assert (counted.added, counted.skipped) == (6, 0)  # 2 MiB hold four
    assert (counted.blocks, counted.evictions) == (2, 4)
    assert disk.has(names[-1][:32])
    disk.close()


def test_a_disk_full_of_other_files_is_logged_once(
    tmp_path: Path, small_disk: Path, names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    disk = DiskCache(small_disk, 10**9, least_free=-(10**9))
    with contextlib.suppress(OSError), (small_disk / "others").open("wb", 0) as others:
        while others.write(bytes(100_000)):
            pass
    with caplog.at_level(logging.WARNING), client_of(tmp_path, disk) as client:
        for name, block in zip(names, BLOCKS, strict=True):
            assert client.get(name) == block
            disk.flush()

    (line,) = (it.getMessage() for it in caplog.records)
    assert line.startswith(f"the disk cache in {small_disk} can't be used")
    assert line.endswith(": No space left on device [disk-cache-failed]")
    assert disk.statistics().skipped == 6
    disk.close()


def test_a_disk_with_too_little_free_space_is_not_filled(
    tmp_path: Path, small_disk: Path, names: list[str]
) -> None:
    disk = DiskCache(small_disk, 10**9, least_free=1024 * 1024)
    with client_of(tmp_path, disk) as client:
        for name, block in zip(names, BLOCKS, strict=True):
            assert client.get(name) == block
            disk.flush()

    assert disk.statistics().evictions > 0
    assert sum(it.stat().st_size for it in small_disk.rglob("?" * 32)) <= 1024 * 1024
    disk.close()


def test_a_disk_that_becomes_read_only_is_still_read(
    tmp_path: Path, small_disk: Path, names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    disk = DiskCache(small_disk, 10**9, least_free=0)
    with client_of(tmp_path, disk) as client:
        client.get(names[0])
    disk.flush()
    disk.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    disk = DiskCache(small_disk, 10**9, least_free=0)
    with caplog.at_level(logging.WARNING), client_of(tmp_path, disk) as client:
        assert client.get(names[0]) == BLOCKS[0]
        assert disk.statistics().hits == 1
        for name, block in zip(names[1:], BLOCKS[1:], strict=True):
            assert client.get(name) == block
            disk.flush()

    assert len(caplog.records) == 1
    assert "Read-only file system [disk-cache-failed]" in caplog.text
    disk.close()


def test_damage_on_a_read_only_disk_is_reported_although_it_stays(
    tmp_path: Path, small_disk: Path, names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    disk = DiskCache(small_disk, 10**9, least_free=0)
    with client_of(tmp_path, disk) as client:
        client.get(names[0])
        client.get(names[1])
        disk.flush()
    disk.close()
    md5sum = names[0][:32]
    file = small_disk / "blocks-2" / md5sum[:3] / md5sum
    file.write_bytes(b"x" + file.read_bytes()[1:])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    words = ("--disk-cache-dir", str(small_disk))

    code, text = run("cache", "verify", *words)

    assert code == 1
    assert "1 blocks" in text
    assert ", 1 not removed" in text
    assert_shows(text, "disk-cache-file-left")
    code, text = run("cache", "clear", *words, "--json")
    assert code == 1
    row = json.loads(text.splitlines()[0])
    assert (row["blocks"], row["damaged"]) == (0, [])
    assert {(it["action"], it["reason"]) for it in row["failed"]} == {
        ("remove", "Read-only file system")
    }
    assert {it["path"][-32:] for it in row["failed"]} == {name[:32] for name in names[:2]}
    assert_shows(text, "disk-cache-unreached")
    disk = DiskCache(small_disk, 10**9, least_free=0)
    with caplog.at_level(logging.WARNING), client_of(tmp_path, disk) as client:
        assert client.get(names[0]) == BLOCKS[0]
        assert disk.statistics().damaged >= 1
        assert "disk-cache-damaged" in caplog.text
    disk.close()
