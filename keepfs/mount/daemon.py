"""Starting a mount in the background, and learning whether it came up.

The child reports once: that it is ready, or why it can't be. The parent waits
for that, and only then do scripts go on.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import TYPE_CHECKING, NoReturn, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

_READY = "ready"
#: Seconds that a mount may take before the user hears what it waits for.
_SLOW = 2.0


class Reporter(Protocol):
    """Who wants to know what becomes of a mount."""

    def ready(self) -> None:
        """The mount answers."""

    def failed(self, reason: str) -> None:
        """There will be no mount; one line says why."""


class PipeReporter:
    """Reports to the parent process, once.

    Args:
        descriptor: The pipe's end to write to.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Note what the user is to hear, if the mount comes up all the same."""
        self._warnings.append(" ".join(text.split()))

    def ready(self) -> None:
        """The mount answers."""
        self._say("\n".join([_READY, *self._warnings]).encode(errors="replace"))

    def failed(self, reason: str) -> None:
        """There will be no mount; one line says why."""
        self._say(reason.encode(errors="replace"))

    def _say(self, text: bytes) -> None:
        if self._descriptor is not None:
            os.write(self._descriptor, text)
            os.close(self._descriptor)
            self._descriptor = None


def run_in_background(
    run: Callable[[PipeReporter], int],
    slow: Callable[[], None] = lambda: None,
    warned: Callable[[str], None] = lambda _: None,
) -> str | None:
    """Run a mount in a process of its own; return when it is ready, or can't be.

    The child leads a session of its own, with nothing open from the terminal.
    Fork before anything starts threads.

    Args:
        run: Serves the mount to its end; returns the exit code.
        slow: Called once, if nothing is known after 2 seconds.
        warned: Called with each warning of a mount that is ready.

    Returns:
        None when the mount is ready, else why not.
    """
    reading, writing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # closed, or full: no business of the mount's
            stream.flush()
    if os.fork() == 0:
        os.close(reading)
        _become_daemon(run, PipeReporter(writing))
    os.close(writing)
    if not select.select([reading], [], [], _SLOW)[0]:
        slow()
    with open(reading, "rb") as report:  # noqa: PTH123 - a descriptor
        text = report.read()
    first, *warnings = text.decode(errors="replace").split("\n")
    if first == _READY:
        for warning in warnings:
            warned(warning)
        return None
    return text.decode(errors="replace") or "the mount's process ended without a word; see its log"


def _become_daemon(run: Callable[[PipeReporter], int], reporter: PipeReporter) -> NoReturn:
    code = 1
    try:
        os.setsid()
        os.chdir("/")
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
        code = run(reporter)
    except BaseException as error:  # noqa: BLE001 - the parent waits for a reason
        reporter.failed(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)
