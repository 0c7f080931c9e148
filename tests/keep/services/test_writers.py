"""Writers: exactly the wanted copies are stored, with any failures and any number of threads."""

from __future__ import annotations

import threading
from queue import Empty
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfs.keep import KeepClient
from keepfs.keep.services.outcome import Confirmation
from keepfs.keep.services.writer_queue import KeepWriterQueue, Tally
from keepfs.keep.services.writers import KeepWriterThread, KeepWriterThreadPool
from keepfs.keep.threads import NoThreadError
from tests.fakes.threads import Running, wait_for, wait_until

DIGEST = "acbd18db4cc2f85cedef654fccc4a4d8"
#: What a stand-in says it confirms: replicas, and classes if it knows any.
GOOD = {"X-Keep-Replicas-Stored": "1"}


class StandIn:
    """A service that does as it is told; the duck type is that of the SDK's tests.

    Args:
        headers: Of its answer; None makes it fail.
        error: Raised instead.
        gate: Waited for before it answers.
        under_way: Counts the tries under way, and the most there ever were.
    """

    def __init__(
        self,
        headers: dict[str, str] | None = None,
        error: Exception | None = None,
        gate: threading.Event | None = None,
        under_way: Gauge | None = None,
    ) -> None:
        self.calls: list[dict[str, Any]] = []
        self.begun = threading.Event()
        self.is_finished = False
        self._headers = headers
        self._error = error
        self._gate = gate
        self._under_way = under_way or Gauge()

    def put(self, hash_s: str, body: Any, timeout: Any, headers: Any) -> bool:  # noqa: ANN401 - a fake
        with self._under_way:
            self.calls.append({"hash": hash_s, "body": body, "timeout": timeout, **headers})
            self.begun.set()
            if self._gate is not None:
                wait_for(self._gate)
            if self._error is not None:
                raise self._error
            return self._headers is not None

    def last_result(self) -> dict[str, Any]:
        if self._headers is None:
            return {"status_code": 500, "body": "didn't succeed"}
        return {"status_code": 200, "headers": self._headers, "body": "foobar"}

    def finished(self) -> bool:
        return self.is_finished


class Answered:
    """A request whose answer is there already."""

    def __init__(self, *, is_stored: bool) -> None:
        self._is_stored = is_stored

    def fileno(self) -> None:
        return None

    def patience(self) -> float:
        return 1.0

    def finish(self) -> bool:
        return self._is_stored


class Sharing(StandIn):
    """A service that is sent a block at once; it raises as it is sent."""

    def sends_at_once(self, size: int) -> bool:
        return size == 3

    def begin_put(self, hash_s: str, body: Any, timeout: Any, headers: Any) -> Answered:  # noqa: ANN401 - a fake
        return Answered(is_stored=self.put(hash_s, body, timeout, headers))


class Gauge:
    """Counts who is inside, and the most there ever were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1


def pool_of(
    *services: StandIn,
    copies: int = 1,
    max_service_replicas: int | None = 1,
    classes: tuple[str, ...] = (),
    tally: Tally | None = None,
) -> KeepWriterThreadPool:
    """Make a pool that has these services to ask, and do its work."""
    pool = KeepWriterThreadPool(
        data=b"foo",
        data_hash=f"{DIGEST}+3",
        copies=copies,
        max_service_replicas=max_service_replicas,
        classes=classes,
        tally=tally,
    )
    for number, service in enumerate(services):
        pool.add_task(service, f"http://{number}/")
    pool.join()
    return pool


def asked(*services: StandIn) -> list[int]:
    """Count each service's PUTs."""
    return [len(service.calls) for service in services]


# --- the SDK's four scenarios, for one thread and for three ---


