"""The phases of a connection: the whole table, and the phase that a `Wire` shows."""

from __future__ import annotations

import itertools
import socket
import time
import weakref
from typing import TYPE_CHECKING

import pytest

from keepfs.keep.http.connections import Connections
from keepfs.keep.http.pace import Pace
from keepfs.keep.http.phases import TRANSITIONS, Phase, PhaseError, WireEvent, WireState
from keepfs.keep.http.timeouts import Timeouts
from tests.fakes.threads import Running
from tests.keep.clusters import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.keep.http.wire import Wire
    from tests.keepstore import KeepstoreControls

# Rows are phases, columns are events; `-` is an error.
TABLE = """
                CONNECTED REQUEST ALL_SENT SENDING_FAILED HEAD_KEEPS     HEAD_ENDS      BODY_COMPLETE CLOSE
NEW             IDLE      -       -        -              -              -              -             CLOSED
IDLE            -         SENDING -        -              -              -              -             CLOSED
SENDING         -         -       SENT     CUT_OFF        -              -              -             CLOSED
SENT            -         -       -        -              RECEIVING      RECEIVING_LAST -             CLOSED
CUT_OFF         -         -       -        -              RECEIVING_LAST RECEIVING_LAST -             CLOSED
RECEIVING       -         -       -        -              -              -              IDLE          CLOSED
RECEIVING_LAST  -         -       -        -              -              -              CLOSED        CLOSED
CLOSED          -         -       -        -              -              -              -             CLOSED
"""  # noqa: E501 - a table
COLUMNS, *ROWS = [line.split() for line in TABLE.strip().splitlines()]
EXPECTED = {
    (Phase[row[0]], WireEvent[column]): None if cell == "-" else Phase[cell]
    for row in ROWS
    for column, cell in zip(COLUMNS, row[1:], strict=True)
}


@pytest.fixture
def store() -> Iterator[KeepstoreControls]:
    """Run a keepstore."""
    with Cluster() as running:
        yield running.stores[0]


def test_the_table_has_each_phase_and_each_event() -> None:
    assert set(EXPECTED) == set(itertools.product(Phase, WireEvent))
    assert set(TRANSITIONS) <= set(EXPECTED)


@pytest.mark.parametrize(("phase", "event"), EXPECTED, ids=str)
def test_each_event_leads_to_its_phase_or_is_an_error(phase: Phase, event: WireEvent) -> None:
    state = WireState(phase)
    following = EXPECTED[phase, event]

    if following is None:
        with pytest.raises(PhaseError, match=f'phase "{phase}" has no event "{event}"'):
            state.apply(event)
        assert state.phase is phase
    else:
        state.apply(event)
        assert state.phase is following


def test_a_connection_is_idle_again_by_a_complete_body_only() -> None:
    leading = [key for key, following in TRANSITIONS.items() if following is Phase.IDLE]

    assert leading == [
        (Phase.NEW, WireEvent.CONNECTED),
        (Phase.RECEIVING, WireEvent.BODY_COMPLETE),
    ]


def get(wire: Wire, target: str = f"/{'0' * 32}") -> None:
    """Send a GET."""
    wire.send("GET", target, {}, None)


def test_a_wire_shows_its_phase(store: KeepstoreControls) -> None:
    connections = Connections(verify=True)
    wire = connections.take(f"{store.url}/", 2)
    host = store.url.removeprefix("http://")
    assert repr(wire) == f"Wire({host!r}, idle)"

    get(wire)
    assert repr(wire) == f"Wire({host!r}, sent)"
    head = wire.receive()
    assert repr(wire) == f"Wire({host!r}, receiving)"
    assert not wire.is_idle()
    head.body.read(4096)
    assert repr(wire) == f"Wire({host!r}, idle)"
    assert wire.is_idle()
    wire.close()
    assert repr(wire) == f"Wire({host!r}, closed)"
    assert repr(WireState()) == "WireState(new)"


def test_an_idle_wire_keeps_nothing_of_the_last_exchange(store: KeepstoreControls) -> None:
    # A pace refers to the hedge of a call, and so to a block.
    wire = Connections(verify=True).take(f"{store.url}/", 2)
    pace = Pace(Timeouts(2, 20, 1), time.monotonic() + 20)
    left = weakref.ref(pace)
    wire.send("GET", f"/{'0' * 32}", {}, None, pace)
    wire.receive(pace).body.read(4096)

    assert wire.end_exchange()
    pace.cancel()
    del pace

    assert left() is None
    get(wire)
    assert wire.receive().body.read(4096)
    assert wire.end_exchange()
    wire.close()


def test_a_wire_whose_answer_was_not_read_is_closed_by_its_end(store: KeepstoreControls) -> None:
    wire = Connections(verify=True).take(f"{store.url}/", 2)
    get(wire)
    wire.receive()

    assert not wire.end_exchange()
    assert repr(wire).endswith(", closed)")


def test_a_second_request_before_the_first_is_answered_is_an_error(
    store: KeepstoreControls,
) -> None:
    wire = Connections(verify=True).take(f"{store.url}/", 2)
    get(wire)

    with pytest.raises(PhaseError):
        get(wire)

    wire.receive().body.read(4096)
    get(wire)
    wire.close()
    with pytest.raises(PhaseError):
        get(wire)


def test_a_request_that_the_service_stops_reading_is_cut_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        wire = Connections(verify=True).take(f"http://127.0.0.1:{port}/", 2)

        def refuse() -> None:
            accepted, _ = server.accept()
            accepted.recv(100)
            accepted.close()  # resets the connection, since more has come

        refusing = Running(refuse)
        with memoryview(bytes(64 * 1024 * 1024)) as body:
            wire.send("PUT", f"/{'0' * 32}", {}, body)
        refusing.result()

    assert repr(wire) == f"Wire('127.0.0.1:{port}', cut off)"
    assert not wire.is_idle()
    wire.close()
