"""Daemon: starts a mount in the background and waits for its result.

The child reports once, over a pipe: ready, or the reason of a failure. The
parent waits for this report, so that a script continues with a ready mount.
A parent that gets SIGINT, SIGTERM or SIGHUP before the report ends the child, too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn, Protocol

from keepfs.messages import of_mounts, of_running, of_stores
from keepfs.messages.message import ids_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_READY = "ready"
#: The messages of a wrong configuration that only the start of a mount can find.
_FINAL = {
    each.id
    for each in (
        of_running.METRICS_NOT_SERVED,
        of_running.NO_METRICS_FILE,
        of_stores.BAD_SERVICES,
        of_stores.NO_TOKEN,
    )
}
#: Seconds after which a mount that isn't ready yet is reported as slow.
_SLOW = 2.0
#: The signals that end the parent while it waits, and then the child.
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds that the child may take to end after each signal. A child that has mounted stores what
#: it restored after the first SIGTERM, and spills it after the second.
_ENDING = 10.0
#: Seconds between two looks whether the child has ended.
_LOOK = 0.01


class MountAbandonedError(Exception):
    """The command that mounts has ended before the mount was ready."""


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
        """Report that the mount answers requests.

        Raises:
            MountAbandonedError: The parent has ended.
        """
        if self._keeps_group and self._descriptor is not None:
            os.setsid()
        if not self._say("\n".join([_READY, *self._warnings]).encode(errors="replace")):
            raise MountAbandonedError(of_mounts.MOUNT_ABANDONED())

    def failed(self, reason: str) -> None:
        """Report that mounting failed; `reason` is one line.

        It is no error if the parent has ended.
        """
        self._say(reason.encode(errors="replace"))

    def _say(self, text: bytes) -> bool:
        """Send the report, unless one was sent; return whether the parent could receive it."""
        if self._descriptor is None:
            return True
        descriptor, self._descriptor = self._descriptor, None
        try:
            os.write(descriptor, text)
        except BrokenPipeError:
            return False
        finally:
            os.close(descriptor)
        return True


def run_in_background(
    run: Callable[[PipeReporter], int],
    slow: Callable[[], None] = lambda: None,
    warned: Callable[[str], None] = lambda _: None,
    *,
    keeps_group: bool = False,
) -> str | None:
    """Run a mount in a child process; block until it is ready or has failed.

    The child starts a new session and closes the terminal. Call this before the
    process starts threads: it forks. SIGINT, SIGTERM and SIGHUP end the child, which takes
    at most 30 seconds, and then raise.

    Args:
        run: Serves the mount to its end; returns the exit code.
        slow: Called once, in the parent, if there is no report after 2 seconds.
        warned: Called, in the parent, with each warning of a mount that is ready.
        keeps_group: Stay in the process group until the mount is ready. The kernel's autofs
            lets only the group that serves an automount point past it before a mount is there;
            any other process waits for that mount.

    Returns:
        None if the mount is ready, else the reason of the failure.

    Raises:
        KeyboardInterrupt: SIGINT arrived.
        SystemExit: SIGTERM or SIGHUP arrived.
    """
    reading, writing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # closed or full: not needed to mount
            stream.flush()
    # Until the parent can end the child, and the child is apart from the parent.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    child = os.fork()
    if child == 0:
        os.close(reading)
        reporter = PipeReporter(writing, keeps_group=keeps_group)
        _become_daemon(run, reporter, before, keeps_group=keeps_group)
    os.close(writing)
    try:
        with _raising_signals():
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            text = _report_of(reading, slow)
    except BaseException:
        _end(child)
        raise
    first, *warnings = text.split("\n")
    if first == _READY:
        for warning in warnings:
            warned(warning)
        return None
    return text or of_mounts.MOUNT_DIED()


def exit_status_of(reason: str) -> int:
    """Return the exit status for the text of a failure: 2 if a retry can't help, else 1.

    systemd does not restart a service that exits with 2 (RestartPreventExitStatus of the unit).
    """
    return 2 if set(ids_in(reason)) & _FINAL else 1


def _report_of(reading: int, slow: Callable[[], None]) -> str:
    with open(reading, "rb") as report:
        if not select.select([report], [], [], _SLOW)[0]:
            slow()
        return report.read().decode(errors="replace")


@contextlib.contextmanager
def _raising_signals() -> Iterator[None]:
    """Raise SystemExit on SIGTERM and SIGHUP, unless they are ignored, as below nohup(1)."""

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    handled = [
        it for it in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(it) is not signal.SIG_IGN
    ]
    before = {it: signal.signal(it, leave) for it in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(child: int) -> None:
    """End the child, and wait until it has ended. Further signals wait, too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            os.kill(child, number)
            deadline = time.monotonic() + _ENDING
            while time.monotonic() < deadline:
                if os.waitpid(child, os.WNOHANG)[0]:
                    return
                time.sleep(_LOOK)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _become_daemon(
    run: Callable[[PipeReporter], int],
    reporter: PipeReporter,
    mask: set[int],
    *,
    keeps_group: bool,
) -> NoReturn:
    code = 1
    try:
        if not keeps_group:
            os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
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
