"""Background: the threads of a client that work independently of callers.

Their number is bounded, and they end with the client.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

from keepfs.keep.errors import fresh_copy
from keepfs.keep.forks import renew_in_children
from keepfs.keep.threads import BusyError, NoThreadError, Thread

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


class Background:
    """Runs work in threads, at most `most` concurrently.

    Args:
        most: Most threads; further work is refused.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._closed = False
        self.renew_after_fork()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Forget the threads in a forked child: they are the parent's."""
        self._threads: set[threading.Thread] = set()
        self._changed = threading.Condition()

    def spawn(self, work: Callable[[], None]) -> None:
        """Run `work`, which must not raise, in a thread.

        Raises:
            BusyError: All threads are busy, it is closed, or the system can't start a
                thread (NoThreadError).
        """
        with self._changed:
            if self._closed or len(self._threads) >= self._most:
                raise BusyError("closed" if self._closed else f"{self._most} are at work")
            thread = Thread(target=self._run, args=(work,), daemon=True)
            self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            self._forget(thread)
            raise

    def call(self, work: Callable[[], _T], deadline: float) -> _T | None:
        """Run `work` in a thread and return its result. Blocks, also for a free thread.

        Returns None at the deadline, after `close`, and if no thread can be started. Work
        that has begun goes on after the deadline.

        Args:
            work: The function to run.
            deadline: On the monotonic clock, in seconds.

        Raises:
            Exception: A copy of the exception of `work`.
        """
        results: list[_T] = []
        failures: list[Exception] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(work())
            except Exception as error:  # noqa: BLE001 - handed to the caller
                failures.append(fresh_copy(error))
            finally:
                done.set()

        while True:
            try:
                self.spawn(run)
                break
            except NoThreadError:
                return None
            except BusyError:
                if not self._wait_for_place(deadline - time.monotonic()):
                    return None
        done.wait(max(0.0, deadline - time.monotonic()))
        if failures:
            raise failures.pop()
        return results[0] if results else None

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until no work runs, `timeout` seconds at most; return whether none runs."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._threads, timeout)

    def close(self) -> None:
        """Refuse further work. Work in progress goes on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait_for_place(self, timeout: float) -> bool:
        """Wait for a free thread; return False after `timeout` seconds, or if closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or len(self._threads) < self._most, max(0.0, timeout)
            )
            return not self._closed and len(self._threads) < self._most

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            self._forget(threading.current_thread())

    def _forget(self, thread: threading.Thread) -> None:
        with self._changed:
            self._threads.discard(thread)
            self._changed.notify_all()
