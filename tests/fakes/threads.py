"""Threads for tests: start many at once, collect what became of each, wait for a fact."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Seconds after which a test that waits has failed; no test passes by it.
PATIENCE = 20.0


def wait_until(fact: Callable[[], bool]) -> None:
    """Wait until `fact()` is true; for figures that can't be waited for otherwise.

    Raises:
        TimeoutError: It didn't become true.
    """
    deadline = time.monotonic() + PATIENCE
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError("what the test waits for didn't come about")
        time.sleep(0.001)


def wait_for(event: threading.Event) -> None:
    """Wait until the event is set.

    Raises:
        TimeoutError: It wasn't.
    """
    if not event.wait(PATIENCE):
        raise TimeoutError("what the test waits for didn't come about")


class Running(Generic[T]):
    """A call under way in a thread of its own.

    Args:
        call: What to do.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._results: list[T] = []
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._call())
        except BaseException as error:  # noqa: BLE001 - handed to the test by `failure`
            self._failure = error
        finally:
            del self._call  # what it closes over is the test's alone again

    def result(self) -> T:
        """Return what the call returned, or raise what it raised. Waits for its end."""
        self._join()
        if self._failure is not None:
            raise self._failure
        return self._results[0]

    def failure(self) -> BaseException:
        """Return what the call raised. Waits for its end."""
        self._join()
        if self._failure is None:
            raise AssertionError(f"the call didn't fail; it returned {self._results[0]!r}")
        return self._failure

    def is_over(self) -> bool:
        """Tell whether the call has ended. Never waits."""
        return not self._thread.is_alive()

    def _join(self) -> None:
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            raise TimeoutError("the call didn't end")
