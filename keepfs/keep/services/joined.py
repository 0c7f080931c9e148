"""Joined: one request to the API server shared by all callers, and the pause before a retry."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from keepfs.keep.errors import Cause, NoKeepServersError
from keepfs.keep.services.outcome import cause_of_error
from keepfs.keep.threads import NoThreadError, Thread

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

#: Seconds after which an unanswered request counts as hung, and another is made: longer
#: than the longest time of `ApiClient`.
_HUNG = 90.0
#: Most concurrent requests, hung ones included.
_MOST_RUNS = 3
#: Seconds to pause after a failure: the first value, doubled by each failure, up to the second.
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0


class Joined(Generic[_T]):
    """A function of which concurrent callers share one run.

    A run that hangs doesn't block others: after 90 s another is started, up to three. A
    thread that hangs can't be ended; it is a daemon, and a late result is passed to all
    callers that still wait.

    Args:
        function: The function; runs in a daemon thread.
        what: Its result, for messages.
        clock: Replaces `time.monotonic`.
    """

    def __init__(
        self,
        function: Callable[[], _T],
        what: str = "answer",
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._function = function
        self._what = what
        self._clock = clock or time.monotonic
        self._lock = threading.Lock()
        self._runs: list[Run[_T]] = []  # in progress
        self._is_closed = False

    def start(self) -> Run[_T]:
        """Join the run in progress, or start one. Doesn't block."""
        with self._lock:
            now = self._clock()
            if self._runs:
                last = self._runs[-1]
                if now - last.begun < _HUNG or len(self._runs) >= _MOST_RUNS:
                    return last
            run = Run[_T](now, self._what)
            if self._is_closed:
                run.fail(ConnectionError("the client is closed"))
                return run
            self._runs.append(run)
        thread = Thread(target=self._execute, args=(run,), daemon=True)
        try:
            thread.start()
        except NoThreadError as error:
            self._end(run)
            run.fail(error)
        return run

    def call(self, timeout: float) -> _T:
        """Wait for the result of a run; start another if the run hangs.

        Raises:
            NoKeepServersError: It failed, or takes longer than `timeout` seconds.
        """
        end = self._clock() + timeout
        while True:
            run = self.start()
            left = max(0.0, end - self._clock())
            if run.done.wait(min(left, max(1.0, run.begun + _HUNG - self._clock()))) or not left:
                return run.wait(0)

    def close(self) -> None:
        """Wake all callers with a failure; further runs fail."""
        with self._lock:
            self._is_closed = True
            runs = list(self._runs)
        for run in runs:
            run.fail(ConnectionError("the client is closed"))

    def _execute(self, run: Run[_T]) -> None:
        try:
            result = self._function()
        except Exception as error:  # noqa: BLE001 - of a foreign API client
            self._end(run)
            run.fail(error)
        except BaseException:
            self._end(run)
            run.fail(RuntimeError("the thread was ended"))
            raise
        else:
            for each in self._end(run):
                each.succeed(result)

    def _end(self, run: Run[_T]) -> list[Run[_T]]:
        """Remove a run, so that others can start; return the runs in progress before."""
        with self._lock:
            found = list(self._runs)
            self._runs.remove(run)
            return found


class Run(Generic[_T]):
    """One run, and its first result or failure.

    Args:
        begun: Its start time.
        what: Its result, for messages.
    """

    def __init__(self, begun: float, what: str) -> None:
        self.begun = begun
        self._what = what
        self.done = threading.Event()
        self._result: list[_T] = []
        self._failure: tuple[str, Cause] = ("", Cause.OTHER)

    def succeed(self, result: _T) -> None:
        """Wake all callers with a result."""
        if not self.done.is_set():
            self._result.append(result)
            self.done.set()

    def fail(self, error: Exception) -> None:
        """Wake all callers with the text of an error."""
        if not self.done.is_set():
            # Not the error itself: its traceback would keep frames alive.
            kind = "" if isinstance(error, UselessAnswerError) else f"{type(error).__name__}: "
            self._failure = (f"{kind}{error}", cause_of_error(error))
            self.done.set()

    def wait(self, timeout: float) -> _T:
        """Wait for the result.

        Raises:
            TooLateError: It takes longer than `timeout` seconds.
            NoKeepServersError: It failed.
        """
        if not self.done.wait(max(0.0, timeout)):
            raise TooLateError("the API server takes too long", cause=Cause.TIMED_OUT)
        if self._result:
            return self._result[0]
        text, cause = self._failure
        raise NoKeepServersError(f"the API server gave no {self._what} ({text})", cause=cause)


class TooLateError(NoKeepServersError):
    """The API server hasn't answered yet."""


class UselessAnswerError(NoKeepServersError):
    """The answer of the API server can't be used."""


class Pause:
    """Exponential pause between failed requests, from 2 s to 60 s. Any thread may use it.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._until = -math.inf

    def is_over(self) -> bool:
        """Return whether a request may be made."""
        return self._clock() >= self._until

    def begin(self) -> bool:
        """Start a pause after a failure; return False if one is running already."""
        if not self.is_over():
            return False
        # Bound the exponent: 2.0**1024 overflows.
        length = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures, 64))
        self._failures += 1
        self._until = self._clock() + length
        return True

    def end(self) -> None:
        """Reset the pause after a success."""
        self._failures = 0
        self._until = -math.inf
