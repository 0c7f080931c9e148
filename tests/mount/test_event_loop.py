"""The event loop of a process that signals reach at any time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from keepfs.mount import event_loop

# A signal arrives whenever a socket was just closed, trio's own among them.
_CHILD = """
import signal, socket, sys
from keepfs.mount import event_loop

handled = []
signal.signal(signal.SIGALRM, lambda *_: handled.append(1))

def signalled(frame, event, _):
    if event == "return" and frame.f_code is socket.socket.close.__code__:
        signal.raise_signal(signal.SIGALRM)

async def main():
    sys.setprofile(signalled)
    if "fail" in sys.argv:
        raise ValueError("the end of main")

try:
    event_loop.run_loop(main)
except ValueError as error:
    print(error)
sys.setprofile(None)
assert len(handled) >= 2, handled
"""


@pytest.mark.parametrize(("words", "printed"), [([], ""), (["fail"], "the end of main\n")])
def test_a_signal_while_the_loop_is_closed_prints_nothing(words: list[str], printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *words], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


def test_the_result_is_that_of_the_function() -> None:
    async def add(left: int, right: int) -> int:
        return left + right

    assert event_loop.run_loop(add, 2, 3) == 5
