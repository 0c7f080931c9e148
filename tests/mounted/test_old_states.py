"""State directories of older versions: the names, the blocks and the unsaved files are there.

tests/data/states/N has the state that a keepfs with version N of the schema left: 1 is the first
that had a catalog, 2 the last before equal blocks were counted, 3 the last before retention, 4 the
last before ranges of blocks.
Each made the same tree in a mount of a local store, then found the store gone, and unmounted.
The catalogs are SQL text, from Python's `iterdump`, with the path of the store replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keepfs.fs.upload.schema import MIGRATIONS
from tests.mounted.mounts import keepfs, wait_until

if TYPE_CHECKING:
    from tests.mounted.mounts import KeepfsMount

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

STATES = Path(__file__).parents[1] / "data" / "states"
MTIME = 1_600_000_000_123_456_789
FILES = {
    b"folder/hello": (0o640, b"hello\n"),
    "folder/inner/grüße".encode(): (0o644, "grüße\n".encode()),
    b"bytes-\xff": (0o644, b"odd name\n"),
    b"empty": (0o644, b""),
    b"folder/renamed": (0o755, b"moved\n"),
}
SPARSE = 2 * 64 * 2**20


def restore(mount: KeepfsMount, version: str) -> None:
    """Make the state directory and the local store of an older version."""
    state = mount.base / "state"
    state.mkdir(mode=0o700)
    text = (STATES / version / "catalog.sql").read_text(encoding="utf-8")
    with contextlib.closing(sqlite3.connect(state / "catalog.sqlite")) as database:
        database.executescript(text.replace("/the/store", str(mount.store)))
        database.execute("UPDATE entries SET uid = ?, gid = ?", (os.getuid(), os.getgid()))
        database.commit()
    (state / "catalog.sqlite").chmod(0o600)
    if (STATES / version / "unsaved").exists():
        shutil.copytree(STATES / version / "unsaved", state / "unsaved")
        (state / "unsaved").chmod(0o700)
    mount.store.mkdir()
    blocks = [content for _, content in FILES.values()]
    for block in (*blocks, bytes(64 * 2**20), b"end"):
        name = hashlib.md5(block, usedforsecurity=False).hexdigest()
        (mount.store / name).write_bytes(block)


@pytest.mark.parametrize("version", ["1", "2", "3", "4"])
def test_the_state_of_an_older_version_is_taken_over(unmounted: KeepfsMount, version: str) -> None:
    mount = unmounted
    restore(mount, version)

    mount.mount()

    root = os.fsencode(mount.upload)
    for name, (mode, content) in FILES.items():
        path = root + b"/" + name
        status = os.stat(path)
        assert (status.st_mode & 0o7777, status.st_size) == (mode, len(content)), name
        with open(path, "rb") as file:
            assert file.read() == content
    assert (mount.upload / "folder" / "hello").stat().st_mtime_ns == MTIME
    assert os.readlink(mount.upload / "link") == "folder/hello"
    assert (mount.upload / "sparse").stat().st_size == SPARSE + 3
    with (mount.upload / "sparse").open("rb") as file:
        assert file.read(10) == bytes(10)
        file.seek(SPARSE - 2)
        assert file.read() == b"\0\0end"
    has_unsaved = (STATES / version / "unsaved").exists()
    assert (mount.upload / "unsaved").exists() == has_unsaved
    if has_unsaved:
        assert (mount.upload / "unsaved").read_bytes() == b"not stored yet\n"
        wait_until(lambda: os.getxattr(mount.upload / "unsaved", "user.keep.state") == b"stored")
    (mount.upload / "new").write_bytes(b"new")
    assert keepfs("uploads", "--check", mount.path, env=mount.environment).returncode == 0
    assert mount.unmount().returncode == 0
    with contextlib.closing(sqlite3.connect(mount.base / "state" / "catalog.sqlite")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_each_version_of_the_schema_has_a_state() -> None:
    assert {int(it.name) for it in STATES.iterdir()} == set(range(1, len(MIGRATIONS)))
