"""Spill records: when they are deleted."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from keepfs.fs.bridge import open_blocks
from keepfs.fs.nodes import Metadata, directory_mode
from keepfs.fs.upload import unsaved
from keepfs.fs.upload.catalog import Catalog
from keepfs.fs.upload.directory import UploadDirectory
from keepfs.fs.upload.recovery import Spills
from keepfs.fs.upload.staging import Staging
from keepfs.fs.upload.unsaved import About, Piece
from tests.fakes.store import DictStore

if TYPE_CHECKING:
    import pytest


async def test_a_record_is_deleted_once_the_version_that_replaces_it_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = unsaved.spill(tmp_path, About("file", 3), [Piece(3, staged=b"new")])
    description = record.directory / "about.json"
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.name, description.exists()))
        fsync(descriptor)

    with closing(Catalog(tmp_path / "catalog")) as catalog:
        async with open_blocks(DictStore(), copies=1) as blocks:
            staging = Staging(blocks)
            upload = UploadDirectory.mounted(
                Metadata(directory_mode(0o755), 1, 2), staging, lambda *_: None, catalog
            )
            await Spills(blocks, tmp_path, catalog).restore(upload, staging)
            (file,) = upload.files()
            monkeypatch.setattr(os, "fsync", noted)

            await file.store()

    # The catalog first; then the record, whose deletion is synced too.
    # At the end the catalog is closed, and synced again.
    assert synced == [("catalog-wal", True), (record.name, False), ("catalog-wal", False)]
    assert not record.directory.exists()
