"""FailedFiles: retries failed files in the background, each with its own back-off.

One file never delays the others: its back-off is separate, all its exceptions are
caught, and a retry that hangs frees its slot for the next file.

For the trio thread only.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import trio

from keepfs.keep.retry import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

#: The waits between two attempts; a service that works again is used within a
#: minute.
_BACKOFF = Backoff(first=4.0, factor=2.0, cap=60.0)
#: Most concurrent retries, so that many of them leave threads for new files. Guessed.
_MAX_RETRIES = 2
#: Seconds after which a retry that has not ended frees its slot for the next file. Guessed.
_PATIENCE = 10.0
#: Most retries in progress, including those that hang. Guessed.
_MAX_UNDER_WAY = 16


class Storable(Protocol):
    """The interface of a file for this module."""

    @property
    def path(self) -> str:
        """The path below upload/."""

    @property
    def has_unstored_changes(self) -> bool:
        """Whether a part of it is not in the store."""

    @property
    def is_being_changed(self) -> bool:
        """Whether it is open and was changed since the last attempt."""

    @property
    def is_storing(self) -> bool:
        """Whether a task is storing it."""

    async def attempt_store(self) -> None:
        """Make one attempt to store it, or join the one in progress; raise if it fails.

        Cancellation ends the wait only.
        """


@dataclass(slots=True)
class _Retry:
    """The state of a file that waits for a retry.

    Attributes:
        failures: Failed attempts so far.
        due: The time of the next retry, on trio's clock.
    """

    failures: int
    due: float


class FailedFiles:
    """The files that wait for another attempt.

    Args:
        on_change: Called with a file that was added, has failed again, was moved or discarded.
        backoff: The waits between two attempts for a file.
        patience: Seconds after which a retry that has not ended frees its slot for the
            next file.
    """

    def __init__(
        self,
        on_change: Callable[[Storable], None] = lambda _: None,
        backoff: Backoff = _BACKOFF,
        patience: float = _PATIENCE,
    ) -> None:
        self.on_change = on_change
        self._backoff = backoff
        self._patience = patience
        self._files: dict[Storable, _Retry] = {}
        # (due, number, file); an entry that is out of date is skipped.
        self._queue: list[tuple[float, int, Storable]] = []
        self._numbers = itertools.count()
        self._wake = trio.Event()
        # Retries in progress that began after the last `retry_now`.
        self._under_way = 0
        self._generation = 0
        self._places = trio.Semaphore(_MAX_RETRIES)

    def __contains__(self, file: Storable) -> bool:
        return file in self._files

    def __len__(self) -> int:
        return len(self._files)

    def add(self, file: Storable, *, at_once: bool = False) -> None:
        """Record a failed attempt to store a file; the next one follows after its back-off.

        Args:
            file: The file.
            at_once: Retry without a back-off: an earlier mount spilled the file.
        """
        entry = self._files.get(file)
        failures = 0 if entry is None or at_once else entry.failures
        draw = random.random()  # noqa: S311 - to spread attempts
        wait = 0.0 if at_once else self._backoff.wait(failures, draw)
        self._files[file] = _Retry(failures + (not at_once), 0.0)
        self._schedule(file, wait)
        self.on_change(file)

    def discard(self, file: Storable) -> None:
        """Remove a file that was stored or deleted."""
        if self._files.pop(file, None) is not None:
            self.on_change(file)

    def moved(self, node: Any, *, is_directory: bool) -> None:  # noqa: ANN401 - any node
        """Call `on_change` for files whose paths may have changed, after a move of `node`."""
        if is_directory:
            for file in self._files:
                self.on_change(file)
        elif node in self._files:
            self.on_change(node)

    def files(self) -> list[Storable]:
        """Return the files, in the order of their first failures."""
        return list(self._files)

    def retry_now(self) -> None:
        """Retry all files now, without waiting for their back-offs."""
        self._under_way = 0  # retries that hang must not keep the user's from starting
        self._generation += 1
        for file in self._files:
            self._schedule(file, 0.0)

    async def retry(self) -> None:
        """Retry the files as they become due; runs until cancelled."""
        self._places = trio.Semaphore(_MAX_RETRIES)
        self._under_way = 0
        self._queue.clear()
        for file, entry in self._files.items():  # an earlier run may have dequeued some
            self._schedule(file, max(0.0, entry.due - trio.current_time()))
        async with trio.open_nursery() as nursery:
            while True:
                await self._places.acquire()
                file = await self._next_due()
                self._under_way += 1  # before the search for the next one
                nursery.start_soon(self._retry_one, file, self._generation)

    async def _retry_one(self, file: Storable, generation: int) -> None:
        """Retry a file; free its slot after `patience` seconds."""
        ended = trio.Event()

        async def attempt() -> None:
            await self._attempt(file)
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt)
            with trio.move_on_after(self._patience):
                await ended.wait()
            self._places.release()
        if generation == self._generation:
            self._under_way -= 1
        self._wake.set()

    async def _attempt(self, file: Storable) -> None:
        if file.is_being_changed or file.is_storing:  # since it was found due
            if file in self._files:
                self._schedule(file, self._backoff.first)
            return
        try:
            await file.attempt_store()
        except Exception as error:  # noqa: BLE001 - no failure may affect other files
            _log.info("still not stored: %s: %s", file.path, error)
            entry = self._files.get(file)
            if entry is not None and entry.due <= trio.current_time():
                self.add(file)  # it was not reported by the attempt
            return
        if file.has_unstored_changes:  # changed meanwhile; its close stores it
            if file in self._files:
                self._schedule(file, self._backoff.first)
        else:
            self.discard(file)
            _log.info("stored after a failure: %s", file.path)

    async def _next_due(self) -> Storable:
        """Wait until a file is due, and return it."""
        while True:
            self._wake = trio.Event()
            now, wait = trio.current_time(), math.inf
            if self._under_way < _MAX_UNDER_WAY:
                file, wait = self._pop_due(now)
                if file is not None:
                    return file
            with trio.move_on_after(wait):
                await self._wake.wait()

    def _pop_due(self, now: float) -> tuple[Storable | None, float]:
        """Return the file that is due; or None, and the seconds until one is."""
        while self._queue:
            due, _, file = self._queue[0]
            entry = self._files.get(file)
            if entry is None or entry.due != due:
                heapq.heappop(self._queue)  # discarded, or scheduled anew
            elif due > now:
                return None, due - now
            elif file.is_being_changed or file.is_storing:
                # Don't store half of a new version: its close stores it. An attempt in
                # progress queues the file itself if it fails.
                heapq.heappop(self._queue)
                self._schedule(file, self._backoff.first)
            else:
                heapq.heappop(self._queue)
                return file, 0.0
        return None, math.inf

    def _schedule(self, file: Storable, wait: float) -> None:
        entry = self._files[file]
        entry.due = trio.current_time() + wait
        heapq.heappush(self._queue, (entry.due, next(self._numbers), file))
        self._wake.set()
