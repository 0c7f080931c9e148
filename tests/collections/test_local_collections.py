"""Manifests in a local store's directory: named by their hash, complete or missing."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from keepfs.collections.local_collections import LocalCollections
from keepfs.collections.manifest_errors import ManifestError
from keepfs.collections.parsing import parse
from keepfs.keep import Cause, KeepReadError, KeepWriteError, NotFoundError
from keepfs.keep.local import remove_leftovers

if TYPE_CHECKING:
    from pathlib import Path

FOO = "acbd18db4cc2f85cedef654fccc4a4d8+3"
#: Not in normal form, and signed.
TEXT = f"./b {FOO}+A{'0' * 40}@7fffffff 0:3:y\n. {FOO} 0:3:x\n"
NORMAL = f". {FOO} 0:3:x\n./b {FOO} 0:3:y\n"


def test_a_manifest_is_kept_in_normal_form_without_signatures(tmp_path: Path) -> None:
    collections = LocalCollections(tmp_path / "store")

    kept = collections.put(TEXT)

    found = collections.get(kept.portable_data_hash)
    assert found.manifest == NORMAL.encode()
    assert found.portable_data_hash == parse(TEXT).portable_data_hash()
    assert (found.uuid, found.modified_at) == ("", kept.modified_at)
    assert collections.put(parse(NORMAL)).portable_data_hash == kept.portable_data_hash
    assert collections.names() == [kept.portable_data_hash]
    assert os.listdir(collections.directory) == [f"{kept.portable_data_hash}.manifest"]
    assert collections.get(kept.portable_data_hash, with_manifest=False).manifest is None


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    collections = LocalCollections(tmp_path / "store")

    assert collections.names() == []
    for name in (f"{'0' * 32}+1", "zzzzz-4zz18-000000000000001", "../x", ""):
        with pytest.raises(NotFoundError):
            collections.get(name)
    assert not collections.directory.exists()


def test_a_manifest_that_was_changed_is_refused(tmp_path: Path) -> None:
    collections = LocalCollections(tmp_path)
    name = collections.put(TEXT).portable_data_hash
    path = collections.directory / f"{name}.manifest"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(KeepReadError, match=re.escape(str(path))) as caught:
        collections.get(name)

    assert caught.value.cause is Cause.CORRUPT


def test_a_text_that_is_no_manifest_is_not_stored(tmp_path: Path) -> None:
    collections = LocalCollections(tmp_path)

    with pytest.raises(ManifestError):
        collections.put(". x\n")

    assert collections.names() == []


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    collections = LocalCollections(tmp_path)
    collections.directory.write_bytes(b"a file is in the way")

    with pytest.raises(KeepWriteError, match=str(collections.directory)):
        collections.put(TEXT)
    with pytest.raises(KeepReadError, match=str(collections.directory)):
        collections.names()


def test_other_files_are_no_collections(tmp_path: Path) -> None:
    collections = LocalCollections(tmp_path)
    name = collections.put(TEXT).portable_data_hash
    for other in ("keepfs-abc.tmp", f"{name}.manifest.old", "x.manifest"):
        (collections.directory / other).touch()

    assert collections.names() == [name]


def test_leftovers_of_killed_writers_are_removed_after_a_day(tmp_path: Path) -> None:
    collections = LocalCollections(tmp_path)
    name = collections.put(TEXT).portable_data_hash
    old, new = (collections.directory / f"keepfs-{each}.tmp" for each in ("old", "new"))
    for each in (old, new, collections.directory / f"{name}.manifest"):
        each.touch()
        if each != new:
            os.utime(each, (0, 0))

    assert remove_leftovers(collections.directory) == 1

    assert not old.exists()
    assert new.exists()
    assert collections.names() == [name]
