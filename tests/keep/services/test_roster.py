"""The list of services: one request at a time, and no needless wait for it."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from keepfs.keep import Cause, NoKeepServersError
from keepfs.keep.services.discovery import Services
from keepfs.keep.services.joined import Joined, Pause
from keepfs.keep.services.roster import Defaults, Roster
from tests.fakes.clock import FakeClock
from tests.fakes.threads import PATIENCE, Running, wait_for, wait_until
from tests.keep.clusters import StandInApi
from tests.messages.provoking import assert_shows


def record(number: int) -> dict[str, Any]:
    """Announce a service."""
    return {
        "uuid": f"zzzzz-bi6l4-{number:015d}",
        "service_host": f"keep{number}",
        "service_port": 25107,
    }


def roots(services: Services | None) -> list[str]:
    """Name the services."""
    return [] if services is None else [each.root for each in services.records]


class GatedApi(StandInApi):
    """Answers when it is let."""

    def __init__(self, *lists: list[dict[str, Any]]) -> None:
        super().__init__()
        self.lists = list(lists)
        self.begun = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def execute(self) -> dict[str, Any]:
        """Wait, then answer."""
        self.begun.release()
        if not self.gate.acquire(timeout=PATIENCE):
            raise TimeoutError("the test let nobody go")
        return super().execute()


def api_of(*lists: Any) -> StandInApi:  # noqa: ANN401 - lists, or errors
    """Make a stand-in that gives these lists, one after another."""
    api = StandInApi()
    api.lists = list(lists)
    return api


def requests_under_way() -> list[threading.Thread]:
    """Return the threads that ask an API server."""
    return [each for each in threading.enumerate() if "_execute" in each.name]


def test_the_first_list_is_requested_on_first_use() -> None:
    api = api_of([record(1)])
    roster = Roster(api)
    assert roster.known() is None
    assert api.asked == 0

    assert roots(roster.current(PATIENCE)) == ["http://keep1:25107/"]
    assert roots(roster.current(0)) == ["http://keep1:25107/"]

    assert api.asked == 1


def test_concurrent_callers_share_the_request_for_the_first_list() -> None:
    api = GatedApi([record(1)])
    roster = Roster(api)

    callers = [Running(lambda: roster.current(PATIENCE)) for _ in range(20)]
    assert api.begun.acquire(timeout=PATIENCE)
    api.gate.release(20)

    assert {tuple(roots(caller.result())) for caller in callers} == {("http://keep1:25107/",)}
    assert api.asked == 1


def test_a_caller_with_a_list_does_not_wait_for_a_newer_one() -> None:
    api = GatedApi([record(1)], [record(2)])
    roster = Roster(api)
    api.gate.release()
    first = roster.current(PATIENCE)
    assert api.begun.acquire(timeout=PATIENCE)

    refresher = Running(lambda: roster.refreshed(first, PATIENCE))
    assert api.begun.acquire(timeout=PATIENCE)

    assert roster.current(0) is first  # at once, while the request is under way
    api.gate.release()
    assert roots(refresher.result()) == ["http://keep2:25107/"]


def test_a_list_that_is_already_newer_is_not_requested_again() -> None:
    api = api_of([record(1)], [record(2)], [record(3)])
    roster = Roster(api)
    first = roster.current(PATIENCE)

    second = roster.refreshed(first, PATIENCE)
    third = roster.refreshed(first, PATIENCE)

    assert third is second
    assert api.asked == 2


def test_a_list_that_cannot_be_fetched_leaves_the_known_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = api_of([record(1)], RuntimeError("down"))
    roster = Roster(api)
    first = roster.current(PATIENCE)

    assert roster.refreshed(first, PATIENCE) is first
    assert "down" in caplog.text


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("what"), Cause.OTHER),
        (ConnectionRefusedError("no"), Cause.UNREACHABLE),
        (TimeoutError("late"), Cause.TIMED_OUT),
        (NoKeepServersError("none", cause=Cause.DENIED), Cause.DENIED),
    ],
    ids=repr,
)
def test_without_a_list_the_error_has_the_reason(error: Exception, cause: Cause) -> None:
    roster = Roster(api_of(error))

    for call in (roster.current, lambda timeout: roster.refreshed(None, timeout)):
        with pytest.raises(NoKeepServersError, match=type(error).__name__) as caught:
            call(PATIENCE)

        assert caught.value.cause is cause


def test_an_error_that_has_a_status_is_judged_by_it() -> None:
    class TheirError(Exception):
        status_code = 401

    with pytest.raises(NoKeepServersError) as caught:
        Roster(api_of(TheirError())).current(PATIENCE)

    assert caught.value.cause is Cause.DENIED


def test_a_wait_for_the_first_list_ends_at_the_callers_timeout() -> None:
    api = GatedApi([record(1)])
    roster = Roster(api)

    with pytest.raises(NoKeepServersError) as caught:
        roster.current(0.01)

    assert caught.value.cause is Cause.TIMED_OUT
    api.gate.release()
    assert roots(roster.current(PATIENCE)) == ["http://keep1:25107/"]


def test_without_an_api_client_there_is_no_list() -> None:
    with pytest.raises(NoKeepServersError, match="no API client"):
        Roster(None).current(PATIENCE)


def test_a_fixed_list_is_never_refreshed() -> None:
    clock = FakeClock()
    api = api_of([record(1)])
    fixed = Services.of_uris("http://a/")
    roster = Roster(api, fixed, clock)

    clock.advance(10_000)
    roster.doubt(fixed)

    assert roster.current(0) is fixed
    assert roster.refreshed(fixed, 0) is fixed
    assert not roster.may_be_old(fixed)
    assert api.asked == 0


@pytest.mark.parametrize(
    ("age", "doubted", "asked"),
    [(1, False, 1), (599, False, 1), (601, False, 2), (29, True, 1), (31, True, 2)],
)
def test_an_old_list_is_refreshed_in_the_background(
    age: float, asked: int, *, doubted: bool
) -> None:
    clock = FakeClock()
    api = api_of([record(1)], [record(2)])
    roster = Roster(api, clock=clock)
    first = roster.current(PATIENCE)
    if doubted:
        roster.doubt(first)
    clock.advance(age)

    assert roster.current(0) is first

    if asked == 2:
        wait_until(lambda: roots(roster.known()) == ["http://keep2:25107/"])
    assert api.asked == asked


def test_a_list_may_be_old_after_a_while_or_if_there_is_a_newer_one() -> None:
    clock = FakeClock()
    roster = Roster(api_of([record(1)], [record(2)]), clock=clock)
    assert not roster.may_be_old(Services())
    first = roster.current(PATIENCE)

    assert not roster.may_be_old(first)
    clock.advance(31)
    assert roster.may_be_old(first)
    second = roster.refreshed(first, PATIENCE)
    assert roster.may_be_old(first)
    assert not roster.may_be_old(second)


def test_a_run_is_shared_only_while_it_lasts() -> None:
    runs: list[int] = []
    gate = threading.Event()

    def count() -> int:
        wait_for(gate)
        runs.append(1)
        return len(runs)

    joined = Joined(count)

    first, second = joined.start(), joined.start()
    gate.set()

    assert first is second
    assert first.wait(PATIENCE) == 1
    assert joined.start().wait(PATIENCE) == 2


# --- lists that are of no use, and API servers that are away ---

NOBODY = [
    pytest.param([], "it is empty", id="empty"),
    pytest.param([{"uuid": "x"}], "of 1 services on it, none can be asked", id="senseless"),
    pytest.param(
        [record(1) | {"service_type": "gateway:x"}], "none can be asked", id="gateways only"
    ),
]


@pytest.mark.parametrize(("useless", "why"), NOBODY)
def test_a_useless_list_leaves_the_known_one_and_is_requested_again_soon(
    useless: list[dict[str, Any]], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    api = api_of([record(1)], useless, [record(2)])
    roster = Roster(api, clock=clock)
    first = roster.current(PATIENCE)
    caplog.clear()

    assert roster.refreshed(first, PATIENCE) is first
    assert roster.refreshed(first, PATIENCE) is first
    asked = api.asked
    clock.advance(2)
    assert roots(roster.refreshed(first, PATIENCE)) == ["http://keep2:25107/"]

    assert asked == 2
    told = [line for line in caplog.messages if "going on" in line]
    assert len(told) == 1
    assert why in told[0]


@pytest.mark.parametrize(("useless", "why"), NOBODY)
def test_a_useless_first_list_is_an_error_and_is_requested_again(
    useless: list[dict[str, Any]], why: str
) -> None:
    roster = Roster(api_of(useless, [record(1)]))

    with pytest.raises(NoKeepServersError, match=why) as caught:
        roster.current(PATIENCE)
    assert caught.value.cause is Cause.UNREACHABLE
    assert roots(roster.current(PATIENCE)) == ["http://keep1:25107/"]


def test_an_unreachable_api_server_is_asked_once_a_minute_with_any_number_of_readers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    api = api_of([record(1)], RuntimeError("down"))
    roster = Roster(api, clock=clock)
    first = roster.current(PATIENCE)
    clock.advance(601)

    for _ in range(3600):  # a read a second
        roster.current(0)
        wait_until(lambda: not requests_under_way())
        assert roster.refreshed(first, PATIENCE) is first
        wait_until(lambda: not requests_under_way())
        clock.advance(1)

    assert 60 <= api.asked <= 70
    assert caplog.text.count("going on with the known Keep services") == api.asked - 1
    assert_shows(caplog.text, "service-list-old")


def test_a_pause_grows_with_each_failure_and_ends_with_a_success() -> None:
    clock = FakeClock()
    pause = Pause(clock)
    lengths = []
    for _ in range(8):
        assert pause.begin()
        assert not pause.begin()
        begun = clock.now
        while not pause.is_over():
            clock.advance(1)
        lengths.append(clock.now - begun)
    pause.begin()
    pause.end()

    assert lengths == [2, 4, 8, 16, 32, 60, 60, 60]
    assert pause.is_over()
    assert pause.begin()
    clock.advance(2)
    assert pause.is_over()


def test_a_caller_with_a_list_does_not_wait_for_a_hung_api_server() -> None:
    clock = FakeClock()
    api = GatedApi([record(1)], [record(2)])
    roster = Roster(api, clock=clock)
    api.gate.release()
    first = roster.current(PATIENCE)
    refresher = Running(lambda: roster.refreshed(first, 0.01))
    assert refresher.result() is first  # given up

    assert roster.refreshed(first, PATIENCE) is first  # at once: there is a pause
    clock.advance(31)
    assert roster.refreshed(first, PATIENCE) is first  # at once: the request is old
    api.gate.release()
    wait_until(lambda: roots(roster.known()) == ["http://keep2:25107/"])


def test_a_request_that_hangs_is_followed_by_others_up_to_a_bound() -> None:
    clock = FakeClock()
    gate = threading.Event()
    runs: list[int] = []

    def hang() -> int:
        number = len(runs)
        runs.append(number)
        wait_for(gate)
        return number

    joined = Joined(hang, clock=clock)
    started = []
    for _ in range(6):
        started.append(joined.start())
        wait_until(lambda: len(runs) == len(set(map(id, started))))
        assert joined.start() is started[-1]
        clock.advance(91)
    waiting = [Running(lambda run=run: run.wait(PATIENCE)) for run in started]  # type: ignore[misc]
    gate.set()

    assert len({id(each) for each in started}) == 3
    assert {each.result() for each in waiting} <= {0, 1, 2}
    assert joined.start().wait(PATIENCE) == 3


def test_callers_of_a_hung_request_get_the_answer_of_the_next() -> None:
    gates = [threading.Event(), threading.Event()]
    left = list(gates)

    def ask() -> int:
        gate = left.pop(0)
        wait_for(gate)
        return len(left)

    clock = FakeClock()
    joined = Joined(ask, clock=clock)
    waiting = Running(lambda: joined.start().wait(PATIENCE))
    wait_until(lambda: len(left) == 1)
    clock.advance(91)

    gates[1].set()
    assert joined.call(PATIENCE) == 0
    assert waiting.result() == 0
    gates[0].set()


def test_the_late_answer_of_a_hung_request_does_not_replace_a_newer_list() -> None:
    clock = FakeClock()
    api = GatedApi([record(1)], [record(3)], [record(2)])
    roster = Roster(api, clock=clock)
    api.gate.release()
    first = roster.current(PATIENCE)
    assert api.begun.acquire(timeout=PATIENCE)
    gates: list[threading.Semaphore] = [threading.Semaphore(0), threading.Semaphore(0)]
    answers = iter(gates)

    def execute() -> dict[str, Any]:
        gate = next(answers)
        items = [record(2)] if gate is gates[0] else [record(3)]
        api.begun.release()
        assert gate.acquire(timeout=PATIENCE)
        return {"items": items}

    api.execute = execute  # type: ignore[method-assign] # the first hangs, the second doesn't
    clock.advance(601)
    roster.current(0)
    assert api.begun.acquire(timeout=PATIENCE)
    clock.advance(91)
    later = Running(lambda: roster.refreshed(first, PATIENCE))
    assert api.begun.acquire(timeout=PATIENCE)
    gates[1].release()
    assert roots(later.result()) == ["http://keep3:25107/"]

    gates[0].release()
    wait_until(lambda: not requests_under_way())
    assert roots(roster.known()) == ["http://keep3:25107/"]


def test_closing_ends_all_waits() -> None:
    api = GatedApi([record(1)])
    roster = Roster(api)
    waiting = Running(lambda: roster.current(PATIENCE))
    assert api.begun.acquire(timeout=PATIENCE)

    roster.close()

    assert "the client is closed" in str(waiting.failure())
    with pytest.raises(NoKeepServersError, match="the client is closed"):
        roster.current(PATIENCE)
    api.gate.release()


def test_without_a_thread_the_request_fails_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    roster = Roster(api_of([record(1)]))

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(NoKeepServersError, match="can't start new thread"):
            roster.current(PATIENCE)

    assert roots(roster.current(PATIENCE)) == ["http://keep1:25107/"]


# --- defaults ---


def defaults_of(
    config: Any,  # noqa: ANN401 - what a server may say
    clock: FakeClock | None = None,
) -> tuple[Defaults, list[int]]:
    """Make the defaults of a cluster, and count how often it was asked."""
    asked: list[int] = []

    class Api(StandInApi):
        def config(self) -> Any:  # noqa: ANN401 - ditto
            asked.append(1)
            if isinstance(config, Exception):
                raise config
            return config

    return Defaults(Api(), clock), asked


def test_the_configuration_is_requested_once() -> None:
    defaults, asked = defaults_of(
        {
            "StorageClasses": {"b": {"Default": True}, "a": {"Default": True}},
            "Collections": {"DefaultReplication": 3},
        }
    )

    assert defaults.storage_classes(PATIENCE) == ("a", "b")
    assert defaults.copies(PATIENCE) == 3
    assert asked == [1]


def test_a_storage_class_without_the_key_is_not_a_default() -> None:
    defaults, _ = defaults_of(
        {"StorageClasses": {"a": {"Default": True}, "b": {"Priority": 1}, "c": None}}
    )

    assert defaults.storage_classes(PATIENCE) == ("a",)


def test_a_configuration_that_cannot_be_fetched_is_requested_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    defaults, asked = defaults_of(RuntimeError("down"), clock)

    assert defaults.storage_classes(PATIENCE) == ()
    assert defaults.copies(PATIENCE) is None  # at once
    before = list(asked)
    clock.advance(2)
    assert defaults.copies(PATIENCE) is None

    assert before == [1]
    assert asked == [1, 1]
    assert caplog.text.count("defaults are unknown: the API server gave no configuration") == 2
    assert_shows(caplog.text, "defaults-unknown")


def test_without_an_api_client_there_are_no_defaults() -> None:
    assert Defaults(None).storage_classes(0) == ()
    assert Defaults(None).copies(0) is None
