"""The metrics file: whole at each moment, and gone at the end of its mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from keepfs.mount import metrics_output

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def registry_of(value: int) -> CollectorRegistry:
    """Return the metrics of one of two mounts: 1 MB, all with one value."""
    registry = CollectorRegistry()
    gauge = Gauge("value", "A value.", ["number"], registry=registry)
    for number in range(30_000):
        gauge.labels(number).set(value)
    return registry


def test_two_mounts_with_one_file_never_show_a_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_output, "_WRITE_INTERVAL", 0.001)
    path = tmp_path / "keepfs.prom"
    registries = registry_of(1), registry_of(2)
    whole = {generate_latest(each) for each in registries}
    seen: set[bytes] = set()
    reads = 0
    one, two = (metrics_output._written(each, path) for each in registries)  # noqa: SLF001

    with one, two:
        while len(seen) < 2 or reads < 100:
            seen.add(path.read_bytes())
            reads += 1

    assert seen == whole
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_a_mount_leaves_the_file_of_another(tmp_path: Path) -> None:
    path = tmp_path / "keepfs.prom"
    one, two = (
        metrics_output._written(CollectorRegistry(), path)  # noqa: SLF001 - needs no figures
        for _ in range(2)
    )
    with two:
        with one:
            (tmp_path / "kept").hardlink_to(path)
            metrics_output._MetricsFile(CollectorRegistry(), path).write()  # noqa: SLF001
        assert path.exists()


def test_a_file_that_cannot_be_removed_does_not_fail_the_mount(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keepfs.prom"
    with metrics_output._written(CollectorRegistry(), path):  # noqa: SLF001 - needs no figures
        path.unlink()
        path.mkdir()

    assert "the metrics can't be removed" in caplog.text
