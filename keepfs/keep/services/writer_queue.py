"""KeepWriterQueue: the services to store one block at, and the copies still missing.

The queue holds the services in probe order and computes from the confirmed copies
how many more are needed. A writer takes the next service only while fewer tries are
in progress than confirmations are missing, so services that all succeed store
exactly the requested copies. A silent try isn't counted: it may never be answered. If
it is answered after all, there is one copy more.

The names are the SDK's. A service is any object with `put`, `last_result` and
`finished`.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from keepfs.keep.services.outcome import Confirmation

_log = logging.getLogger(__name__)


class WritableService(Protocol):
    """The interface of a service for a writer."""

    def put(
        self,
        hash_s: str,
        body: Any,  # noqa: ANN401 - a buffer, or what the SDK's tests give
        timeout: Any,  # noqa: ANN401 - likewise
        headers: Any,  # noqa: ANN401 - likewise
    ) -> bool | None:
        """Send one PUT of a block; return whether it succeeded."""

    def last_result(self) -> dict[str, Any]:
        """Return the `headers` and `body` of the last answer."""

    def finished(self) -> bool:
        """Return whether a further request to it is useless."""


@runtime_checkable
class CancellableService(Protocol):
    """A service whose request can be cancelled from another thread."""

    def cancel(self) -> None:
        """Cancel the request in progress and all later ones."""


class Tally:
    """The confirmed copies of one block, over all rounds of its call.

    Not thread-safe: the queue's lock guards it.

    Invariant: `missing() == 0` exactly when enough copies are confirmed in total and
    in each requested storage class. Classes don't count if a server predates them.

    Args:
        copies: The requested copies, at least 1.
        classes: The requested storage classes; each needs all the copies.
    """

    def __init__(self, copies: int, classes: Iterable[str] = ()) -> None:
        self.wanted = copies
        self.classes = tuple(sorted(set(classes)))
        self.copies = 0
        self.by_class: Counter[str] = Counter()
        self.roots: list[str] = []
        self.response: Any = None
        self.is_tracking_classes = bool(self.classes)

    def add(self, confirmation: Confirmation, root: str | None, response: object) -> None:
        """Add the copies that a service confirmed."""
        self.copies += confirmation.replicas
        self.by_class.update(confirmation.classes or {})
        if confirmation.classes is None:
            self.is_tracking_classes = False
        if root is not None:
            self.roots.append(root)
        self.response = response

    def missing(self) -> int:
        """Return the confirmations still needed; each successful try brings one or more."""
        least = self.copies
        if self.is_tracking_classes:
            least = min(least, *[self.by_class[name] for name in self.classes])
        return max(0, self.wanted - least)

    def pending_classes(self) -> tuple[str, ...]:
        """Return the requested storage classes that need more copies."""
        if not self.is_tracking_classes:
            return ()
        return tuple(name for name in self.classes if self.by_class[name] < self.wanted)

    def satisfied_classes(self) -> list[str]:
        """Return the requested storage classes that have enough copies."""
        return [name for name in self.classes if self.by_class[name] >= self.wanted]


class KeepWriterQueue(queue.Queue[tuple[WritableService, str | None]]):
    """The services of one round in probe order, and the copies still missing.

    All state is guarded by `_lock`, which is never held during I/O.

    Invariant: no more tries are in progress than confirmations are missing, so
    services that all succeed store exactly the requested copies. Silent tries don't count.

    Args:
        copies: The requested copies.
        classes: The requested storage classes.
        tally: The tally of an earlier round; replaces `copies` and `classes`.
    """

    def __init__(
        self, copies: int, classes: Iterable[str] = (), tally: Tally | None = None
    ) -> None:
        super().__init__()
        self.tally = tally or Tally(copies, classes)
        self._lock = threading.RLock()  # entered directly: the condition adds two calls
        self._changed = threading.Condition(self._lock)
        self._under_way: list[WritableService] = []
        self._silent: list[WritableService] = []  # of those under way
        self._idle = 0  # threads that wait until another service is needed

    @property
    def successful_copies(self) -> int:
        """Return the number of confirmed copies."""
        with self._lock:
            return self.tally.copies

    @property
    def response(self) -> Any:  # noqa: ANN401 - whatever the service's body was
        """Return the body of the last answer that confirmed a copy."""
        with self._lock:
            return self.tally.response

    def pending_copies(self) -> int:
        """Return how many confirmations are missing."""
        with self._lock:
            return self.tally.missing()

    def pending_classes(self) -> tuple[str, ...]:
        """Return the requested storage classes that need more copies."""
        with self._lock:
            return self.tally.pending_classes()

    def satisfied_classes(self) -> list[str]:
        """Return the requested storage classes that have enough copies."""
        with self._lock:
            return self.tally.satisfied_classes()

    def get_next_task(self) -> tuple[WritableService, str | None]:
        """Wait until another service is needed, and return it.

        Raises:
            queue.Empty: Enough copies are confirmed, or no service is left.
        """
        with self._lock:
            while self.tally.missing() > 0:
                if not self._needs_another():
                    self._wait()
                elif (task := self._take()) is not None:
                    return task
            raise queue.Empty

    def get_task_nowait(self) -> tuple[WritableService, str | None]:
        """Return a service that is needed in addition to the tries in progress.

        Raises:
            queue.Empty: None is needed, or none is left.
        """
        with self._lock:
            while self._needs_another():
                if (task := self._take()) is not None:
                    return task
            raise queue.Empty

    def note_silent(self, service: WritableService, shunned: Container[str | None]) -> bool:
        """Stop counting a try that is silent, so that the next service is used too.

        The try counts on while there is no next service that isn't shunned. Shunned services
        are moved to the end.

        Args:
            service: The service of the try.
            shunned: The roots of services that would be silent too.

        Returns:
            Whether more services are needed than threads wait for one. If no thread could be
            started, a later call returns it again.
        """
        with self._lock:
            if not _has(self._under_way, service) or not self._has_next(shunned):
                return False
            if not _has(self._silent, service):
                self._silent.append(service)
                self._wake()
            return self._needed() > self._idle

    def _has_next(self, shunned: Container[str | None]) -> bool:
        """Move the shunned services to the end; return whether there are others."""
        with self.mutex:
            left = [task for task in self.queue if not task[0].finished()]
            left.sort(key=lambda task: task[1] in shunned)
            self.queue.clear()
            self.queue.extend(left)
        return bool(left) and left[0][1] not in shunned

    def _needs_another(self) -> bool:
        return self._needed() > 0

    def _needed(self) -> int:
        """Return how many more tries are needed; at most 0 if none is."""
        return self.tally.missing() - (len(self._under_way) - len(self._silent))

    def _wait(self) -> None:
        self._idle += 1
        try:
            self._changed.wait()
        finally:
            self._idle -= 1

    def _wake(self) -> None:
        if self._idle:
            self._changed.notify_all()

    def _take(self) -> tuple[WritableService, str | None] | None:
        task = self.get_nowait()
        if task[0].finished():
            return None
        self._under_way.append(task[0])
        return task

    def write_success(
        self,
        service: WritableService,
        service_root: str | None,
        confirmation: Confirmation,
        response: object,
    ) -> None:
        """Record that a try succeeded; cancel the others if no more copies are missing."""
        with self._lock:
            self._end(service)
            if confirmation.classes is None and self.tally.is_tracking_classes:
                _log.info("service %s confirms no storage classes", service_root)
            self.tally.add(confirmation, service_root, response)
            superfluous = [] if self.tally.missing() else list(self._under_way)
            self._wake()
        for each in superfluous:
            if isinstance(each, CancellableService):
                each.cancel()

    def write_fail(self, service: WritableService) -> None:
        """Record that a try failed, so that another service is needed."""
        with self._lock:
            self._end(service)
            self._wake()

    def abandon(self, service: WritableService) -> None:
        """Remove a try whose worker ends, if it is still in progress, and wake other workers."""
        with self._lock:
            self._end(service)
            self._wake()

    def _end(self, service: WritableService) -> None:
        _remove(self._under_way, service)
        _remove(self._silent, service)


def _has(services: list[WritableService], service: WritableService) -> bool:
    return any(each is service for each in services)


def _remove(services: list[WritableService], service: WritableService) -> None:
    # By identity: a test double may compare equal to others. Without an iterator: this must
    # work without memory to allocate one.
    at = len(services)
    while at:
        at -= 1
        if services[at] is service:
            del services[at]
            return
