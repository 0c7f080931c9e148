"""Writers: threads that store one block at several services, and never at too many.

A small block needs one thread only, once there are connections: it is sent to
all services that are needed before anybody's answer is waited for.

Which service is asked next, and whether one is, the queue decides.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import queue
import select
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast, runtime_checkable

from keepfs.keep.http.timeouts import Timeouts
from keepfs.keep.services.outcome import Confirmation
from keepfs.keep.services.writer_queue import KeepWriterQueue
from keepfs.keep.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from typing_extensions import Buffer

    from keepfs.keep.http.exchange import Exchange
    from keepfs.keep.services.writer_queue import Tally, WritableService

_log = logging.getLogger(__name__)

_DESIRED_REPLICAS = "X-Keep-Desired-Replicas"
_STORAGE_CLASSES = "X-Keep-Storage-Classes"


@runtime_checkable
class SharingService(Protocol):
    """A service whose writer need not wait for its answer at once."""

    def sends_at_once(self, size: int) -> bool:
        """Tell whether `begin_put` sends a block of so many bytes without a wait."""

    def begin_put(
        self,
        hash_s: str,
        body: Any,  # noqa: ANN401 - a buffer, or what the SDK's tests give
        timeout: Any,  # noqa: ANN401 - ditto
        headers: Any,  # noqa: ANN401 - ditto
    ) -> Exchange:
        """Send a block, as `put`, but for the answer."""


class KeepWriterThread(Thread):
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
        """Work until nothing more is needed, or nobody is left.

        However it ends, it leaves no try under way: the other threads would wait for it.
        """
        while True:
            try:
                task = self.queue.get_next_task()
            except queue.Empty:
                return
            try:
                service, root = task
                with self._judging(service, root):
                    self.queue.write_success(service, root, *self.do_task(service, root))
            finally:  # there may be no memory even for `_judging`
                self.queue.abandon(task[0])

    def run_for_all(self) -> None:
        """Work as one thread for each service would, whose answers are awaited together.

        All services are `SharingService`s. One that begins an answer and stops in
        it holds up the others, for as long as its pace allows.
        """
        under_way: list[_Try] = []
        while True:
            under_way += self._begin_tries()
            if not under_way:
                return
            for each, is_answered in _ended(under_way):
                under_way.remove(each)
                service, root = each.service, each.root
                with self._judging(service, root):
                    is_stored = each.begun.finish(is_answered=is_answered)
                    self.queue.write_success(
                        service, root, *self._result(service, root, is_stored)
                    )

    def do_task(
        self, service: WritableService, service_root: str | None
    ) -> tuple[Confirmation, object]:
        """Store the block at one service.

        Raises:
            TaskFailed: It didn't.
        """
        is_stored = service.put(
            self.data_hash, self.data, timeout=self.timeout, headers=self._headers()
        )
        return self._result(service, service_root, is_stored)

    def _begin_tries(self) -> Iterator[_Try]:
        """Send the block to each service that is needed now."""
        while True:
            try:
                service, root = self.queue.get_task_nowait()
            except queue.Empty:
                return
            with self._judging(service, root):
                begun = cast("SharingService", service).begin_put(
                    self.data_hash, self.data, timeout=self.timeout, headers=self._headers()
                )
                yield _Try(service, root, begun)

    def _headers(self) -> dict[str, str]:
        headers = {_DESIRED_REPLICAS: str(max(1, self.queue.pending_copies()))}
        if classes := self.queue.pending_classes():
            headers[_STORAGE_CLASSES] = ", ".join(classes)
        return headers

    def _result(
        self,
        service: WritableService,
        root: str | None,
        is_stored: bool | None,  # noqa: FBT001 - what the SDK's `put` returns
    ) -> tuple[Confirmation, object]:
        if not is_stored:
            raise self.TaskFailed(f"{self.data_hash[:32]} isn't stored at {root}")
        result = service.last_result()
        answer: Mapping[str, str] = {
            name.lower(): value for name, value in result["headers"].items()
        }
        return Confirmation.of_headers(answer), result["body"]

    @contextlib.contextmanager
    def _judging(self, service: WritableService, root: str | None) -> Iterator[None]:
        """Note that a try failed, if it does."""
        try:
            yield
        except self.TaskFailed:
            self.queue.write_fail(service)
        except Exception:  # noqa: BLE001 - of a stand-in, or a bug
            # A bug, or a stand-in that raises: the others shall not wait for it.
            _log.exception("storing %s at %s failed unexpectedly", self.data_hash[:32], root)
            self.queue.write_fail(service)


#: As they are here: who replaces one wants that one called.
_OURS = (KeepWriterThread.run, KeepWriterThread.do_task, KeepWriterQueue.get_next_task)
#: Milliseconds that `poll` can wait at most.
_LONGEST = 2**31 - 1


class _Try(NamedTuple):
    """A block that is being stored at a service."""

    service: WritableService
    root: str | None
    begun: Exchange


def _ended(tries: list[_Try]) -> list[tuple[_Try, bool]]:
    """Wait for answers; return the tries that have one, or whose time is up, if any.

    With each, whether it has an answer.
    """
    if over := [(each, False) for each in tries if each.begun.fileno() is None]:
        return over
    waiting = select.poll()
    for each in tries:
        waiting.register(each.begun.fileno() or 0, select.POLLIN)
    patience = min(each.begun.patience() for each in tries)
    milliseconds = min(math.ceil(patience * 1000), _LONGEST)
    if answered := {descriptor for descriptor, _ in waiting.poll(milliseconds)}:
        return [(each, True) for each in tries if each.begun.fileno() in answered]
    return [(each, False) for each in tries if not each.begun.patience()]


class KeepWriterThreadPool:
    """Stores one block, in one round, with as many threads as copies are missing.

    The round's first thread is the caller's own, in `join`; a small block needs
    no other. Patching methods of the queue and the threads through `KeepClient` works; to have
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
        if others and self._needs_one_thread():
            own.run_for_all()
            return
        started = []
        for worker in others:
            try:
                worker.start()
            except Exception as error:  # noqa: BLE001 - for want of memory, in several ways
                # Those that run store the block at one service after another.
                _log.debug("no further thread to store in: %s", error)
                break
            started.append(worker)
        try:
            own.run()
        finally:
            for worker in started:
                worker.join()

    def _needs_one_thread(self) -> bool:
        """Tell whether the services that are asked first are sent the block without a wait."""
        worker, data = self.workers[0], self.workers[0].data
        used = (type(worker).run, type(worker).do_task, type(self.queue).get_next_task)
        if isinstance(data, str) or used != _OURS:
            return False
        size, missing = memoryview(data).nbytes, self.queue.pending_copies()
        with self.queue.mutex:
            services = [service for service, _ in itertools.islice(self.queue.queue, missing)]
        return all(isinstance(it, SharingService) and it.sends_at_once(size) for it in services)

    def response(self) -> Any:  # noqa: ANN401 - whatever the service's body was
        """Return the body of the last answer that confirmed a copy."""
        return self.queue.response
