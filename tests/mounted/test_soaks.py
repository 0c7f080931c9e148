"""A short run of each soak; the long ones are scripts/soak-*."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.mounted.mounts import mounted
from tests.soak import chaos, crash, fio, fsx, model, names
from tests.soak.chaos_run import Scale

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mounted.mounts import KeepfsMount

pytestmark = pytest.mark.slow


def test_random_operations_on_a_mount_and_a_disk_agree(mount: KeepfsMount, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()

    outcome = model.soak(mount, disk, examples=15, steps=25, seed=1)

    assert outcome.steps > 100
    assert outcome.remounts > 1
    assert mount.logged() == []


def test_a_file_has_the_written_bytes_after_random_operations(mount: KeepfsMount) -> None:
    outcome = fsx.soak(mount, operations=1000, per_mount=400, seed=1, long_once_in=99)

    assert outcome.operations.total() == 1000
    assert outcome.remounts == 3
    assert mount.logged() == []


def test_a_file_over_one_block_has_the_written_bytes(mount: KeepfsMount) -> None:
    outcome = fsx.soak(mount, operations=100, per_mount=100, seed=1, long_once_in=1)

    assert outcome.long_mounts == 1
    assert mount.logged() == []


def test_killing_keepfs_loses_nothing_whose_close_has_returned(unmounted: KeepfsMount) -> None:
    outcome = crash.Soak(unmounted, files=200, seed=1).run(kills=3)

    assert outcome.kills == 3
    assert outcome.versions > 0
    assert outcome.failed > 0
    assert outcome.moves > 0
    assert outcome.checked > 0


@pytest.mark.skipif(fio.why_no_fio() is not None, reason=fio.why_no_fio() or "")
def test_random_writes_of_two_jobs_are_read_back(tmp_path: Path) -> None:
    with mounted(tmp_path, *fio.OPTIONS) as mount:
        outcome = fio.soak(mount, mebibytes=64, jobs=2, seed=1)

    assert outcome.written == outcome.verified == 64


def test_temporary_faults_lose_nothing(tmp_path: Path) -> None:
    scale = Scale(epochs=(5, 8), end_once_in=2, big_once_in=0)

    findings = chaos.soak(tmp_path, minutes=0.4, seed=28, scale=scale)

    assert [str(it) for it in findings.found] == []
    assert findings.figures.operations.total() > 100
    assert findings.figures.faults.total() > 2
    assert findings.figures.ends.total() > 2


def test_very_many_names_are_all_there_after_a_remount(mount: KeepfsMount) -> None:
    outcome = names.soak(mount, entries=2000)

    assert outcome.seconds
    assert mount.logged() == []
