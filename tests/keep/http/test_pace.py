"""The pace of an exchange: one that stalls, is too slow or exceeds its deadline ends."""

from __future__ import annotations

import io
import selectors
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfs.keep.http.pace import (
    CancelledError,
    Pace,
    PacedReader,
    TooSlowError,
    Watch,
)
from keepfs.keep.http.session_sockets import PacedSocket, pacing
from keepfs.keep.http.timeouts import Timeouts
from tests.fakes.clock import FakeClock
from tests.fakes.threads import Running, wait_until
from tests.keepstore.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOREVER = 1e9


def pace_of(
    clock: FakeClock, read: float = 10, bandwidth: float = 100, deadline: float = FOREVER
) -> Pace:
    """Make a pace on a clock."""
    return Pace(Timeouts(1, read, bandwidth), deadline, clock)


def test_silence_ends_after_the_interval() -> None:
    clock = FakeClock()
    pace = pace_of(clock)

    assert pace.patience() == 10
    clock.advance(9)
    assert pace.patience() == 1
    clock.advance(1)
    with pytest.raises(TooSlowError, match=r"only 0 bytes in 10\.0 seconds"):
        pace.patience()


def test_a_burst_and_then_silence_ends_after_the_interval() -> None:
    clock = FakeClock()
    pace = pace_of(clock)

    pace.advance(10**9)
    clock.advance(9)
    assert pace.patience() == 1
    clock.advance(1)
    with pytest.raises(TooSlowError):
        pace.patience()


def test_a_stall_after_a_fast_start_ends_an_interval_later() -> None:
    clock = FakeClock()
    pace = pace_of(clock)

    clock.advance(5)
    pace.advance(10**9)
    assert pace.patience() == pytest.approx(10)
    clock.advance(10)
    with pytest.raises(TooSlowError):
        pace.patience()


@given(rate=st.integers(1, 400), step=st.sampled_from([0.1, 0.25, 1.0, 2.5]))
def test_a_steady_rate_is_compared_with_the_bandwidth(rate: int, step: float) -> None:
    clock = FakeClock()
    pace = pace_of(clock)
    kept = True

    try:
        for _ in range(int(100 / step)):
            pace.patience()
            clock.advance(step)
            pace.advance(int(rate * step))
    except TooSlowError:
        kept = False

    # Exact to a mark and to a step on either side.
    if rate >= 150:
        assert kept
    if rate <= 60:
        assert not kept


def test_without_a_bandwidth_one_byte_per_interval_is_enough() -> None:
    clock = FakeClock()
    pace = pace_of(clock, bandwidth=0)

    for _ in range(20):
        clock.advance(9)
        pace.patience()
        pace.advance(1)
    clock.advance(10)
    with pytest.raises(TooSlowError):
        pace.patience()


def test_the_deadline_ends_a_fast_transfer() -> None:
    clock = FakeClock()
    pace = pace_of(clock, deadline=4)

    clock.advance(3)
    pace.advance(10**9)
    assert pace.patience() == 1
    assert pace.remaining() == 1
    clock.advance(1)
    with pytest.raises(TooSlowError, match="time is up"):
        pace.patience()
    assert pace.remaining() == 0


def test_hurry_moves_the_deadline_earlier_and_never_later() -> None:
    clock = FakeClock()
    pace = pace_of(clock, deadline=4)

    pace.hurry(100)
    assert pace.patience() == 4
    pace.hurry(1)
    assert pace.patience() == 1


def test_a_failed_pace_stays_failed() -> None:
    clock = FakeClock()
    pace = pace_of(clock, deadline=1)
    clock.advance(1)
    with pytest.raises(TooSlowError):
        pace.patience()

    pace.advance(10**9)

    with pytest.raises(TooSlowError):
        pace.patience()
    assert isinstance(pace.failure, TooSlowError)


def test_the_first_reason_stays() -> None:
    clock = FakeClock()
    pace = pace_of(clock)
    pace.cancel()

    clock.advance(100)

    with pytest.raises(CancelledError):
        pace.patience()
    with socket.socket() as unused, pytest.raises(CancelledError):
        pace.attach(unused)


# --- sockets ---


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Make two connected sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_nothing_is_sent_unencrypted_while_an_exchange_is_cancelled(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Authority(tmp_path).certify()
    here, there = (
        ssl.SSLContext(each) for each in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)
    )
    here.check_hostname, here.verify_mode = False, ssl.CERT_NONE
    there.load_cert_chain(*certificate)
    ours, theirs = pair
    with theirs.dup() as raw:
        server = Running(lambda: there.wrap_socket(theirs, server_side=True))
        client = here.wrap_socket(ours)
        with client, server.result():
            pace = pace_of(FakeClock())
            pace.attach(client)

            def send_first(connected: socket.socket, how: int) -> None:
                client.send(b"secret")  # as the thread of the exchange may at any moment
                super(socket.socket, connected).shutdown(how)

            monkeypatch.setattr(socket.socket, "shutdown", send_first, raising=False)
            pace.cancel()

            sent = bytearray()
            while piece := raw.recv(4096):
                sent += piece
    assert sent
    assert b"secret" not in sent


