"""The exit code of a command that ends with a text."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from keepfs import cli
@cli.keepfs.command("ending")
def ending(): raise SystemExit("it ended")
cli._Commands.get_command = lambda *_: ending
sys.argv = ["keepfs", "ending"]
cli.main()
"""


def test_an_exit_with_a_text_is_a_failure() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=False)

    assert done.returncode == 1
    assert b"it ended" in done.stderr
