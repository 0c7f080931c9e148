"""Hedge: requests for a block to one service after another, or to two if one is slow.

While a service answers, only the caller's thread works. A second thread sends a request
to the next service if no byte has arrived for `SILENCE` seconds, or if the transfer has
lasted that long and at its current rate would last that long again. The second case
needs the permission of `keepfs.keep.services.extras`: on a link that is slow for all
services a second transfer would only take bandwidth from the first. The first
successful answer wins; the other exchanges are cancelled.

All exchanges of one block share the memory of one block. If a second service starts to
send the block, its first `PROBE` bytes are received into separate memory, then its
transfer is paused. It replaces the first transfer if that is silent, or if at the rate
of its first bytes the whole block takes at most half the time of the first one's rest.
A block of `PROBE` bytes or fewer is received completely from both.
"""

from __future__ import annotations

import collections
import functools
import logging
import threading
from typing import TYPE_CHECKING

from keepfs.keep.http.pace import CancelledError, TooSlowError, Watch
from keepfs.keep.threads import BusyError
from keepfs.messages import of_stores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keepfs.keep.services.extras import Extras
    from keepfs.keep.services.service import KeepService
    from keepfs.keep.store import CallOptions

_log = logging.getLogger(__name__)

#: Seconds without a byte after which a request goes to the next service too. A keepstore
#: reads and hashes a block of 64 MiB before it answers: 0.7 s from a disk of 100 MB/s.
#: Four times that is unusual, and a reader can wait 3 s more.
SILENCE = 3.0
#: Bytes received from a second service before the decision whether it replaces the first.
#: With the 64 threads that hedge (`remote`) this is 16 MiB. A link of 100 kB/s takes 3 s.
PROBE = 256 * 1024
#: The factor by which the second service must be faster: a rate over few bytes is inexact.
_SOONER = 2.0
#: Most concurrent exchanges for one block, which has two or three copies.
_MOST = 3
#: Seconds between two checks whether a silent exchange has released the block's memory.
_STEP = 0.1