def test_outside_an_exchange_a_paced_socket_is_a_socket(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    paced = PacedSocket(ours)

    paced.sendall(b"foo")
    theirs.sendall(b"bar\n")

    assert theirs.recv(3) == b"foo"
    file = paced.makefile("rb")
    assert isinstance(file, io.BufferedReader)
    assert file.readline() == b"bar\n"
    assert paced.fileno() == ours.fileno()
    assert paced.getsockname() == ours.getsockname()
    with selectors.DefaultSelector() as selector:
        selector.register(paced, selectors.EVENT_WRITE)
    file.close()


def test_sending_to_a_socket_that_accepts_nothing_ends(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = pair
    pace = Pace(Timeouts(1, 0.05, 1), FOREVER)

    with pacing(pace), pytest.raises(TooSlowError):
        PacedSocket(ours).sendall(bytes(10_000_000))


def test_receiving_from_a_silent_socket_ends(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    pace = Pace(Timeouts(1, 0.05, 1), FOREVER)

    with PacedSocket(ours).makefile("rb") as file, pacing(pace), pytest.raises(TooSlowError):
        file.read(1)


def test_bytes_that_have_arrived_are_received_without_waiting_and_then_read(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    reader = PacedReader(ours, None)
    ours.settimeout(5.0)

    assert reader.receive_nowait() is None
    before = reader.has_received
    theirs.sendall(b"HTTP")
    assert reader.receive_nowait() == 4
    assert (before, reader.has_received) == (False, True)
    theirs.sendall(b"/1.1")

    assert [reader.read(3), reader.read(3), reader.read(3)] == [b"HTT", b"P", b"/1."]
    assert ours.gettimeout() == 5.0
    theirs.close()
    assert reader.read(3) == b"1"
    assert reader.receive_nowait() == 0


def test_a_socket_timeout_below_the_patience_is_repeated(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    ours.settimeout(0.6)  # which is near enough to be left
    pace = Pace(Timeouts(1, 1, 1), FOREVER)
    waits: list[float] = []

    class Counting:
        """Notes how long it waits; a byte comes when the first wait was in vain."""

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a socket has
            return getattr(ours, name)

        def recv_into(self, buffer: Any) -> int:  # noqa: ANN401 - ditto
            waits.append(ours.gettimeout() or 0)
            try:
                return ours.recv_into(buffer)
            except TimeoutError:
                theirs.sendall(b"x")
                raise

    with PacedSocket(Counting()).makefile("rb") as file, pacing(pace):  # type: ignore[arg-type] # acts as one
        assert file.read(1) == b"x"

    assert waits[0] == 0.6
    assert len(waits) == 2


@pytest.mark.parametrize("sending", [True, False], ids=["sending", "receiving"])
def test_a_waiting_thread_is_woken_by_cancelling(
    pair: tuple[socket.socket, socket.socket], *, sending: bool
) -> None:
    ours, _ = pair
    pace = Pace(Timeouts(1, 60, 1), FOREVER)
    begun = threading.Event()

    def exchange() -> None:
        paced = PacedSocket(ours)
        with pacing(pace), paced.makefile("rb") as file:
            paced.sendall(b"x")
            begun.set()
            if sending:
                paced.sendall(bytes(10_000_000))
            file.read(1)
            pace.patience()

    running = Running(exchange)
    wait_until(begun.is_set)
    pace.cancel()

    assert isinstance(running.failure(), OSError)
    assert isinstance(pace.failure, CancelledError)


def test_a_cancel_after_the_exchange_does_not_affect_the_socket(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    pace = Pace(Timeouts(1, 60, 1), FOREVER)
    with pacing(pace):
        PacedSocket(ours).sendall(b"x")

    pace.cancel()

    ours.sendall(b"y")
    assert theirs.recv(2) == b"xy"


# --- a slow body ---


def watched(clock: FakeClock) -> tuple[Pace, list[float]]:
    """Make a pace that is watched, and the times at which its body was reported as slow."""
    slow_at: list[float] = []
    pace = pace_of(clock, read=1000, bandwidth=1)
    nothing = lambda: None  # noqa: E731 - a callback
    pace.watch(Watch(4, nothing, nothing, lambda: slow_at.append(clock.now)))
    return pace, slow_at


def receive_for(pace: Pace, clock: FakeClock, seconds: int, rate: int) -> None:
    """Let so many bytes come in each of some seconds."""
    for _ in range(seconds):
        pace.patience()
        clock.advance(1)
        pace.advance(rate)
    pace.patience()


def test_a_body_whose_rest_takes_longer_than_the_silence_is_reported_repeatedly() -> None:
    clock = FakeClock()
    pace, slow_at = watched(clock)
    begun = clock.now

    pace.expect(90)
    receive_for(pace, clock, 6, 10)

    assert [at - begun for at in slow_at] == [4]  # 50 are left; at 5 there are 40
    assert pace.time_left() == 3
    assert pace.rate() == 10


def test_a_body_is_judged_by_its_recent_rate() -> None:
    clock = FakeClock()
    pace, slow_at = watched(clock)
    begun = clock.now

    pace.expect(1000)
    receive_for(pace, clock, 4, 200)
    assert slow_at == []
    receive_for(pace, clock, 4, 1)

    assert [at - begun for at in slow_at] == [8]
    assert pace.time_left() == 196


def test_a_wait_for_memory_does_not_lower_the_rate_of_a_body() -> None:
    clock = FakeClock()
    pace, slow_at = watched(clock)

    pace.expect(1000)
    clock.advance(100)
    pace.resume()
    receive_for(pace, clock, 4, 200)

    assert slow_at == []
    assert pace.rate() == 200


def test_before_an_interval_has_passed_the_rate_is_that_since_the_body_began() -> None:
    clock = FakeClock()
    pace, _ = watched(clock)
    assert pace.time_left() == 0

    pace.advance(50)
    pace.expect(100)
    assert pace.time_left() == float("inf")
    clock.advance(2)
    pace.advance(20)

    assert pace.rate() == 10
    assert pace.time_left() == 8