@pytest.mark.parametrize(
    ("kind", "max_service_replicas"),
    [(StandIn, 1), (StandIn, 3), (Sharing, 1)],
    ids=["three threads", "one thread", "one thread for three"],
)
class TestThreeCopies:
    def test_services_that_succeed_store_exactly_what_is_wanted(
        self, kind: type[StandIn], max_service_replicas: int
    ) -> None:
        services = [kind(GOOD) for _ in range(10)]

        pool = pool_of(*services, copies=3, max_service_replicas=max_service_replicas)

        assert pool.done() == (3, [])
        assert asked(*services) == [1] * 3 + [0] * 7

    def test_each_failure_is_followed_by_one_further_service(
        self, kind: type[StandIn], max_service_replicas: int
    ) -> None:
        services = [kind() for _ in range(5)] + [kind(GOOD) for _ in range(5)]

        pool = pool_of(*services, copies=3, max_service_replicas=max_service_replicas)

        assert pool.done() == (3, [])
        assert asked(*services) == [1] * 8 + [0] * 2

    def test_errors_are_failures(
        self,
        kind: type[StandIn],
        max_service_replicas: int,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        services = [kind(error=ValueError("broken")) for _ in range(5)]
        services += [kind(GOOD) for _ in range(5)]

        pool = pool_of(*services, copies=3, max_service_replicas=max_service_replicas)

        assert pool.done() == (3, [])
        assert asked(*services) == [1] * 8 + [0] * 2
        assert caplog.text.count("failed unexpectedly") == 5

    def test_with_too_few_that_succeed_fewer_are_confirmed(
        self, kind: type[StandIn], max_service_replicas: int
    ) -> None:
        services = [kind() for _ in range(8)] + [kind(GOOD) for _ in range(2)]

        pool = pool_of(*services, copies=3, max_service_replicas=max_service_replicas)

        assert pool.done() == (2, [])
        assert asked(*services) == [1] * 10


# --- how many at once ---


@pytest.mark.parametrize(
    ("copies", "max_service_replicas", "threads"),
    [(1, 1, 1), (3, 1, 3), (3, 2, 2), (4, 2, 2), (3, 3, 1), (3, 5, 1), (3, None, 1), (3, 0, 1)],
)
def test_there_are_as_many_threads_as_the_missing_copies_take(
    copies: int, max_service_replicas: int | None, threads: int
) -> None:
    pool = KeepWriterThreadPool(
        data=b"foo", data_hash=DIGEST, copies=copies, max_service_replicas=max_service_replicas
    )

    assert pool.threads == threads


def test_copies_that_were_confirmed_before_need_no_threads() -> None:
    tally = Tally(3)
    tally.add(Confirmation(2, None), "http://before/", "x")

    pool = KeepWriterThreadPool(b"foo", DIGEST, 3, 1, tally=tally)

    assert pool.threads == 1


def test_a_success_starts_no_other_while_one_is_under_way() -> None:
    gate = threading.Event()
    slow, quick, third = StandIn(GOOD, gate=gate), StandIn(GOOD), StandIn(GOOD)

    running = Running(lambda: pool_of(slow, quick, third, copies=2))
    wait_for(slow.begun)
    wait_for(quick.begun)
    gate.set()
    pool = running.result()

    assert pool.done() == (2, [])
    assert asked(slow, quick, third) == [1, 1, 0]


def test_a_failure_starts_the_next_though_another_is_under_way() -> None:
    gate = threading.Event()
    slow, failing, third = StandIn(GOOD, gate=gate), StandIn(), StandIn(GOOD)

    running = Running(lambda: pool_of(slow, failing, third, copies=2))
    wait_for(third.begun)
    gate.set()

    assert running.result().done() == (2, [])


def test_superfluous_requests_are_cancelled() -> None:
    cancelled = threading.Event()

    class Cancellable(StandIn):
        def cancel(self) -> None:
            cancelled.set()

    slow = Cancellable(gate=cancelled)
    gate = threading.Event()
    double = StandIn({"X-Keep-Replicas-Stored": "2"}, gate=gate)

    running = Running(lambda: pool_of(slow, double, copies=2))
    wait_for(slow.begun)
    wait_for(double.begun)
    gate.set()
    pool = running.result()

    assert cancelled.is_set()
    assert pool.done() == (2, [])


def test_a_service_that_is_finished_is_passed_over() -> None:
    done, fresh = StandIn(GOOD), StandIn(GOOD)
    done.is_finished = True

    pool_of(done, fresh)

    assert asked(done, fresh) == [0, 1]


def test_without_services_nothing_is_stored() -> None:
    assert pool_of(copies=2).done() == (0, [])


def test_a_thread_that_cannot_be_started_does_not_keep_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed: list[KeepWriterThread] = []  # as `threading` lists one that does not begin

    def refuse(thread: KeepWriterThread) -> None:
        listed.append(thread)
        raise NoThreadError("it does not begin")

    monkeypatch.setattr(KeepWriterThread, "start", refuse)

    assert pool_of(StandIn(GOOD), StandIn(GOOD), copies=2).done() == (2, [])
    assert [thread.data for thread in listed] == [b""]


# --- what goes with a request ---


def test_a_request_has_the_block_and_the_missing_copies() -> None:
    first, second = StandIn(GOOD), StandIn(GOOD)

    pool_of(first, second, copies=2, max_service_replicas=None)

    assert first.calls[0]["hash"] == f"{DIGEST}+3"
    assert first.calls[0]["body"] == b"foo"
    assert first.calls[0]["X-Keep-Desired-Replicas"] == "2"
    assert second.calls[0]["X-Keep-Desired-Replicas"] == "1"
    assert "X-Keep-Storage-Classes" not in first.calls[0]


def test_later_requests_name_the_pending_classes() -> None:
    first = StandIn({**GOOD, "X-Keep-Storage-Classes-Confirmed": "b=1"})
    second = StandIn({**GOOD, "X-Keep-Storage-Classes-Confirmed": "c=1, a=1"})

    pool_of(first, second, classes=("c", "b", "a"), max_service_replicas=None)

    assert first.calls[0]["X-Keep-Storage-Classes"] == "a, b, c"
    assert second.calls[0]["X-Keep-Storage-Classes"] == "a, c"


def test_the_answer_is_the_last_that_confirmed() -> None:
    pool = pool_of(StandIn(GOOD))

    assert pool.response() == "foobar"
    assert pool.queue.response == "foobar"


# --- classes: copies/classes/answers and the requests they take ---


def answer(replicas: int, classes: str | None) -> StandIn:
    """Make a service that confirms this."""
    headers = {"X-Keep-Replicas-Stored": str(replicas)}
    if classes is not None:
        headers["X-Keep-Storage-Classes-Confirmed"] = classes
    return StandIn(headers)


@pytest.mark.parametrize(
    ("copies", "classes", "replicas", "confirmed", "requests"),
    [
        (1, ("foo",), 1, "foo=1", 1),
        (2, ("foo",), 2, "foo=2", 1),
        (2, ("foo",), 1, "foo=1", 2),
        (1, ("foo", "bar"), 1, "foo=1, bar=1", 1),
        (2, ("foo",), 1, None, 2),
        (1, ("foo",), 1, "foo=1,,what,", 1),
        (1, ("foo",), 1, "foo=x", 1),
        (1, ("foo",), 1, " foo = 1 ", 1),
        (1, (), 1, "bar=1", 1),
    ],
)
def test_the_confirmed_copies_determine_how_many_services_are_asked(
    copies: int, classes: tuple[str, ...], replicas: int, confirmed: str | None, requests: int
) -> None:
    services = [answer(replicas, confirmed) for _ in range(3)]

    pool = pool_of(*services, copies=copies, classes=classes, max_service_replicas=None)

    assert sum(asked(*services)) == requests
    assert pool.queue.pending_copies() == 0


@pytest.mark.parametrize(
    ("copies", "classes", "confirmed"),
    [(1, ("foo",), "bar=1"), (1, ("foo",), ""), (3, ("foo", "bar"), "bar=2, foo=1")],
)
def test_storage_classes_that_no_service_confirms_are_never_satisfied(
    copies: int, classes: tuple[str, ...], confirmed: str
) -> None:
    services = [answer(1, confirmed) for _ in range(2)]

    pool = pool_of(*services, copies=copies, classes=classes)

    assert sum(asked(*services)) == 2
    assert pool.queue.pending_copies() > 0


def test_satisfied_classes_are_reported() -> None:
    pool = pool_of(answer(1, "b=1, a=1"), classes=("a", "b"))

    assert pool.done() == (1, ["a", "b"])
    assert pool.queue.satisfied_classes() == ["a", "b"]


@pytest.mark.parametrize(
    ("headers", "confirmation"),
    [
        ({}, Confirmation(1, None)),
        ({"x-keep-replicas-stored": "3"}, Confirmation(3, None)),
        ({"x-keep-replicas-stored": "many"}, Confirmation(1, None)),
        ({"x-keep-replicas-stored": "-2"}, Confirmation(0, None)),
        ({"x-keep-storage-classes-confirmed": ""}, Confirmation(1, {})),
        ({"x-keep-storage-classes-confirmed": "a=1, a=2"}, Confirmation(1, {"a": 3})),
        ({"x-keep-storage-classes-confirmed": "a=1, b=x"}, Confirmation(1, None)),
    ],
)
def test_a_confirmation_is_read_from_an_answers_headers(
    headers: dict[str, str], confirmation: Confirmation
) -> None:
    assert Confirmation.of_headers(headers) == confirmation


# --- properties ---

OUTCOMES = st.lists(
    st.one_of(st.none(), st.just(-1), st.integers(0, 3)), max_size=12
)  # fails, raises, or confirms so many copies


@given(
    kind=st.sampled_from([StandIn, Sharing]),
    outcomes=OUTCOMES,
    copies=st.integers(1, 5),
    per_service=st.sampled_from([None, 1, 2]),
)
def test_tries_under_way_never_exceed_the_confirmations_that_are_missing(
    kind: type[StandIn], outcomes: list[int | None], copies: int, per_service: int | None
) -> None:
    gauge = Gauge()
    services = [
        kind(
            None if outcome is None or outcome < 0 else {"X-Keep-Replicas-Stored": str(outcome)},
            error=RuntimeError("broken") if outcome == -1 else None,
            under_way=gauge,
        )
        for outcome in outcomes
    ]

    done, _ = pool_of(*services, copies=copies, max_service_replicas=per_service).done()

    assert gauge.most <= copies
    possible = sum(outcome for outcome in outcomes if outcome and outcome > 0)
    assert done >= copies or done == possible
    if done < copies:
        assert asked(*services) == [1] * len(services)
    # With one copy a service nothing is stored beyond what is wanted.
    if all(outcome is None or outcome <= 1 for outcome in outcomes):
        assert done == min(copies, possible)


@given(
    copies=st.integers(1, 4),
    classes=st.sets(st.sampled_from("abc")),
    confirmations=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3)) | st.none(),
        ),
        max_size=6,
    ),
)
def test_nothing_is_missing_exactly_when_everything_wanted_is_confirmed(
    copies: int,
    classes: set[str],
    confirmations: list[tuple[int, dict[str, int] | None]],
) -> None:
    tally = Tally(copies, classes)

    for replicas, by_class in confirmations:
        tally.add(Confirmation(replicas, by_class), None, None)

    tracked = all(by_class is not None for _, by_class in confirmations)
    counts = [sum(replicas for replicas, _ in confirmations)]
    if tracked:
        counts += [sum((it or {}).get(name, 0) for _, it in confirmations) for name in classes]
    assert tally.missing() == max(0, copies - min(counts))
    assert bool(tally.pending_classes()) <= bool(tally.missing())


