"""The JSON of the figures: stable names, and what JSON can hold."""

from __future__ import annotations

import json

from keepfs.keep.counters import BOUNDS, Histogram, HistogramCounts
from keepfs.mount.control_server import as_json
from keepfs.mount.figures import FailedFigures, MountFigures


def test_durations_become_counts_and_quantiles() -> None:
    durations = Histogram()
    for seconds in (0.0001, 0.002, 0.002, 0.2):
        durations.add(seconds)

    found = as_json({"read": durations.get()})

    assert found["read"]["count"] == 4
    assert found["read"]["median"] == 0.0025  # the bound of its class
    assert found["read"]["p99"] == 0.25
    assert abs(found["read"]["mean"] - 0.05103) < 0.0001


def test_a_duration_beyond_the_last_bound_has_no_quantile() -> None:
    durations = Histogram()
    durations.add(BOUNDS[-1] + 1)

    assert as_json(durations.get())["p99"] is None
    assert as_json(HistogramCounts())["median"] == 0.0


def test_values_and_tuples_become_objects_and_arrays() -> None:
    found = as_json((FailedFigures("upload/x", "no"), 1, None))

    assert json.loads(json.dumps(found)) == [{"path": "upload/x", "error": "no"}, 1, None]


def test_the_field_names_of_the_status_are_stable() -> None:
    """Fields may be added; a program may read each of these."""
    assert set(MountFigures.__slots__) >= {
        *("version", "mountpoint", "started", "uptime", "phase", "loop_stuck", "deadline"),
        *("requests", "oldest", "operations", "cache", "blocks", "uploads", "retention"),
        *("services", "token", "process"),
    }