class Hedge:
    """Sends requests for one block to services until one succeeds. For one `run`.

    The threads that it starts end when `run` returns, or soon after: their exchanges
    are cancelled.

    Args:
        services: The services, in order.
        ask: Sends one request to a service, returns whether it succeeded. Blocks.
        call: The options of the call.
        spawn: Runs a function in another thread, or raises `BusyError`.
        extras: Decides whether a slow transfer may get a second one.
        silence: Seconds without a byte, or of a slow transfer, after which a request
            goes to the next service too.

    Attributes:
        sluggish: Services that were silent or slow for `silence` seconds, even if they
            answered later.
        displaced: Services whose transfer of the block was replaced by another's.
    """

    def __init__(
        self,
        services: Iterable[KeepService],
        ask: Callable[[KeepService], bool],
        call: CallOptions,
        spawn: Callable[[Callable[[], None]], None],
        extras: Extras,
        silence: float = SILENCE,
    ) -> None:
        self.sluggish: list[KeepService] = []
        self.displaced: list[KeepService] = []
        self._ask = ask
        self._call = call
        self._spawn = spawn
        self._extras = extras
        self._silence = silence
        self._lock = threading.Lock()
        # Set once there is more than one thread.
        self._changed: threading.Condition | None = None
        self._waiting = collections.deque(services)
        self._asked: list[KeepService] = []
        # The services asked by added threads; of `_asked`, those with slow transfers, and
        # those paused before the rest of the block; whether a slow transfer got a second one.
        self._added: list[KeepService] = []
        self._slow: list[KeepService] = []
        self._ready: list[KeepService] = []
        self._is_doubled = False
        self._threads = self._starting = 0
        self._receiving: KeepService | None = None
        self._winner: KeepService | None = None
        self._failure: BaseException | None = None
        self._is_over = self._was_beaten = False

    def run(self) -> KeepService | None:
        """Return the service that succeeded, or None if none did. Blocks.

        Raises:
            Exception: `ask` raised it, in any of the threads.
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
            with self._lock:
                self._end_double(self._has_extra_won())

    def _end_double(self, has_won: bool | None) -> None:  # noqa: FBT001 - one value of three
        if self._is_doubled:
            self._is_doubled = False
            self._extras.end(has_won)

    def _has_extra_won(self) -> bool | None:
        """Return whether an added thread's service won; None if none was in progress."""
        if self._winner is not None and self._winner in self._added:
            return True
        return False if self._winner is not None and self._was_beaten else None

    def _work(self, *, is_added: bool = False) -> None:
        """Send requests to one service after another until one has succeeded."""
        while (service := self._next(is_added=is_added)) is not None:
            service.watch(
                Watch(
                    self._silence,
                    functools.partial(self._hedge, service),
                    functools.partial(self._receive, service),
                    functools.partial(self._double, service),
                    PROBE if is_added else 0,
                )
            )
            is_good = False
            begun = self._extras.clock()
            try:
                is_good = self._ask(service)
            finally:
                service.watch(None)  # breaks a cycle that would keep the block alive
                with self._lock:
                    self._asked.remove(service)
                    if service in self._slow:
                        self._slow.remove(service)
                    if self._receiving is service:
                        self._receiving = None
                    if is_good and self._winner is None:
                        self._winner = service
                    self._notify()
            if is_good:
                if self._changed is not None:
                    self._end()
                self._note_rate(service, self._extras.clock() - begun)
                return

    def _note_rate(self, service: KeepService, seconds: float) -> None:
        outcome = service.outcome()
        if outcome is not None and outcome.block is not None:
            self._extras.note(service.root, len(outcome.block), seconds)

    def _next(self, *, is_added: bool) -> KeepService | None:
        with self._lock:
            if self._is_over or self._winner is not None or not self._waiting:
                return None
            if self._asked and self._is_anybody_answering():
                return None  # the thread that waits for it goes on if necessary
            if self._waiting[0].last_status() is not None and not self._call.remaining():
                return None
            service = self._waiting.popleft()
            self._asked.append(service)
            if is_added:
                self._added.append(service)
            return service

    def _is_anybody_answering(self) -> bool:
        return any(
            each not in self._slow and (each in self._ready or each.silent_for() < self._silence)
            for each in self._asked
        )

    def _end(self) -> None:
        """Cancel the exchanges in progress."""
        with self._lock:
            self._is_over = True
            superfluous = list(self._asked)
            self._was_beaten |= any(each in self._added for each in superfluous)
            self._notify()
        for service in superfluous:
            service.cancel()

    # --- silence and slowness ---------------------------------------------

    def _hedge(self, silent: KeepService) -> None:
        """Handle a silent service: send a request to the next one, in a new thread."""
        with self._lock:
            self._note_sluggish(silent)
            if not self._is_another_needed():
                return
            self._prepare()
        self._add(silent)

    def _double(self, slow: KeepService) -> None:
        """Handle a slow transfer: send a request to the next service, in a new thread."""
        with self._lock:
            self._note_sluggish(slow)
            if slow not in self._slow:
                self._slow.append(slow)
            self._notify()  # a paused service may be faster
            if not self._is_another_needed():
                return
            if not self._is_doubled:
                others = [each.root for each in self._waiting]
                if not self._extras.begin(slow.rate(), others):
                    return
                self._is_doubled = True
            self._prepare()
        self._add(slow)

    def _note_sluggish(self, service: KeepService) -> None:
        if service not in self.sluggish:
            self.sluggish.append(service)

    def _is_another_needed(self) -> bool:
        if self._is_over or not self._waiting or self._starting:
            return False
        return len(self._asked) < _MOST and not self._is_anybody_answering()

    def _prepare(self) -> None:
        """Count a thread before its start."""
        self._threads += 1
        self._starting += 1
        self._changed = self._changed or threading.Condition(self._lock)

    def _add(self, sluggish: KeepService) -> None:
        """Start a thread for the next service."""
        try:
            self._spawn(self._work_in_thread)
        except BusyError as error:
            self._begin()
            self._leave(None)
            _log.debug("%s is silent or slow, but no other is asked: %s", sluggish.root, error)
        except BaseException:
            self._begin()
            self._leave(None)
            raise

    def _work_in_thread(self) -> None:
        failure: BaseException | None = None
        self._begin()
        try:
            self._work(is_added=True)
        except BaseException as error:  # noqa: BLE001 - raised by `run`, if no service succeeds
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
                _log.log(level, "%s", of_stores.EXTRA_SERVICE_FAILED(reason=repr(failure)))
                self._failure = failure
            if not self._threads and self._winner is None:
                # No other service has the block: another block may have a second transfer.
                self._end_double(None)
            self._notify()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.notify_all()

    # --- memory -----------------------------------------------------------

    def _receive(self, service: KeepService) -> None:
        """Wait until a service is the only one whose transfer isn't paused.

        Raises:
            CancelledError: Another service has sent the block.
            TooSlowError: The call's time is up.
        """
        needed = service.time_left()
        with self._lock:
            self._ready.append(service)
            try:
                self._wait_to_receive(needed)
            finally:
                self._ready.remove(service)
            self._receiving = service

    def _wait_to_receive(self, needed: float) -> None:
        while self._receiving is not None and self._changed is not None:
            if self._is_over:
                raise CancelledError("given up")
            if not self._call.remaining():
                raise TooSlowError("the call's time is up")
            sender = self._receiving
            left = self._silence - sender.silent_for()
            if left <= 0:
                self._displace(sender, f"no byte came for {self._silence:g} s")
            elif sender in self._slow and _SOONER * needed <= sender.time_left():
                self._displace(sender, f"only {sender.rate():.0f} bytes a second came")
            self._changed.wait(max(left, _STEP))

    def _displace(self, sender: KeepService, reason: str) -> None:
        if sender not in self.displaced:
            self.displaced.append(sender)
            sender.interrupt(TooSlowError(f"{reason}, another was asked"))
