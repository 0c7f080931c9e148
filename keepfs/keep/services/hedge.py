"""Hedge: services are asked for a block one after another, and beside one that is silent.

While a service answers, the caller's own thread asks it and no other is needed. When
no byte has come for some seconds, a thread asks the next one as well. The first good
answer wins, and the other exchanges are cancelled.

All exchanges of one block share one block's memory. A service that begins to
send the block waits while another sends it, and takes its place if that one is silent.
"""

from __future__ import annotations

import collections
import functools
import logging
import threading
import time
from typing import TYPE_CHECKING

from keepfs.keep.background import BusyError
from keepfs.keep.http.pace import CancelledError, TooSlowError, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from keepfs.keep.services.service import KeepService
    from keepfs.keep.store import Call

_log = logging.getLogger(__name__)

#: Seconds without a byte after which the next service is asked too. A keepstore reads
#: and hashes a block of 64 MiB before it answers: 0.7 s from a disk of 100 MB/s. Four
#: times that is no longer usual, and a reader who waits 3 s more has not given up.
SILENCE = 3.0
#: Exchanges at once for one block. A block has two or three copies.
_MOST = 3
#: Seconds for which a service that was silent is asked last. Guessed.
_SLUGGISH = 30.0
#: Seconds to wait for a silent exchange to let go of the block's memory, at a time.
_STEP = 0.1


class Sluggish:
    """Services that were silent while another answered. Any thread may use it.

    For a while they are asked last: else a reader of many blocks would wait for
    them at each.

    Args:
        clock: Seconds, instead of `time.monotonic`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def note(self, silent: Sequence[KeepService], answered: KeepService | None) -> None:
        """Note who was silent in a call, and who answered it."""
        if answered is None:
            return
        if not silent and not self._until:
            return
        now = self._clock()
        until = {root: end for root, end in self._until.items() if end > now}
        until |= {service.root: now + _SLUGGISH for service in silent}
        until.pop(answered.root, None)
        self._until = until  # as a whole: others may be reading it

    def last(self, services: Iterable[KeepService]) -> list[KeepService]:
        """Move those to the end that were silent of late."""
        found, until = list(services), self._until
        if until:
            now = self._clock()
            found.sort(key=lambda service: until.get(service.root, now) > now)
        return found


class Hedge:
    """Asks services for one block until one answers well. For one `run`.

    The threads that it starts end when `run` has returned, or soon after: their
    exchanges are cancelled.

    Args:
        services: Whom to ask, in this order.
        ask: Asks one, once, and tells whether it answered well. Blocks.
        call: What for.
        spawn: Runs what it is given in another thread, or raises `BusyError`.
        silence: Seconds without a byte after which the next one is asked too.

    Attributes:
        silent: Services that were silent for so long, be it that they answered later.
        displaced: Services that had begun to send the block when another took their place.
    """

    def __init__(
        self,
        services: Iterable[KeepService],
        ask: Callable[[KeepService], bool],
        call: Call,
        spawn: Callable[[Callable[[], None]], None],
        silence: float = SILENCE,
    ) -> None:
        self.silent: list[KeepService] = []
        self.displaced: list[KeepService] = []
        self._ask = ask
        self._call = call
        self._spawn = spawn
        self._silence = silence
        self._lock = threading.Lock()
        # Only where there are several threads somebody waits for a change.
        self._changed: threading.Condition | None = None
        self._waiting = collections.deque(services)
        self._asked: list[KeepService] = []
        self._threads = self._starting = 0
        self._receiving: KeepService | None = None
        self._winner: KeepService | None = None
        self._failure: BaseException | None = None
        self._is_over = False

    def run(self) -> KeepService | None:
        """Return the service that answered well, or None if none did. Blocks.

        Raises:
            Exception: What `ask` raised, in whichever thread.
        """
        try:
            self._work()
            if self._changed is not None:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._winner is not None or not self._threads,
                        self._call.remaining(),
                    )
            if self._winner is None and self._failure is not None:
                raise self._failure
            return self._winner
        finally:
            if self._changed is not None:
                self._end()

    def _work(self) -> None:
        """Ask one service after another, while nobody has answered well."""
        while (service := self._next()) is not None:
            on_silence = functools.partial(self._hedge, service)
            service.watch(
                Watch(self._silence, on_silence, functools.partial(self._receive, service))
            )
            is_good = False
            try:
                is_good = self._ask(service)
            finally:
                service.watch(None)  # it has us: a cycle would keep the block alive
                with self._lock:
                    self._asked.remove(service)
                    if self._receiving is service:
                        self._receiving = None
                    if is_good and self._winner is None:
                        self._winner = service
                    self._notify()
            if is_good:
                if self._changed is not None:
                    self._end()
                return

    def _next(self) -> KeepService | None:
        with self._lock:
            if self._is_over or self._winner is not None or not self._waiting:
                return None
            if self._asked and self._is_anybody_answering():
                return None  # whoever asks it goes on if need be
            if self._waiting[0].last_status() is not None and not self._call.remaining():
                return None
            service = self._waiting.popleft()
            self._asked.append(service)
            return service

    def _is_anybody_answering(self) -> bool:
        return any(each.silent_for() < self._silence for each in self._asked)

    def _end(self) -> None:
        """Cancel what is still asked."""
        with self._lock:
            self._is_over = True
            superfluous = list(self._asked)
            self._notify()
        for service in superfluous:
            service.cancel()

    # --- silence ----------------------------------------------------------

    def _hedge(self, silent: KeepService) -> None:
        """Ask the next service too, in a thread, since one is silent."""
        with self._lock:
            if silent not in self.silent:
                self.silent.append(silent)
            if self._is_over or not self._waiting or self._starting:
                return
            if len(self._asked) >= _MOST or self._is_anybody_answering():
                return
            self._threads += 1
            self._starting += 1
            self._changed = self._changed or threading.Condition(self._lock)
        try:
            self._spawn(self._work_in_thread)
        except BusyError as error:
            self._begin()
            self._leave(None)
            _log.debug("%s is silent, but no other service is asked: %s", silent.root, error)
        except BaseException:
            self._begin()
            self._leave(None)
            raise

    def _work_in_thread(self) -> None:
        failure: BaseException | None = None
        self._begin()
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised by `run`, if nobody answers
            failure = error
        finally:
            self._leave(failure)

    def _begin(self) -> None:
        with self._lock:
            self._starting -= 1

    def _leave(self, failure: BaseException | None) -> None:
        with self._lock:
            self._threads -= 1
            if failure is not None:
                level = logging.DEBUG if self._is_over else logging.WARNING
                _log.log(level, "asking another service failed: %r", failure)
                self._failure = failure
            self._notify()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.notify_all()

    # --- memory -----------------------------------------------------------

    def _receive(self, service: KeepService) -> None:
        """Wait until a service is the only one that sends the block.

        Raises:
            CancelledError: Another has sent it.
            TooSlowError: The call's time is up.
        """
        with self._lock:
            while self._receiving is not None and self._changed is not None:
                if self._is_over:
                    raise CancelledError("given up")
                if not self._call.remaining():
                    raise TooSlowError("the call's time is up")
                sender = self._receiving
                left = self._silence - sender.silent_for()
                if left <= 0 and sender not in self.displaced:
                    self.displaced.append(sender)
                    sender.interrupt(
                        TooSlowError(f"no byte came for {self._silence:g} s, another was asked")
                    )
                self._changed.wait(max(left, _STEP))
            self._receiving = service
