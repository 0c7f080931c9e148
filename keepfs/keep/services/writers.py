"""Writers: threads that store one block at several services, and never at too many.

With open connections a small block needs one thread only: the thread sends it to all
needed services before it waits for an answer. The queue decides which service is
next, and whether one is needed.

A write is hedged: if a service is silent, the next one that is not known to be silent is
used too. The first confirmations win; the other exchanges are cancelled.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import queue
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from keepfs.keep.http.pace import Watch
from keepfs.keep.http.timeouts import Timeouts
from keepfs.keep.services.outcome import Confirmation
from keepfs.keep.services.writer_queue import KeepWriterQueue
from keepfs.keep.threads import Thread
from keepfs.messages import of_commands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from typing_extensions import Buffer

    from keepfs.keep.http.exchange import Exchange
    from keepfs.keep.services.sluggish import Sluggish
    from keepfs.keep.services.writer_queue import Tally, WritableService

_log = logging.getLogger(__name__)

_DESIRED_REPLICAS = "X-Keep-Desired-Replicas"
_STORAGE_CLASSES = "X-Keep-Storage-Classes"
#: Seconds for the rest of an answer to a PUT that has begun to arrive: it is a few hundred
#: bytes, which usually arrive together.
_REST_OF_ANSWER = 3.0


class SharingService(Protocol):
    """A service whose PUT can be sent now and its answer awaited later."""

    def sends_at_once(self, size: int) -> bool:
        """Return whether `begin_put` sends a block of `size` bytes without blocking."""

    def begin_put(
        self,
        hash_s: str,
        body: Any,  # noqa: ANN401 - a buffer, or what the SDK's tests give
        timeout: Any,  # noqa: ANN401 - likewise
        headers: Any,  # noqa: ANN401 - likewise
    ) -> Exchange:
        """Send a PUT of a block; don't wait for the answer."""


@runtime_checkable
class WatchableService(Protocol):
    """A service that reports the silence of its requests."""

    def watch(self, watch: Watch | None) -> None:
        """Set the callbacks for further requests; None: no callbacks."""


@dataclass(frozen=True, slots=True)
class WriteHedging:
    """How a writer acts when a service is silent.

    Attributes:
        silence: Seconds without a byte sent or received after which a service is silent.
        note: Records that the service of this root is silent, and returns whether this
            thread must use the next service too.
        add_worker: Starts another thread that uses the next service.
    """

    silence: float
    note: Callable[[WritableService, str | None], bool]
    add_worker: Callable[[], bool]


