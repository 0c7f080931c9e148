"""The limits that the kernel sets to requests."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from keepfs.mount import fuse

if TYPE_CHECKING:
    from pathlib import Path


def settings(path: Path, default: str, most: str) -> Path:
    """Make a directory like the kernel's."""
    (path / "default_request_timeout").write_text(default)
    (path / "max_request_timeout").write_text(most)
    return path


@pytest.mark.parametrize(
    ("default", "most", "wanted", "deadline"),
    [
        ("0\n", "0\n", 600.0, 600.0),
        ("60\n", "0\n", 600.0, 55.0),
        ("0\n", "60\n", 600.0, 55.0),
        ("120\n", "60\n", 600.0, 55.0),
        ("60\n", "120\n", 600.0, 55.0),
        ("60\n", "0\n", 55.0, 55.0),
        ("60\n", "0\n", 57.0, 55.0),
        ("60\n", "0\n", 0.3, 0.3),
        ("1\n", "0\n", 600.0, 10.0),  # the kernel looks every 15 s
        ("", "no number", 600.0, 600.0),
    ],
)
def test_requests_are_answered_before_the_kernel_aborts_the_mount(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    default: str,
    most: str,
    wanted: float,
    deadline: float,
) -> None:
    with caplog.at_level(logging.WARNING):
        found = fuse.request_deadline(wanted, settings(tmp_path, default, most))

    assert found == deadline
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (deadline != wanted)
    if warnings:
        smaller = "max" if most == "60\n" else "default"
        assert f"fs.fuse.{smaller}_request_timeout" in warnings[0]


def test_a_kernel_without_limits_leaves_the_deadline(tmp_path: Path) -> None:
    assert fuse.request_deadline(600.0, tmp_path / "missing") == 600.0
