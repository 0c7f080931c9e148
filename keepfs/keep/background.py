"""Background: the threads of a client that work when no caller does.

They are few, they are known, and they end with the client.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Background:
    """Runs work in threads of its own, at most so many at once.

    Args:
        most: Threads at once; work beyond that is refused.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads: set[threading.Thread] = set()
        self._changed = threading.Condition()
        self._closed = False

    def spawn(self, work: Callable[[], None]) -> None:
        """Run `work`, which raises nothing, in a thread.

        Raises:
            BusyError: As many are at work as may be, it is closed, or the system
                has no thread to give.
        """
        with self._changed:
            if self._closed or len(self._threads) >= self._most:
                raise BusyError("closed" if self._closed else f"{self._most} are at work")
            thread = threading.Thread(target=self._run, args=(work,), daemon=True)
            self._threads.add(thread)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            self._forget(thread)
            raise BusyError(f"no thread can be started: {error}") from error
        except BaseException:
            self._forget(thread)
            raise

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until nobody is at work, for `timeout` seconds at most; tell whether it is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._threads, timeout)

    def close(self) -> None:
        """Take no more work. What is under way goes on."""
        with self._changed:
            self._closed = True

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            self._forget(threading.current_thread())

    def _forget(self, thread: threading.Thread) -> None:
        with self._changed:
            self._threads.discard(thread)
            self._changed.notify_all()


class BusyError(RuntimeError):
    """There is no thread for more work."""
