"""Daemon: starts a mount in the background and waits for its result.

The child reports once, over a pipe: ready, or the reason of a failure. The
parent waits for this report, so that a script continues with a ready mount.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import TYPE_CHECKING, NoReturn, Protocol

from keepfs.messages import of_mounts, of_running
from keepfs.messages.message import ids_in

if TYPE_CHECKING:
    from collections.abc import Callable

_READY = "ready"
#: The messages of a wrong configuration that only the start of a mount can find.
_FINAL = {each.id for each in (of_running.METRICS_NOT_SERVED, of_running.NO_METRICS_FILE)}
#: Seconds after which a mount that isn't ready yet is reported as slow.
_SLOW = 2.0


class Reporter(Protocol):
    """Receives the result of starting a mount."""

    def ready(self) -> None:
        """Report that the mount answers requests."""

    def failed(self, reason: str) -> None:
        """Report that mounting failed; `reason` is one line."""


class PipeReporter:
    """Reports to the parent process, once.

    Args:
        descriptor: The write end of the pipe.
        keeps_group: Whether the process starts its session when it is ready, not before.
    """

    def __init__(self, descriptor: int, *, keeps_group: bool = False) -> None:
        self._descriptor: int | None = descriptor
        self._keeps_group = keeps_group
        self._warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Add a warning to the report of success."""
        self._warnings.append(" ".join(text.split()))

    def ready(self) -> None:
        """Report that the mount answers requests."""
        if self._keeps_group and self._descriptor is not None:
            os.setsid()
        self._say("\n".join([_READY, *self._warnings]).encode(errors="replace"))

    def failed(self, reason: str) -> None:
        """Report that mounting failed; `reason` is one line."""
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
    *,
    keeps_group: bool = False,
) -> str | None:
    """Run a mount in a child process; block until it is ready or has failed.

    The child starts a new session and closes the terminal. Call this before the
    process starts threads: it forks.

    Args:
        run: Serves the mount to its end; returns the exit code.
        slow: Called once, in the parent, if there is no report after 2 seconds.
        warned: Called, in the parent, with each warning of a mount that is ready.
        keeps_group: Stay in the process group until the mount is ready. The kernel's autofs
            lets only the group that serves an automount point past it before a mount is there;
            any other process waits for that mount.

    Returns:
        None if the mount is ready, else the reason of the failure.
    """
    reading, writing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # closed or full: not needed to mount
            stream.flush()
    if os.fork() == 0:
        os.close(reading)
        reporter = PipeReporter(writing, keeps_group=keeps_group)
        _become_daemon(run, reporter, keeps_group=keeps_group)
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
    return text.decode(errors="replace") or of_mounts.MOUNT_DIED()


def exit_status_of(reason: str) -> int:
    """Return the exit status for the text of a failed start: 2 if a retry can't help, else 1.

    systemd does not restart a service that exits with 2 (RestartPreventExitStatus of the unit).
    """
    return 2 if set(ids_in(reason)) & _FINAL else 1


def _become_daemon(
    run: Callable[[PipeReporter], int], reporter: PipeReporter, *, keeps_group: bool
) -> NoReturn:
    code = 1
    try:
        if not keeps_group:
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
