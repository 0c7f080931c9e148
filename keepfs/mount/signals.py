"""Signals: the handlers of a mount's signals.

For the trio thread only.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from typing import TYPE_CHECKING

import trio

from keepfs.fs.supervision import supervised
from keepfs.fs.upload.unsaved import GRACE
from keepfs.fs.worker_threads import run_in_thread
from keepfs.messages import of_running
from keepfs.mount import logs, systemd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from keepfs.fs.upload.drain import Drain
    from keepfs.fs.upload.failed import FailedFiles
    from keepfs.renewing_store import RenewingStore

_log = logging.getLogger(__name__)

#: The signals that end a mount, and the other handled signals.
ENDS = (signal.SIGTERM, signal.SIGINT)
OTHERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def defer_others() -> list[int]:
    """Keep the signals that do not end a mount until they can be handled. Main thread only.

    Their default action ends the process, and other processes send them as soon as the run
    file exists. A terminal that closes while the mount is made does not end it either, as
    later.

    Returns:
        The numbers of the signals that have arrived; it grows until another handler replaces
        this one.
    """
    arrived: list[int] = []
    for number in OTHERS:
        signal.signal(number, lambda number, _: arrived.append(number))
    return arrived


@contextlib.asynccontextmanager
async def receiving(early: list[int]) -> AsyncIterator[AsyncIterator[int]]:
    """Yield the numbers of the mount's signals as they arrive, first those of `defer_others`."""
    with trio.open_signal_receiver(*ENDS, *OTHERS) as signals:
        for number in set(early):
            signal.raise_signal(number)
        yield signals
        # Keep the handlers installed until exit: a late signal must not kill the drain.
        # Signals that arrived are consumed.
        with trio.move_on_after(0):
            async for _ in signals:
                pass


class Signals:
    """Handles the signals of a mount.

    SIGTERM or SIGINT stores the unstored files, then ends serving; a second one
    stops storing and spills. SIGHUP reloads the token, SIGUSR1 retries the failed
    files and renews the stored ones at once, SIGUSR2 logs the stack of every task.

    Args:
        signals: Yields the numbers of signals as they arrive.
        store: The store whose token SIGHUP reloads.
        failed: The failed files that SIGUSR1 retries.
        renew: Renews the retention of all stored files at once.
        drain: Stores and spills unstored files.
        serving: Cancelled to end serving.
    """

    def __init__(
        self,
        signals: AsyncIterator[int],
        store: RenewingStore,
        failed: FailedFiles,
        renew: Callable[[], None],
        drain: Drain,
        serving: trio.CancelScope,
    ) -> None:
        self._signals = signals
        self._store = store
        self._failed = failed
        self._renew_stored = renew
        self._drain = drain
        self._serving = serving
        self._was_told_to_end = False

    async def run(self) -> None:
        """Handle signals; runs until cancelled."""
        async with trio.open_nursery() as nursery:
            async for number in self._signals:
                name = signal.Signals(number).name
                if number == signal.SIGHUP:
                    nursery.start_soon(supervised, "reading the token again", self._renew)
                elif number == signal.SIGUSR1:
                    self._failed.retry_now()
                    self._renew_stored()
                elif number == signal.SIGUSR2:
                    _log.info("what every task waits for:\n%s", logs.describe_tasks())
                elif self._was_told_to_end:
                    _log.warning("%s", of_running.NOT_WAITING(signal=name))
                    self._drain.hurry()
                else:
                    self._was_told_to_end = True
                    _log.info("%s: storing what is not stored yet", name)
                    if not self._drain.has_begun:
                        nursery.start_soon(supervised, "storing before the end", self._end)

    async def _renew(self) -> None:
        # A token file on a disk that hangs must not delay later signals.
        await run_in_thread(self._store.renew)

    async def _end(self) -> None:
        systemd.notify(stopping(self._drain.timeout))
        try:
            await self._drain.store()
        finally:
            self._serving.cancel()


def stopping(drain_timeout: float) -> str:
    """Return the sd_notify(3) state for a mount that ends, with its longest duration."""
    longest = drain_timeout + GRACE
    return f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(longest * 1e6)}"
