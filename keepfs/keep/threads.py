"""Thread: a thread whose `start` doesn't hang if the new thread runs out of memory.

CPython waits in `Thread.start` until the new thread signals that it runs. A thread
that runs out of memory before that never does (gh-140746), and the caller hangs.
"""

from __future__ import annotations

import threading

#: Seconds that a thread may take to run. Guessed: it takes about 100 µs on an idle machine.
START_PATIENCE = 10.0


class BusyError(RuntimeError):
    """No thread is free for more work."""


class NoThreadError(BusyError):
    """The system can't start a thread: waiting for a free one would not help.

    Args:
        reason: Why, as the interpreter says it.
    """

    def __init__(self, reason: object) -> None:
        super().__init__(f"no thread can be started: {reason}")


class LazyEvent:
    """An event that needs no lock and no condition until a thread waits for it.

    Making and setting one without waiting threads takes a tenth of the time of a
    `threading.Event`. It can't be cleared. Any thread may use it.
    """

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[threading.Event] = []

    def is_set(self) -> bool:
        """Return whether it was set."""
        return self._is_set

    def set(self) -> None:
        """Wake all threads that wait, now and later."""
        # Before the list is read: a thread that isn't in it yet looks at this afterwards.
        self._is_set = True
        for event in tuple(self._waiting):
            event.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, for `timeout` seconds at most; return whether it is."""
        if self._is_set:
            return True
        event = threading.Event()
        self._waiting.append(event)
        try:
            return self.is_set() or event.wait(timeout)
        finally:
            self._waiting.remove(event)


class _BoundedEvent(threading.Event):
    """An event whose `wait` has a default timeout."""

    def __init__(self, patience: float) -> None:
        super().__init__()
        self._patience = patience

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(self._patience if timeout is None else timeout)


class Thread(threading.Thread):
    """A `threading.Thread` whose `start` has a timeout.

    Args:
        arguments: As for `threading.Thread`.
        patience: Seconds that the thread may take to run.
        keywords: As for `threading.Thread`.
    """

    # The event that `Thread.start` waits for; its name in CPython 3.11 to 3.14.
    _started: threading.Event

    def __init__(
        self, *arguments: object, patience: float = START_PATIENCE, **keywords: object
    ) -> None:
        super().__init__(*arguments, **keywords)  # type: ignore[arg-type] # whatever it takes
        self._started = _BoundedEvent(patience)
        self._deciding = threading.Lock()
        self._has_begun = self._is_given_up = False

    def start(self) -> None:
        """Start the thread; `run` is not called after an error, and the target is released.

        Raises:
            NoThreadError: The thread can't be started, or doesn't run in time.
        """
        work = self.run

        def run() -> None:
            del self.run  # breaks a reference cycle
            with self._deciding:
                if self._is_given_up:
                    return
                self._has_begun = True
            work()

        self.run = run  # type: ignore[method-assign] # of this thread alone
        try:
            super().start()
        except (RuntimeError, MemoryError) as error:
            self._release_work()
            raise NoThreadError(error) from error
        if not self._started.is_set():
            with self._deciding:
                self._is_given_up = not self._has_begun
            if self._is_given_up:
                self._release_work()
                raise NoThreadError("it does not begin")

    def _release_work(self) -> None:
        """Drop the target and its arguments: `threading` may list this thread for ever."""
        self.run = _do_nothing  # type: ignore[method-assign] # breaks a cycle too
        for name in ("_target", "_args", "_kwargs"):
            self.__dict__.pop(name, None)


def _do_nothing() -> None:
    """Be the work of a thread that was given up."""