# --- the SDK's shapes ---


def test_a_thread_may_be_used_by_itself() -> None:
    writers = KeepWriterQueue(1)
    service = StandIn(GOOD)
    writers.put((service, "http://a/"))

    thread = KeepWriterThread(writers, b"foo", DIGEST, timeout=(1, 2, 3))
    thread.start()
    thread.join(20)

    assert writers.successful_copies == 1
    assert service.calls[0]["timeout"] == (1, 2, 3)


def test_a_task_that_fails_raises() -> None:
    thread = KeepWriterThread(KeepWriterQueue(1), b"foo", DIGEST)

    with pytest.raises(KeepClient.KeepWriterThread.TaskFailed, match="http://a/"):
        thread.do_task(StandIn(), "http://a/")


def test_the_nested_names_are_these_classes() -> None:
    assert KeepClient.KeepWriterQueue is KeepWriterQueue
    assert KeepClient.KeepWriterThread is KeepWriterThread
    assert KeepClient.KeepWriterThreadPool is KeepWriterThreadPool


class KillsThreads(StandIn):
    """A service whose `put` ends any thread but the caller's own."""

    def put(self, hash_s: str, body: Any, timeout: Any, headers: Any) -> bool:  # noqa: ANN401 - a fake
        if isinstance(threading.current_thread(), KeepWriterThread):
            self.begun.set()
            raise SystemExit  # as a MemoryError that no handler has memory for
        return super().put(hash_s, body, timeout, headers)


