"""A mount in the background: what its parent learns, and what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Runs something in the background, and prints what its parent got to know.
PARENT = """
import json, os, sys, time
from keepfs.mount.daemon import PipeReporter, run_in_background

def run(reporter):
{body}

print("before")
print(json.dumps([run_in_background(run), os.getpid()]))
"""


def said_to_parent(body: str, *arguments: str) -> str | None:
    """Return what a parent learns of a child that does this; None for `ready`."""
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", PARENT.format(body=indented), *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=30,
    )
    assert done.stderr == ""
    before, answer = done.stdout.splitlines()
    assert before == "before"  # once: the child has not printed it again
    reason, _ = json.loads(answer)
    assert reason is None or isinstance(reason, str)
    return reason


def test_a_child_that_is_ready_lets_its_parent_return(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    # The child goes on after its parent has ended: it answers when it is asked.
    reason = said_to_parent(
        "reporter.ready()\nreporter.failed('too late')\n"
        "open(sys.argv[1], 'w').write(str(os.getppid()))\nreturn 0",
        str(fifo),
    )

    assert reason is None
    assert fifo.read_text().isdigit()


def test_a_child_that_fails_reports_the_reason() -> None:
    assert said_to_parent("reporter.failed('no room für it')\nreturn 1") == "no room für it"


def test_a_long_reason_arrives_whole() -> None:
    assert said_to_parent("reporter.failed('x' * 300000)\nreturn 1") == "x" * 300000


def test_a_child_that_ends_without_a_report_is_detected() -> None:
    silent = "the mount process ended without a report; see its log [mount-died]"

    assert said_to_parent("return 0") == silent
    assert said_to_parent("os._exit(3)") == silent
    assert said_to_parent("os.kill(os.getpid(), 9)") == silent


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        ("ZeroDivisionError('a bug')", "ZeroDivisionError: a bug"),
        ("SystemExit(3)", "SystemExit: 3"),
        ("KeyboardInterrupt()", "KeyboardInterrupt: "),
    ],
)
def test_an_unexpected_failure_of_a_child_is_reported(raised: str, reason: str) -> None:
    assert said_to_parent(f"raise {raised}") == reason


def test_a_child_leads_a_session_in_the_root_directory_without_streams(tmp_path: Path) -> None:
    said = said_to_parent(
        "reporter.failed(json.dumps({\n"
        "    'leads': os.getsid(0) == os.getpid(),\n"
        "    'directory': os.getcwd(),\n"
        "    'streams': [os.readlink(f'/proc/self/fd/{each}') for each in range(3)],\n"
        "}))\nreturn 1",
        str(tmp_path),
    )

    assert said is not None
    assert json.loads(said) == {
        "leads": True,
        "directory": "/",
        "streams": ["/dev/null"] * 3,
    }
