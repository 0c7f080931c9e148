"""The metrics file at the end of a mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from keepfs.mount import metrics_output

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_file_that_cannot_be_removed_does_not_fail_the_mount(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keepfs.prom"
    with metrics_output._written(CollectorRegistry(), path):  # noqa: SLF001 - needs no figures
        path.unlink()
        path.mkdir()

    assert "the metrics can't be removed" in caplog.text
