"""What a test does to a server happens, in a thread and in a process alike."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import socket
import time
from typing import TYPE_CHECKING

import pytest
import requests

from tests.keepstore import (
    Fault,
    KeepstoreControls,
    Listening,
    Settings,
    Stage,
    Volume,
    refusing_port,
    silent_port,
    start_process,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOO = "acbd18db4cc2f85cedef654fccc4a4d8"
BAR = "37b51d194a7513e45b56f6524f2d51f2"
CONFIRMED = "X-Keep-Storage-Classes-Confirmed"
STORED = "X-Keep-Replicas-Stored"
#: Seconds; what must not come is waited for that long.
SILENCE = 0.1


def in_thread() -> KeepstoreControls:
    return KeepstoreControls()


def in_process() -> KeepstoreControls:
    return start_process(KeepstoreControls)


@pytest.fixture(params=[in_thread, in_process])
def store(request: pytest.FixtureRequest) -> Iterator[KeepstoreControls]:
    start: Callable[[], KeepstoreControls] = request.param
    with start() as started:
        yield started


def get(session: requests.Session, store: KeepstoreControls, locator: str) -> requests.Response:
    return session.get(f"{store.url}/{locator}", timeout=10)


def put(
    session: requests.Session,
    store: KeepstoreControls,
    block: bytes = b"bar",
    headers: dict[str, str] | None = None,
) -> requests.Response:
    digest = hashlib.md5(block, usedforsecurity=False).hexdigest()
    return session.put(f"{store.url}/{digest}", data=block, headers=headers, timeout=10)


@pytest.mark.slow
class TestFaults:
    def test_a_script_gives_each_request_its_status(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        locator = store.store_block(b"foo")
        store.script(Fault(status=503), Fault(), Fault(status=500), method="GET")

        assert [get(session, store, locator).status_code for _ in range(4)] == [503, 200, 500, 200]
        assert put(session, store).status_code == 200

    def test_a_rule_for_one_block_spares_the_others(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        foo, bar = store.store_block(b"foo"), store.store_block(b"bar")
        store.always(Fault(status=404), target=FOO)

        assert get(session, store, foo).status_code == 404
        assert get(session, store, bar).status_code == 200
        store.clear_faults()
        assert get(session, store, foo).status_code == 200

    def test_a_put_can_be_refused_or_stored_and_denied(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        store.script(Fault(status=503), Fault(status=503, carry_out=True))

        put(session, store, b"foo")
        put(session, store, b"bar")

        assert store.blocks() == [BAR]

    def test_headers_are_dropped_and_added(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        store.script(
            Fault(drop_headers=(CONFIRMED,), headers={"X-Extra": "yes"}),
            Fault(drop_headers=(STORED,)),
            Fault(headers={STORED: "many"}),
        )

        old, without, wrong = (put(session, store).headers for _ in range(3))

        assert CONFIRMED not in old
        assert old["X-Extra"] == "yes"
        assert STORED not in without
        assert wrong[STORED] == "many"

    def test_a_put_answers_a_wrong_locator(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        store.script(Fault(body=b"0" * 32 + b"+3\n"), Fault(body=b""))

        assert put(session, store).text == "0" * 32 + "+3\n"
        assert put(session, store).text == ""
        assert store.blocks() == [BAR]

    @pytest.mark.parametrize("stage", [Stage.BEFORE_READ, Stage.BEFORE_STATUS])
    @pytest.mark.parametrize("reset", [False, True])
    def test_a_connection_closes_without_an_answer(
        self, session: requests.Session, store: KeepstoreControls, stage: Stage, *, reset: bool
    ) -> None:
        store.script(Fault(close=stage, reset=reset))

        with pytest.raises(requests.ConnectionError):
            put(session, store)

        store.wait_ended(1)
        assert store.blocks() == ([BAR] if stage is Stage.BEFORE_STATUS else [])
        assert store.log()[0].status is None

    @pytest.mark.parametrize(
        "fault",
        [
            Fault(close=Stage.BEFORE_BODY),
            Fault(close=Stage.MID_BODY),
            Fault(close_after=100_000),
            Fault(close_after=100_000, reset=True),
            Fault(length=300_000),
        ],
    )
    def test_a_body_is_cut(
        self, session: requests.Session, store: KeepstoreControls, fault: Fault
    ) -> None:
        locator = store.store_block(bytes(200_000))
        store.script(fault)

        answer = session.get(f"{store.url}/{locator}", stream=True, timeout=10)

        assert answer.status_code == 200
        with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
            _ = answer.content

    def test_a_body_is_sent_slowly(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        locator = store.store_block(bytes(2000))
        store.script(Fault(send_rate=20_000))

        began = time.monotonic()
        answer = get(session, store, locator)

        assert answer.content == bytes(2000)
        assert time.monotonic() - began >= 0.09

    def test_a_body_is_read_slowly(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        store.script(Fault(receive_rate=20_000))

        began = time.monotonic()
        answer = put(session, store, bytes(2000))

        assert answer.status_code == 200
        assert time.monotonic() - began >= 0.09

    @pytest.mark.parametrize("stage", list(Stage))
    def test_a_pause_delays_the_answer(
        self, session: requests.Session, store: KeepstoreControls, stage: Stage
    ) -> None:
        locator = store.store_block(b"foo")
        store.script(Fault(pause={stage: 0.05}))

        began = time.monotonic()
        answer = get(session, store, locator)

        assert answer.content == b"foo"
        assert time.monotonic() - began >= 0.05

    def test_an_early_refusal_leaves_the_body_unread(self, store: KeepstoreControls) -> None:
        store.script(Fault(status=503, unread=True))

        with socket.create_connection(("127.0.0.1", store.port), timeout=10) as client:
            client.sendall(b"PUT / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            answer = client.recv(65536)

        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Connection: close" in answer

    def test_100_continue_can_be_withheld(self, store: KeepstoreControls) -> None:
        store.script(Fault(no_continue=True))

        with socket.create_connection(("127.0.0.1", store.port), timeout=10) as client:
            client.sendall(f"PUT /{FOO} HTTP/1.1\r\n".encode())
            client.sendall(b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            client.settimeout(SILENCE)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.sendall(b"foo")
            client.settimeout(10)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")


class TestHolding:
    def test_held_requests_wait_for_their_release(self, store: KeepstoreControls) -> None:
        store.always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")

        with concurrent.futures.ThreadPoolExecutor() as pool:
            puts = [pool.submit(requests.put, f"{store.url}/{BAR}", "bar") for _ in range(3)]
            store.wait_held(3)
            assert store.under_way("PUT") == 3
            store.release(1)
            concurrent.futures.wait(puts, return_when=concurrent.futures.FIRST_COMPLETED)
            assert sum(each.done() for each in puts) == 1
            store.release()
            statuses = [each.result().status_code for each in puts]

        assert statuses == [200, 200, 200]
        assert store.most_under_way("PUT") == 3
        assert store.under_way("PUT") == 0

    @pytest.mark.parametrize("stage", list(Stage))
    def test_a_server_stops_although_it_stalls(self, stage: Stage) -> None:
        with contextlib.ExitStack() as exits:
            store = exits.enter_context(KeepstoreControls())
            locator = store.store_block(b"foo")
            store.always(Fault(hold=stage))
            client = exits.enter_context(socket.create_connection(("127.0.0.1", store.port)))
            client.sendall(f"GET /{locator} HTTP/1.1\r\n\r\n".encode())
            store.wait_held(1)

            began = time.monotonic()
            store.stop()

        assert time.monotonic() - began < 5


class TestJournal:
    def test_every_request_is_written_down(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        put(session, store, b"foo", {"X-Keep-Storage-Classes": "default"})
        get(session, store, FOO)

        first, second = store.log()

        assert (first.method, first.target, first.status) == ("PUT", f"/{FOO}", 200)
        assert (first.body_size, first.body_md5) == (3, FOO)
        assert first.header("x-keep-storage-classes") == "default"
        assert (second.method, second.status, second.body_size) == ("GET", 405, 0)
        assert first.connection == second.connection
        assert first.ended is not None
        assert first.began <= first.ended <= second.began
        assert store.counts() == {"PUT": 1, "GET": 1}
        store.clear_log()
        assert store.log() == []

    def test_connections_are_told_apart(self, store: KeepstoreControls) -> None:
        for _ in range(2):
            requests.get(store.url, timeout=10)

        first, second = store.log("GET")

        assert first.connection != second.connection


class TestLife:
    def test_a_server_goes_down_and_comes_back(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        locator = store.store_block(b"foo")

        store.go_down()
        with pytest.raises(requests.ConnectionError):
            get(session, store, locator)
        store.come_back()

        assert get(session, store, locator).content == b"foo"

    def test_what_is_healed_holds_no_request_that_has_met_its_fault(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        locator = store.store_block(b"foo")
        # The one is held when it is healed, the other only gets there later.
        store.script(Fault(hold=Stage.BEFORE_STATUS), method="GET")
        store.always(
            Fault(hold=Stage.BEFORE_STATUS, pause={Stage.BEFORE_READ: SILENCE}), method="GET"
        )
        with concurrent.futures.ThreadPoolExecutor() as pool:
            held = pool.submit(get, session, store, locator)
            store.wait_held(1)
            late = pool.submit(requests.get, f"{store.url}/{locator}", headers=session.headers)
            store.wait_begun(2, "GET")

            store.heal()

            assert held.result(10).content == late.result(10).content == b"foo"
        assert get(session, store, locator).content == b"foo"

    def test_connections_are_cut_and_new_ones_welcome(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        locator = store.store_block(b"foo")
        with socket.create_connection(("127.0.0.1", store.port), timeout=10) as kept:
            kept.sendall(f"GET /{locator} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert kept.recv(65536) != b""

            store.cut_connections()

            with contextlib.suppress(ConnectionResetError):
                while kept.recv(65536):
                    pass
        assert get(session, store, locator).content == b"foo"

    def test_blocks_are_judged_and_removed(self, store: KeepstoreControls) -> None:
        kept, other = (store.store_block(data)[:32] for data in (b"kept", b"other"))
        assert store.is_intact(kept)

        store.corrupt(kept)

        assert not store.is_intact(kept)
        assert store.is_intact(other)
        assert store.keep_only([kept]) == 1
        assert store.blocks() == [kept]
        assert not store.is_intact(other)

    def test_the_clock_can_be_stopped(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        locator = store.store_block(b"foo")

        store.set_clock(2**32 * 10**9)

        assert get(session, store, locator).text == "expired signature\n"

    def test_settings_change_while_it_runs(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        store.store_block(b"foo")
        store.configure(signing=False)
        store.configure_volume(read_only=True)

        assert get(session, store, f"{FOO}+3").content == b"foo"
        assert put(session, store).status_code == 507
        store.configure(max_requests=0, max_queued=0)
        assert get(session, store, f"{FOO}+3").status_code == 503
        with pytest.raises(AttributeError):
            store.configure(no_such_setting=True)

    def test_a_process_takes_what_a_thread_takes(self, session: requests.Session) -> None:
        volumes = [Volume(classes=("hot",), replication=2)]
        settings = Settings(key="another")

        with start_process(KeepstoreControls, settings=settings, volumes=volumes) as store:
            answer = put(session, store)

        assert answer.headers[STORED] == "2"
        assert answer.headers[CONFIRMED] == "hot=2"

    def test_spoilt_blocks_can_be_made(
        self, session: requests.Session, store: KeepstoreControls
    ) -> None:
        locator = store.store_block(b"foo")

        store.corrupt(FOO, -1)
        assert get(session, store, locator).status_code == 502
        assert store.content(FOO) == b"fon"
        store.resize(FOO, 0)
        assert get(session, store, locator).status_code == 502
        store.remove_block(FOO)
        assert get(session, store, locator).status_code == 404

    def test_a_small_receive_buffer_makes_a_slow_reader_felt(self) -> None:
        with (
            KeepstoreControls(listening=Listening(receive_buffer=4096)) as store,
            socket.create_connection(("127.0.0.1", store.port)) as client,
        ):
            store.always(Fault(hold=Stage.BEFORE_READ))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            client.settimeout(SILENCE)
            client.sendall(b"PUT / HTTP/1.1\r\nContent-Length: 10000000\r\n\r\n")

            with pytest.raises(TimeoutError):
                client.sendall(bytes(10_000_000))


def test_nobody_is_behind_a_refusing_port() -> None:
    with refusing_port() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_connecting_to_a_silent_port_never_ends() -> None:
    with silent_port() as port, pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), timeout=SILENCE)
