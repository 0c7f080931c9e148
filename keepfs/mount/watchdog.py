"""Watchdog: detects an event loop or a request that is stuck, and logs every stack once.

A task of the loop records each second that the loop runs, and sends WATCHDOG=1 to the
service manager. A separate thread checks these records: a stuck loop could not.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

import trio

from keepfs.keep.threads import Thread
from keepfs.messages import of_commands, of_running
from keepfs.mount import logs, systemd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keepfs.fs.requests import Requests

_log = logging.getLogger(__name__)

#: Seconds for which the loop, or a request past its deadline, may be stuck before the stacks
#: are logged. Required by operators; slow disks take less.
LIMIT = 60.0
#: Seconds between two records of the loop, and between two checks of them.
_INTERVAL = 1.0
#: If the thread itself is late by more than this many intervals, the process was stopped or
#: had no processor, and the time before does not count.
_LATE = 5.0
#: Seconds without a record after which the figures report the loop as stuck.
_STUCK = 3.0


class Watchdog:
    """Watches the event loop and the requests of a mount.

    Args:
        requests: The requests in progress, with their deadline.
        each_turn: Called in the trio thread after each record, for example to copy figures that
            other threads need while the loop is stuck.
        limit: Seconds after which the stacks are logged. For the loop it is shortened to half
            of the service manager's limit, so that the log has the reason of a restart.
        interval: Seconds between two records of the loop.
    """

    def __init__(
        self,
        requests: Requests,
        each_turn: Callable[[], None] = lambda: None,
        limit: float = LIMIT,
        interval: float = _INTERVAL,
    ) -> None:
        self._requests = requests
        self._each_turn = each_turn
        #: Seconds within which the service manager expects WATCHDOG=1; 0: it expects none.
        self._manager = systemd.watchdog_limit()
        self._limit = limit
        self._loop_limit = min(limit, self._manager / 2) if self._manager else limit
        self._interval = min(interval, self._manager / 4) if self._manager else interval
        self._noted = self._looked = self._since = time.monotonic()
        self._is_stuck = False
        self._ended = threading.Event()

    def loop_stuck(self) -> float:
        """Return for how many seconds the loop has not run; 0.0 if it runs. For any thread."""
        age = time.monotonic() - self._noted
        return age if age >= _STUCK else 0.0

    async def run(self) -> None:
        """Record that the loop runs, until cancelled. Starts the thread, and ends it."""
        root = trio.lowlevel.current_root_task()
        clock = trio.lowlevel.current_clock().current_time
        self._ended.clear()
        self._noted = self._looked = self._since = time.monotonic()
        thread = Thread(
            target=self._watch, args=(root, clock), name="keepfs watchdog", daemon=True
        )
        thread.start()
        try:
            due = 0.0
            while True:
                now = self._noted = time.monotonic()
                if self._manager and now >= due and not self._is_stuck:
                    systemd.notify("WATCHDOG=1")
                    due = now + self._manager / 4
                self._each_turn()
                await trio.sleep(self._interval)
        finally:
            self._ended.set()

    def _watch(self, root: trio.lowlevel.Task | None, clock: Callable[[], float]) -> None:
        """Check once in an interval, until `run` ends. In a thread."""
        while not self._ended.wait(self._interval):
            try:
                self._look(time.monotonic(), root, clock())
            except Exception:  # noqa: BLE001 - the thread must continue
                _log.exception("%s", of_commands.UNEXPECTED(what="the watchdog"))

    def _look(self, now: float, root: trio.lowlevel.Task | None, on_trios_clock: float) -> None:
        if now - self._looked > _LATE * self._interval:
            self._since = now  # the process was stopped
        self._looked = now
        watched = now - self._since
        loop = min(now - self._noted, watched)
        waiting = self._requests.in_progress()
        overdue = on_trios_clock - waiting[0].since - self._requests.deadline if waiting else 0.0
        overdue = min(overdue, watched)
        if loop < self._loop_limit and overdue < self._limit:
            if self._is_stuck:
                self._is_stuck = False
                _log.warning("%s", of_running.MOUNT_ANSWERS_AGAIN())
            return
        if not self._is_stuck:
            self._is_stuck = True
            what = (
                f"the event loop has not run for {loop:.0f} s"
                if loop >= self._loop_limit
                else f"a {waiting[0].kind} is {overdue:.0f} s past its deadline"
            )
            withheld = "; WATCHDOG=1 is withheld" if self._manager else ""
            _log.critical(
                "%s",
                of_running.MOUNT_STUCK(
                    what=what,
                    withheld=withheld,
                    stacks=f"every task:\n{logs.describe_tasks(root)}\nevery thread:\n"
                    f"{logs.describe_threads()}",
                ),
            )


def keep_stacks_of_crash(log_file: Path | None) -> None:
    """Write the stacks of all threads if a signal such as SIGABRT ends the process.

    The service manager sends SIGABRT when WATCHDOG=1 is missing. The stacks have the names of
    files and functions, and line numbers, but no values.

    Args:
        log_file: The file that they are appended to; None for standard error.
    """
    import faulthandler  # noqa: PLC0415 - for mounts only

    if log_file is None:
        faulthandler.enable(sys.stderr)
    else:
        # A separate descriptor that stays open: the log's is closed when the file is rotated.
        faulthandler.enable(os.open(log_file, os.O_WRONLY | os.O_APPEND))
