"""Places of which there are only so many: request slots and block buffers."""

from __future__ import annotations

import collections
import threading


class BusyError(Exception):
    """No place is free, and the queue is full too."""


class DeadlineError(Exception):
    """No place became free in time."""


class Slots:
    """A number of places, and a queue before them; first come, first served.

    Args:
        places: How many may be taken at once; None for any number.
        queue: How many may wait; None for any number.
    """

    def __init__(self, places: int | None, queue: int | None = None) -> None:
        self.places = places
        self.queue = queue
        self._changed = threading.Condition()
        self._taken = 0
        self._waiting: collections.deque[object] = collections.deque()
        self._stopped = False

    def take(self, timeout: float) -> None:
        """Take a place, and wait for one if need be.

        Raises:
            BusyError: None is free, and the queue is full.
            DeadlineError: None became free for `timeout` seconds, or the server
                stopped.
        """
        with self._changed:
            if not self._waiting and self._is_free():
                self._taken += 1
                self._changed.notify_all()
                return
            if self.queue is not None and len(self._waiting) >= self.queue:
                raise BusyError
            turn = object()
            self._waiting.append(turn)
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._is_turn(turn) or self._stopped, timeout)
                if self._stopped or not self._is_turn(turn):
                    raise DeadlineError
                self._taken += 1
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()

    def give_back(self) -> None:
        """Free a place."""
        with self._changed:
            self._taken -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Send all home who wait, now and later: the server ends."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def wait_taken(self, places: int, timeout: float = 10.0) -> None:
        """Block until that many places are taken.

        Raises:
            TimeoutError: They were fewer for `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._taken >= places, timeout):
                raise TimeoutError(f"{self._taken} of {places} places are taken")

    def wait_queued(self, requests: int, timeout: float = 10.0) -> None:
        """Block until that many wait.

        Raises:
            TimeoutError: They were fewer for `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._waiting) >= requests, timeout):
                raise TimeoutError(f"{len(self._waiting)} of {requests} wait")

    def _is_free(self) -> bool:
        return self.places is None or self._taken < self.places

    def _is_turn(self, turn: object) -> bool:
        return self._waiting[0] is turn and self._is_free()
