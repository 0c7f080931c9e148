"""The watchdog, over a real event loop that is blocked and requests that overstay."""

from __future__ import annotations

import logging
import threading

import pytest
import trio
import trio.testing

from keepfs.fs.requests import Requests
from keepfs.mount.watchdog import Watchdog
from tests.messages.provoking import assert_shows

_PATIENCE = 60.0


class _Noticed(logging.Handler):
    """Keeps the messages of the watchdog; wakes those that wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.stuck, self.over = threading.Event(), threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        (self.stuck if "STUCK" in self.messages[-1] else self.over).set()


@pytest.fixture
def noticed() -> _Noticed:
    return _Noticed()


def run(watchdog: Watchdog, noticed: _Noticed, body: object) -> None:
    """Run an async function beside a watchdog."""
    assert callable(body)
    log = logging.getLogger("keepfs.mount.watchdog")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watchdog.run)
            await trio.testing.wait_all_tasks_blocked()
            await body()
            nursery.cancel_scope.cancel()

    log.addHandler(noticed)
    try:
        trio.run(main)
    finally:
        log.removeHandler(noticed)


def test_a_blocked_loop_is_dumped_once_with_tasks_and_threads(noticed: _Noticed) -> None:
    watchdog = Watchdog(Requests(600.0), limit=0.2, interval=0.05)
    secret = "v2/the-token"  # noqa: S105 - to be looked for

    async def block() -> None:
        value = secret  # a local variable of a frame in the dump
        assert noticed.stuck.wait(_PATIENCE)  # blocks the loop
        assert watchdog.loop_stuck() >= 0.0
        assert await trio.to_thread.run_sync(noticed.over.wait, _PATIENCE)
        assert value

    run(watchdog, noticed, block)

    dump, over = noticed.messages
    assert "the event loop has not run for" in dump
    assert "every task:\ntask " in dump
    assert "test_watchdog.py" in dump.partition("every thread:")[2]
    assert "keepfs watchdog" in dump  # the thread itself
    assert secret not in dump
    assert_shows(dump, "mount-stuck")
    assert_shows(over, "mount-answers-again")


def test_a_request_past_its_deadline_is_reported(noticed: _Noticed) -> None:
    requests = Requests(0.05)  # no watch gives it up
    watchdog = Watchdog(requests, limit=0.2, interval=0.05)

    async def overstay() -> None:
        answered = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(requests.answer, "read", answered.wait(), 0)
            assert await trio.to_thread.run_sync(noticed.stuck.wait, _PATIENCE)
            answered.set()

    run(watchdog, noticed, overstay)

    assert "a read is " in noticed.messages[0]
    assert "past its deadline" in noticed.messages[0]


def test_a_request_within_its_deadline_is_not(noticed: _Noticed) -> None:
    requests = Requests(600.0)
    turns: list[None] = []
    watchdog = Watchdog(requests, lambda: turns.append(None), limit=0.2, interval=0.05)

    async def wait() -> None:
        answered = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(requests.answer, "read", answered.wait(), 0)
            await trio.sleep(0.5)
            answered.set()

    run(watchdog, noticed, wait)

    assert noticed.messages == []
    assert turns


def test_the_limit_is_half_of_the_service_managers(
    noticed: _Noticed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    watchdog = Watchdog(Requests(600.0))

    async def block() -> None:
        assert noticed.stuck.wait(_PATIENCE)

    run(watchdog, noticed, block)

    assert "WATCHDOG=1 is withheld" in noticed.messages[0]
