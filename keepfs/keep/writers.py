"""Writers: threads that store one block at several services, and never at too many.

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

from keepfs.keep.outcome import Confirmation
from keepfs.keep.timeouts import Timeouts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Buffer

_log = logging.getLogger(__name__)

_DESIRED_REPLICAS = "X-Keep-Desired-Replicas"
_STORAGE_CLASSES = "X-Keep-Storage-Classes"


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
                if len(self._under_way) < missing:
                    task = self.get_nowait()
                    if not task[0].finished():
                        self._under_way.append(task[0])
                        return task
                else:
                    self._changed.wait()
            raise queue.Empty

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

    def _end(self, service: WritableService) -> None:
        # By identity: a stand-in may compare equal to others.
        at = next((i for i, each in enumerate(self._under_way) if each is service), None)
        if at is not None:
            del self._under_way[at]


class KeepWriterThread(threading.Thread):
    """Stores a block at one service after another, as the queue asks for them.

    Args:
        queue: Where the services come from.
        data: The block.
        data_hash: Its digest, or its locator.
        timeout: How patient to be with each.
    """

    class TaskFailed(RuntimeError):  # noqa: N818 - the SDK's name
        """A service didn't store the block."""

    def __init__(
        self,
        queue: KeepWriterQueue,
        data: Buffer | str,
        data_hash: str,
        timeout: Timeouts | float | tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(daemon=True)
        self.queue = queue
        self.data = data
        self.data_hash = data_hash
        self.timeout = Timeouts() if timeout is None else timeout

    def run(self) -> None:
        """Work until nothing more is needed, or nobody is left."""
        while True:
            try:
                service, root = self.queue.get_next_task()
            except queue.Empty:
                return
            try:
                confirmation, response = self.do_task(service, root)
            except self.TaskFailed:
                self.queue.write_fail(service)
            except Exception:  # noqa: BLE001 - of a stand-in, or a bug
                # A bug, or a stand-in that raises: the others shall not wait for it.
                _log.exception("storing %s at %s failed unexpectedly", self.data_hash[:32], root)
                self.queue.write_fail(service)
            else:
                self.queue.write_success(service, root, confirmation, response)

    def do_task(
        self, service: WritableService, service_root: str | None
    ) -> tuple[Confirmation, object]:
        """Store the block at one service.

        Raises:
            TaskFailed: It didn't.
        """
        headers = {_DESIRED_REPLICAS: str(max(1, self.queue.pending_copies()))}
        if classes := self.queue.pending_classes():
            headers[_STORAGE_CLASSES] = ", ".join(classes)
        if not service.put(self.data_hash, self.data, timeout=self.timeout, headers=headers):
            raise self.TaskFailed(f"{self.data_hash[:32]} isn't stored at {service_root}")
        result = service.last_result()
        answer: Mapping[str, str] = {
            name.lower(): value for name, value in result["headers"].items()
        }
        return Confirmation.of_headers(answer), result["body"]


class KeepWriterThreadPool:
    """Stores one block, in one round, with as many threads as copies are missing.

    The round's first thread is the caller's own, in `join`. Patching
    methods of the queue and the threads through `KeepClient` works; to have
    other classes, replace this one.

    Args:
        data: The block.
        data_hash: Its digest, or its locator.
        copies: How many are wanted.
        max_service_replicas: How many one service makes of one request; None
            for any number, and then one service is asked at a time.
        timeout: How patient to be with each service.
        classes: Wanted storage classes.
        tally: Carried on from an earlier round, instead of copies and classes.
    """

    def __init__(
        self,
        data: Buffer | str,
        data_hash: str,
        copies: int,
        max_service_replicas: int | None,
        timeout: Timeouts | float | tuple[float, ...] | None = None,
        classes: Iterable[str] = (),
        tally: Tally | None = None,
    ) -> None:
        self.total_task_nr = 0
        self.queue = KeepWriterQueue(copies, classes, tally)
        missing = self.queue.pending_copies()
        threads = 1
        if max_service_replicas:
            threads = max(1, -(-missing // max_service_replicas))
        self.workers = [
            KeepWriterThread(self.queue, data, data_hash, timeout) for _ in range(threads)
        ]

    def add_task(self, ks: WritableService, service_root: str | None) -> None:
        """Add a service; those added first are asked first."""
        self.queue.put((ks, service_root))
        self.total_task_nr += 1

    def done(self) -> tuple[int, list[str]]:
        """Return the confirmed copies, and the storage classes that have enough."""
        return self.queue.successful_copies, self.queue.satisfied_classes()

    def join(self) -> None:
        """Do the work, and return when it is done. Blocks."""
        own, *others = self.workers
        # Threads without a service to begin with would only be started to end.
        others = others[: max(0, self.total_task_nr - 1)]
        for worker in others:
            worker.start()
        own.run()
        for worker in others:
            worker.join()

    def response(self) -> Any:  # noqa: ANN401 - whatever the service's body was
        """Return the body of the last answer that confirmed a copy."""
        return self.queue.response