class KeepWriterThread(Thread):
    """Stores a block at one service after another, as the queue provides them.

    Args:
        queue: The services.
        data: The block.
        data_hash: Its digest or locator.
        timeout: The timeouts of each request.

    Attributes:
        hedging: What to do about silent services; None: wait for them until the timeout.
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
        self.hedging: WriteHedging | None = None

    def run(self) -> None:
        """Store the block until enough copies are confirmed or no service is left.

        Even after an exception it leaves no try in progress: other threads would wait for it.
        """
        while True:
            try:
                task = self.queue.get_next_task()
            except queue.Empty:
                return
            try:
                service, root = task
                with _Judging(self, service, root):
                    self.queue.write_success(service, root, *self.do_task(service, root))
            finally:  # `_Judging` itself may fail for lack of memory
                self.queue.abandon(task[0])

    def run_for_all(self) -> None:
        """Do the work of one thread per service in this thread: send all, then poll for answers.

        All services must be `SharingService`s. One that stalls in the middle of its answer
        delays the others for 3 s. One that replaces a silent one delays them for the time of
        its connect.
        """
        under_way: list[_Try] = []
        while True:
            self._note_silent(under_way)
            under_way += self._begin_tries()
            if not under_way:
                return
            for each, is_readable in _ended(under_way):
                under_way.remove(each)
                service, root = each.service, each.root
                with _Judging(self, service, root):
                    if is_readable and not each.begun.receive_begun(_REST_OF_ANSWER):
                        under_way.append(each)
                        continue
                    is_stored = each.begun.finish()
                    self.queue.write_success(
                        service, root, *self._result(service, root, is_stored)
                    )

    def do_task(
        self, service: WritableService, service_root: str | None
    ) -> tuple[Confirmation, object]:
        """Store the block at one service.

        Raises:
            TaskFailed: The service didn't store it.
        """
        with self._watching(service, service_root):
            is_stored = service.put(
                self.data_hash, self.data, timeout=self.timeout, headers=self._headers()
            )
        return self._result(service, service_root, is_stored)

    @contextlib.contextmanager
    def _watching(self, service: WritableService, root: str | None) -> Iterator[None]:
        """Use the next service too while this one is silent."""
        hedging = self.hedging
        if hedging is None or not isinstance(service, WatchableService):
            yield
            return

        def on_silence() -> None:
            if hedging.note(service, root):
                hedging.add_worker()

        service.watch(Watch(hedging.silence, on_silence, lambda: None))
        try:
            yield
        finally:
            service.watch(None)

    def _note_silent(self, tries: list[_Try]) -> None:
        """Let the next service be used for each silent one."""
        if self.hedging is None:
            return
        now = time.monotonic()
        for each in tries:
            if now >= each.look_at:
                each.look_at = now + self.hedging.silence
                self.hedging.note(each.service, each.root)

    def _begin_tries(self) -> Iterator[_Try]:
        """Send the block to each service that is needed now."""
        while True:
            try:
                service, root = self.queue.get_task_nowait()
            except queue.Empty:
                return
            with _Judging(self, service, root):
                begun = cast("SharingService", service).begin_put(
                    self.data_hash, self.data, timeout=self.timeout, headers=self._headers()
                )
                silence = math.inf if self.hedging is None else self.hedging.silence
                yield _Try(service, root, begun, time.monotonic() + silence)

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

    def note_failure(self, service: WritableService, root: str | None, error: Exception) -> None:
        """Record a try as failed: other threads must not wait for it."""
        if not isinstance(error, self.TaskFailed):  # of a test double, or a bug
            said = of_commands.UNEXPECTED(what=f"storing {self.data_hash[:32]} at {root}")
            _log.error("%s", said, exc_info=error)
        self.queue.write_fail(service)


class _Judging:
    """Records a try as failed if the body raises; suppresses the exception."""

    __slots__ = ("_root", "_service", "_writer")

    def __init__(
        self, writer: KeepWriterThread, service: WritableService, root: str | None
    ) -> None:
        self._writer, self._service, self._root = writer, service, root

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._writer.note_failure(self._service, self._root, error)
        return True


#: The original methods. If one was replaced, `run_for_all` would bypass the replacement.
_OURS = (KeepWriterThread.run, KeepWriterThread.do_task, KeepWriterQueue.get_next_task)
#: The longest timeout of `poll`, in milliseconds.
_LONGEST = 2**31 - 1


def _sends_at_once(service: WritableService, size: int) -> bool:
    """Return whether a service is a `SharingService` that sends a block without blocking."""
    # Not `isinstance`: with a protocol it takes 4 µs, and a small PUT has two of them.
    sends = getattr(service, "sends_at_once", None)
    return sends is not None and hasattr(service, "begin_put") and sends(size)


@dataclass(slots=True)
class _Try:
    """A block that is being stored at a service.

    Attributes:
        service: The service.
        root: Its root.
        begun: The exchange.
        look_at: When the service is silent next, on the monotonic clock, in seconds.
    """

    service: WritableService
    root: str | None
    begun: Exchange
    look_at: float


def _ended(tries: list[_Try]) -> list[tuple[_Try, bool]]:
    """Wait for answers or silence; return the tries to go on with, if any.

    The second value is whether bytes have arrived; else the try has timed out.
    """
    descriptors = [(each.begun.fileno(), each) for each in tries]
    if over := [(each, False) for descriptor, each in descriptors if descriptor is None]:
        return over
    waiting = select.poll()
    for descriptor, _ in descriptors:
        waiting.register(descriptor or 0, select.POLLIN)
    look_at = min(each.look_at for each in tries)
    patience = min(each.begun.patience() for each in tries)
    patience = max(0.0, min(patience, look_at - time.monotonic()))
    milliseconds = min(math.ceil(patience * 1000), _LONGEST)
    if answered := {descriptor for descriptor, _ in waiting.poll(milliseconds)}:
        return [(each, True) for descriptor, each in descriptors if descriptor in answered]
    return [(each, False) for each in tries if not each.begun.patience()]


class KeepWriterThreadPool:
    """Stores one block in one round, with one thread per missing copy.

    The first of these threads is the caller's own, in `join`; a small block needs no
    other. Methods of the queue and the threads may be patched through `KeepClient`; to
    use other classes, replace this class.

    Args:
        data: The block.
        data_hash: Its digest or locator.
        copies: The requested copies.
        max_service_replicas: The copies that one request makes; None for any number:
            services are then used one at a time.
        timeout: The timeouts of each request.
        classes: The requested storage classes.
        tally: The tally of an earlier round; replaces copies and classes.

    Attributes:
        silent: The roots of services that were silent, even if they answered later.
        threads: The threads that the missing copies take, with the caller's.
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
        self.silent: set[str] = set()
        self.queue = KeepWriterQueue(copies, classes, tally)
        self._silence = math.inf
        self._sluggish: Sluggish | None = None
        self._started: list[KeepWriterThread] = []
        self._own = KeepWriterThread(self.queue, data, data_hash, timeout)
        self.threads = 1
        if max_service_replicas:
            missing = self.queue.pending_copies()
            self.threads = max(1, -(-missing // max_service_replicas))

    def hedge(self, silence: float, sluggish: Sluggish) -> None:
        """Use the next service too if one is silent; else it is waited for until the timeout.

        Call it before `join`.

        Args:
            silence: Seconds without a byte sent or received after which a service is silent.
            sluggish: The services that were silent; it is updated.
        """
        self._silence, self._sluggish = silence, sluggish

    def add_task(self, ks: WritableService, service_root: str | None) -> None:
        """Append a service; services are used in the order in which they were added."""
        self.queue.put((ks, service_root))
        self.total_task_nr += 1

    def done(self) -> tuple[int, list[str]]:
        """Return the confirmed copies, and the storage classes that have enough."""
        return self.queue.successful_copies, self.queue.satisfied_classes()

    def join(self) -> None:
        """Run the round to its end. Blocks."""
        own = self._own
        # More threads than services would be useless.
        others = min(self.threads, self.total_task_nr) - 1
        if self._sluggish is not None:
            own.hedging = WriteHedging(self._silence, self._note_silent, self._add_worker)
        try:
            if others > 0 and self._needs_one_thread():
                own.run_for_all()
                return
            while others > 0 and self._add_worker():
                others -= 1
            own.run()
        finally:
            while self._started:  # a worker may start another before it ends
                self._started.pop().join()
            own.hedging = None  # breaks a cycle that would keep the block alive

    def _note_silent(self, service: WritableService, root: str | None) -> bool:
        if root is not None and self._sluggish is not None:
            self.silent.add(root)
            self._sluggish.note([root], [])
        return self.queue.note_silent(service, self._sluggish or ())

    def _add_worker(self) -> bool:
        """Start another thread; return whether that succeeded."""
        own, worker = self._own, None
        try:
            worker = KeepWriterThread(self.queue, own.data, own.data_hash, own.timeout)
            worker.hedging = own.hedging
            worker.start()
        except Exception as error:  # noqa: BLE001 - lack of memory raises several types
            # The running threads store the block at one service after another.
            _log.debug("no further thread to store in: %s", error)
            if worker is not None:
                worker.data = b""  # `threading` may list the thread for ever
            return False
        self._started.append(worker)
        return True

    def _needs_one_thread(self) -> bool:
        """Return whether the first services can all be sent the block without blocking."""
        worker, data = self._own, self._own.data
        used = (type(worker).run, type(worker).do_task, type(self.queue).get_next_task)
        if isinstance(data, str) or used != _OURS:
            return False
        size, missing = memoryview(data).nbytes, self.queue.pending_copies()
        with self.queue.mutex:
            services = [service for service, _ in itertools.islice(self.queue.queue, missing)]
        return all(_sends_at_once(it, size) for it in services)

    def response(self) -> Any:  # noqa: ANN401 - whatever the service's body was
        """Return the body of the last answer that confirmed a copy."""
        return self.queue.response