# The thread is meant to die.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_in_a_try_is_not_waited_for() -> None:
    services = [KillsThreads(GOOD) for _ in range(4)]
    pool = KeepWriterThreadPool(b"foo", DIGEST, 2, 1)
    for number, each in enumerate(services):
        pool.add_task(each, str(number))

    pool.join()

    assert pool.done() == (2, [])
    assert pool.queue._under_way == []  # noqa: SLF001 - else later callers wait for ever


def test_where_a_thread_cannot_start_the_others_store_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: KeepWriterThread) -> None:
        raise SystemError("returned NULL without setting an exception")  # as CPython at its limit

    monkeypatch.setattr(KeepWriterThread, "start", fail)
    pool = KeepWriterThreadPool(b"foo", DIGEST, 2, 1)
    for number in range(2):
        pool.add_task(StandIn(GOOD), str(number))

    pool.join()

    assert pool.done() == (2, [])


class Cancellable(StandIn):
    """A service that notes that its request was ended."""

    is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


def test_while_copies_are_missing_nothing_is_cancelled() -> None:
    queue = KeepWriterQueue(2)
    first, second = Cancellable(), Cancellable()
    for service in (first, second):
        queue.put((service, None))
        queue.get_task_nowait()

    queue.write_success(first, "http://a/", Confirmation(1, None), "body")

    assert not second.is_cancelled
    assert not first.is_cancelled


