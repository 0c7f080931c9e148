"""Reports of tests reach the process that collects them, whatever names they have."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

from tests.conftest import encodable

_ODD = os.fsdecode(b"caf\xe9")


def test_lone_surrogates_are_replaced_at_any_depth() -> None:
    report = {"sections": [("log", _ODD)], _ODD: {"a": [1, None, _ODD]}}

    assert encodable(report) == {
        "sections": [("log", "caf\\udce9")],
        "caf\\udce9": {"a": [1, None, "caf\\udce9"]},
    }


@pytest.mark.slow
def test_a_log_with_an_odd_name_does_not_end_a_run_of_several_processes(tmp_path: Path) -> None:
    # The conftest of this project, beside a test that logs such a name.
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_it.py").write_text(
        "import logging, os\n"
        "def test_it():\n    logging.getLogger().warning(os.fsdecode(b'caf\\xe9'))\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "1", "-c", os.devnull, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(__file__).rpartition("/tests/")[0]},
    )

    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
