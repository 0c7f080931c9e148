"""KeepWriterQueue: the services that one block may be stored at, and what is still wanted.

The queue holds the services in probe order and computes, from what has been
confirmed, how many more are needed. A writer takes the next service only
while fewer tries are under way than confirmations are missing; so services
that all succeed store exactly what is wanted.

The names and their duck types are the SDK's: whatever has `put`,
`last_result` and `finished` is a service here.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepfs.keep.services.outcome import Confirmation

_log = logging.getLogger(__name__)


class WritableService(Protocol):
    """What a writer needs of a service."""

    def put(
        self,
        hash_s: str,
        body: Any,  # noqa: ANN401 - a buffer, or what the SDK's tests give
        timeout: Any,  # noqa: ANN401 - ditto
        headers: Any,  # noqa: ANN401 - ditto
    ) -> bool | None:
        """Store a block, once, and tell whether that worked."""

    def last_result(self) -> dict[str, Any]:
        """Return what the service answered: `headers` and `body`."""

    def finished(self) -> bool:
        """Tell whether there is no use in asking it (again)."""


@runtime_checkable
class CancellableService(Protocol):
    """A service whose request can be ended from another thread."""

    def cancel(self) -> None:
        """End the request under way, or to come."""


class Tally:
    """What has been confirmed of one block, over all rounds of its call.

    Not for threads: the queue's lock guards it.

    Invariant: `missing() == 0` exactly when enough copies are confirmed, and
    enough in each wanted storage class, unless a server predates those.

    Args:
        copies: How many are wanted, at least 1.
        classes: In which storage classes; each wants all the copies.
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
        """Note what a service says it stored."""
        self.copies += confirmation.replicas
        self.by_class.update(confirmation.classes or {})
        if confirmation.classes is None:
            self.is_tracking_classes = False
        if root is not None:
            self.roots.append(root)
        self.response = response

    def missing(self) -> int:
        """Count the confirmations that are still needed: each try brings one, or more."""
        counts = [self.copies]
        if self.is_tracking_classes:
            counts += [self.by_class[name] for name in self.classes]
        return max(0, self.wanted - min(counts))

    def pending_classes(self) -> tuple[str, ...]:
        """Return the storage classes that want more copies."""
        if not self.is_tracking_classes:
            return ()
        return tuple(name for name in self.classes if self.by_class[name] < self.wanted)

    def satisfied_classes(self) -> list[str]:
        """Return the wanted storage classes that have enough copies."""
        return [name for name in self.classes if self.by_class[name] >= self.wanted]


class KeepWriterQueue(queue.Queue[tuple[WritableService, str | None]]):
    """Services to ask, the likeliest holder first, and what is still wanted of them.

    All state is guarded by `_changed`, held only for arithmetic.

    Invariant: no more tries are under way than confirmations are missing, so
    services that all succeed store exactly what is wanted.

    Args:
        copies: How many are wanted.
        classes: In which storage classes.
        tally: Carried on from an earlier round, instead of both.
    """

    def __init__(
        self, copies: int, classes: Iterable[str] = (), tally: Tally | None = None
    ) -> None:
        super().__init__()
        self.tally = tally or Tally(copies, classes)
        self._changed = threading.Condition()
        self._under_way: list[WritableService] = []

    @property
    def successful_copies(self) -> int:
        """Return the number of confirmed copies."""
        with self._changed:
            return self.tally.copies

    @property
    def response(self) -> Any:  # noqa: ANN401 - whatever the service's body was
        """Return the body of the last answer that confirmed a copy."""
        with self._changed:
            return self.tally.response

    def pending_copies(self) -> int:
        """Return how many confirmations are missing."""
        with self._changed:
            return self.tally.missing()

    def pending_classes(self) -> tuple[str, ...]:
        """Return the storage classes that want more copies."""
        with self._changed:
            return self.tally.pending_classes()

    def satisfied_classes(self) -> list[str]:
        """Return the wanted storage classes that have enough copies."""
        with self._changed:
            return self.tally.satisfied_classes()

    def get_next_task(self) -> tuple[WritableService, str | None]:
        """Wait until another service is needed, and return it.

        Raises:
            queue.Empty: Enough is confirmed, or no service is left to ask.
        """
        with self._changed:
            while (missing := self.tally.missing()) > 0:
                if len(self._under_way) >= missing:
                    self._changed.wait()
                elif (task := self._take()) is not None:
                    return task
            raise queue.Empty

    def get_task_nowait(self) -> tuple[WritableService, str | None]:
        """Return a service that is needed beside those under way.

        Raises:
            queue.Empty: None is needed, or none is left to ask.
        """
        with self._changed:
            while len(self._under_way) < self.tally.missing():
                if (task := self._take()) is not None:
                    return task
            raise queue.Empty

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
        """Note that a try succeeded; tries that this made superfluous are cancelled."""
        with self._changed:
            self._end(service)
            if confirmation.classes is None and self.tally.is_tracking_classes:
                _log.info("service %s confirms no storage classes", service_root)
            self.tally.add(confirmation, service_root, response)
            superfluous = [] if self.tally.missing() else list(self._under_way)
            self._changed.notify_all()
        for each in superfluous:
            if isinstance(each, CancellableService):
                each.cancel()

    def write_fail(self, service: WritableService) -> None:
        """Note that a try failed, so another service is needed."""
        with self._changed:
            self._end(service)
            self._changed.notify_all()

    def abandon(self, service: WritableService) -> None:
        """End a try whose worker ends, unless it has ended; the other workers go on without it."""
        with self._changed:
            self._end(service)
            self._changed.notify_all()

    def _end(self, service: WritableService) -> None:
        # By identity: a stand-in may compare equal to others. Without an iterator: this must
        # work where there is no memory for one.
        at = len(self._under_way)
        while at:
            at -= 1
            if self._under_way[at] is service:
                del self._under_way[at]
                return
