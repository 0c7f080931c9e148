"""`keepfs warm` and `keepfs cache`."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from keepfs.cli import keepfs
from keepfs.collections.local_collections import LocalCollections
from tests.messages.provoking import assert_shows

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


def put(store: Path, block: bytes) -> str:
    md5sum = hashlib.md5(block, usedforsecurity=False).hexdigest()
    (store / md5sum).write_bytes(block)
    return f"{md5sum}+{len(block)}"


def run(*words: str, given: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(keepfs, words, input=given)
    return done.exit_code, done.output


def test_blocks_are_warmed_verified_and_cleared(store: Path, tmp_path: Path) -> None:
    names = [put(store, bytes([number]) * 1000) for number in range(3)]
    directory = ("--disk-cache-dir", str(tmp_path / "cache"))
    manifest = f". {names[1]} {names[2]} 0:2000:file\n"

    warmed = run(
        *("warm", "--local-store", str(store), "--disk-cache", "1MiB", *directory),
        *("--from", "-", names[0]),
        given=manifest,
    )

    assert warmed == (0, "")
    assert "3 blocks" in run("cache", *directory)[1]
    kept = tmp_path / "cache" / "blocks-2" / names[0][:3] / names[0][:32]
    kept.write_bytes(b"x" + kept.read_bytes()[1:])
    code, text = run("cache", "verify", *directory)
    assert code == 1
    assert "2 blocks" in text
    assert f"damaged, removed: {names[0][:32]}" in text
    assert_shows(text, "disk-cache-file-removed")
    assert "2 blocks" in run("cache", "clear", *directory)[1]
    assert "0 blocks" in run("cache", "stat", *directory)[1]


def test_a_collection_is_warmed_by_its_hash(store: Path, tmp_path: Path) -> None:
    names = [put(store, bytes([number]) * 1000) for number in range(3)]
    record = LocalCollections(store).put(f". {names[1]} {names[2]} 0:2000:file\n")
    words = ("--local-store", str(store), "--disk-cache", "1MiB")
    directory = ("--disk-cache-dir", str(tmp_path / "cache"))

    # A name of a block has the form of a collection's hash.
    assert run("warm", *words, *directory, record.portable_data_hash, names[0]) == (0, "")

    assert "3 blocks" in run("cache", *directory)[1]
    code, text = run("warm", *words, *directory, "zzzzz-4zz18-000000000000000")
    assert code == 1
    assert "zzzzz-4zz18-000000000000000" in text
    code, text = run("warm", *words, *directory, str(store), names[1])
    assert code == 1
    assert "isn't in a keepfs mount" in text
    assert run("warm", *words, *directory, "neither")[0] == 2


def test_a_source_that_cannot_be_warmed_is_an_error(store: Path, tmp_path: Path) -> None:
    name = put(store, bytes(1000))
    local = ("warm", "--local-store", str(store), "--disk-cache-dir", str(tmp_path / "cache"))

    assert "the disk cache is off" in run(*local, name)[1]
    assert "give locators" in run(*local, "--disk-cache", "1M")[1]
    code, text = run(*local, "--disk-cache", "100", name)
    assert code == 1
    assert "1 of 1 blocks aren't in the disk cache" in text
    assert run(*local, "--disk-cache", "1M", "0" * 32 + "+5")[0] == 1