def under_way(queue: KeepWriterQueue, tries: int, services: int) -> list[StandIn]:
    """Fill a queue with services, of which the first are being tried."""
    made = [StandIn(GOOD) for _ in range(services)]
    for number, service in enumerate(made):
        queue.put((service, f"http://{number}/"))
    for _ in range(tries):
        queue.get_task_nowait()
    return made


def test_a_silent_service_is_replaced_by_the_next_that_is_not_shunned() -> None:
    queue = KeepWriterQueue(1)
    silent, *_ = under_way(queue, 1, 4)

    assert queue.note_silent(silent, {"http://0/", "http://1/"})
    assert queue.get_task_nowait()[1] == "http://2/"
    assert [root for _, root in queue.queue] == ["http://3/", "http://1/"]


def test_a_silent_service_is_waited_for_if_all_others_are_shunned() -> None:
    queue = KeepWriterQueue(1)
    silent, *_ = under_way(queue, 1, 3)

    assert not queue.note_silent(silent, {"http://0/", "http://1/", "http://2/"})
    with pytest.raises(Empty):
        queue.get_task_nowait()


def test_each_silent_service_is_replaced_though_one_thread_waits_for_work() -> None:
    queue = KeepWriterQueue(2)
    silent = under_way(queue, 2, 4)[:2]
    thread = KeepWriterThread(queue, b"foo", DIGEST)
    thread.start()
    wait_until(lambda: queue._idle == 1)  # noqa: SLF001 - nothing public tells

    with queue._changed:  # noqa: SLF001 - the thread that waits can't go on
        needed = [queue.note_silent(service, ()) for service in silent]

    assert needed == [False, True]
    thread.join()


def test_if_no_thread_was_started_for_a_silent_service_it_is_reported_again() -> None:
    queue = KeepWriterQueue(1)
    silent, *_ = under_way(queue, 1, 2)

    assert queue.note_silent(silent, ())
    assert queue.note_silent(silent, ())
    queue.get_task_nowait()
    assert not queue.note_silent(silent, ())


def test_the_services_that_confirmed_are_named_where_they_are_known() -> None:
    queue = KeepWriterQueue(3)
    for root in ("http://a/", None, "http://b/"):
        queue.write_success(StandIn(), root, Confirmation(1, None), None)

    assert queue.tally.roots == ["http://a/", "http://b/"]


def test_copies_are_missing_though_a_class_has_enough() -> None:
    tally = Tally(2, ["fast"])
    tally.add(Confirmation(1, {"fast": 2}), None, None)

    assert tally.missing() == 1


def test_a_service_that_confirms_no_classes_is_logged_where_some_are_wanted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    for root, classes, confirmed in (
        ("http://a/", ["fast"], {"fast": 1}),
        ("http://b/", [], None),
        ("http://c/", ["fast"], None),
    ):
        queue = KeepWriterQueue(2, classes)
        queue.write_success(StandIn(), root, Confirmation(1, confirmed), None)

    assert caplog.messages == ["service http://c/ confirms no storage classes"]
