"""A mount in the background: what its parent learns, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
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


def child_of_interrupted(
    number: signal.Signals, before: str, fifo: Path, *, patience: float = 10.0
) -> tuple[int, int]:
    """Send a signal to a parent whose child waits; return its exit code and the child's id.

    Args:
        number: The signal.
        before: What the child does first.
        fifo: Where to make a named pipe, for the child's id.
        patience: Seconds that the child may take to end after a signal.
    """
    os.mkfifo(fifo)
    body = f"{before}\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(600)\nreturn 0"
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    # Under nohup, and in the background of a shell, the tests inherit ignored signals.
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"from keepfs.mount import daemon\ndaemon._ENDING = {patience}\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code + PARENT.format(body=indented), str(fifo)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    ) as parent:
        child = int(fifo.read_text())
        parent.send_signal(number)
        return parent.wait(30), child


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_a_parent_that_is_told_to_end_ends_its_child(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    ended, child = child_of_interrupted(number, "", tmp_path / "fifo")

    assert ended == code
    # The parent has waited for it: not even a zombie is left.
    assert not Path(f"/proc/{child}").exists()


def test_a_child_that_ignores_signals_is_killed(tmp_path: Path) -> None:
    before = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)"

    ended, child = child_of_interrupted(signal.SIGTERM, before, tmp_path / "fifo", patience=0.5)

    assert ended == 143
    assert not Path(f"/proc/{child}").exists()


def test_a_hangup_below_nohup_does_not_end_the_parent(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    body = "    open(sys.argv[1]).read()\n    reporter.ready()\n    return 0"
    code = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with subprocess.Popen(
        [sys.executable, "-c", code + PARENT.format(body=body), str(fifo)],
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    ) as parent:
        with fifo.open("w"):  # the child is there: it reads
            parent.send_signal(signal.SIGHUP)

        assert parent.wait(30) == 0


def test_a_child_whose_parent_is_gone_is_told_so_once(tmp_path: Path) -> None:
    fifo, answer = tmp_path / "fifo", tmp_path / "answer"
    for each in (fifo, answer):
        os.mkfifo(each)
    body = (
        "from keepfs.mount.daemon import MountAbandonedError\n"
        "open(sys.argv[1]).read()\n"
        "try:\n"
        "    reporter.ready()\n"
        "except MountAbandonedError as error:\n"
        "    reporter.failed('also to nobody')\n"
        "    open(sys.argv[2], 'w').write(str(error))\n"
        "return 1"
    )
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(body=indented), str(fifo), str(answer)],
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    ) as parent:
        with fifo.open("w"):
            parent.kill()
            parent.wait()

        assert answer.read_text().endswith("[mount-abandoned]")
