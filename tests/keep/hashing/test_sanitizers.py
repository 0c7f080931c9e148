"""The C extension under the sanitizers of GCC: no wrong access, no race, no wrong digest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.mark.slow
def test_the_sanitizers_find_nothing() -> None:
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    done = subprocess.run(
        [ROOT / "scripts" / "soak-hashing", "1.5"], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip(done.stderr)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("every digest right") == 2
