"""Kept connections: when they are reused, and what happens if the service has closed one."""

from __future__ import annotations

import os
import select
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import requests

from keepfs.keep import KeepBlockCache, KeepClient, KeepLocator, KeepReadError
from keepfs.keep.buffers import FreshAllocation
from keepfs.keep.http.connections import IDLE_SECONDS, Connections
from keepfs.keep.http.exchange import Exchanges
from keepfs.keep.http.timeouts import Timeouts
from keepfs.keep.services.service import KeepService
from keepfs.keep.store import ReadObserver
from tests.fakes.clock import FakeClock
from tests.fakes.threads import PATIENCE, Running
from tests.keep.clusters import Cluster, root
from tests.keepstore import (
    TEST_TOKEN,
    Authority,
    Fault,
    KeepstoreControls,
    Listening,
    ServiceEntry,
    Stage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENT = Timeouts(2, 20, 1)
LARGE = bytes(8 * 1024 * 1024)
ENDS = [Fault(close=Stage.BEFORE_STATUS), Fault(close=Stage.BEFORE_STATUS, reset=True)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run a keepstore."""
    with Cluster() as running:
        yield running


@pytest.fixture
def store(cluster: Cluster) -> KeepstoreControls:
    """Return the keepstore."""
    return cluster.stores[0]


@pytest.fixture
def client(cluster: Cluster) -> KeepClient:
    """Make a client that makes one round and keeps no blocks."""
    return cluster.client(cache=KeepBlockCache(1))


REQUESTS: dict[str, Callable[[KeepClient, str], bool]] = {
    "GET": lambda client, locator: client.get(locator) == b"foo",
    "HEAD": lambda client, locator: client.head(locator) is True,
    "PUT": lambda client, _: client.put(b"bar", copies=1).startswith("37b51d"),
    "PUT large": lambda client, _: client.put(LARGE, copies=1).count("+8388608") == 1,
}


@pytest.mark.parametrize("fault", ENDS, ids=["closed", "reset"])
@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_kept_connection_that_has_ended_is_replaced_once_within_the_round(
    cluster: Cluster,
    store: KeepstoreControls,
    client: KeepClient,
    fault: Fault,
    request_name: str,
) -> None:
    store.configure(signing=False)
    locator = str(cluster.store(b"foo"))
    client.head(locator)
    store.script(fault, method=request_name[:4].strip())

    assert REQUESTS[request_name](client, locator)

    first, ended, again = [entry.connection for entry in store.log()]
    assert first == ended != again


@pytest.mark.parametrize("fault", ENDS, ids=["closed", "reset"])
def test_a_new_connection_that_ends_is_not_replaced(
    cluster: Cluster, store: KeepstoreControls, client: KeepClient, fault: Fault
) -> None:
    locator = str(cluster.store(b"foo"))
    store.script(fault)

    with pytest.raises(KeepReadError):
        client.get(locator)

    assert store.counts() == {"GET": 1}


def test_a_connection_is_replaced_no_more_than_once(
    cluster: Cluster, store: KeepstoreControls, client: KeepClient
) -> None:
    locator = str(cluster.store(b"foo"))
    client.get(locator)
    store.always(ENDS[0])

    with pytest.raises(KeepReadError):
        client.get(locator)

    assert store.counts() == {"GET": 3}


@pytest.mark.parametrize("stage", [Stage.BEFORE_BODY, Stage.MID_BODY])
def test_a_connection_that_ends_in_an_answer_is_not_replaced(
    cluster: Cluster, store: KeepstoreControls, client: KeepClient, stage: Stage
) -> None:
    locator = str(cluster.store(b"foo"))
    client.get(locator)
    store.script(Fault(close=stage))

    with pytest.raises(KeepReadError):
        client.get(locator)

    assert store.counts()["GET"] == 2


def service_of(store: KeepstoreControls, exchanges: Exchanges) -> KeepService:
    """Make a service."""
    return KeepService(root(store), exchanges, {"Authorization": f"Bearer {TEST_TOKEN}"})


def test_a_request_that_is_cancelled_is_not_sent_again(
    cluster: Cluster, store: KeepstoreControls
) -> None:
    locator = cluster.store(b"foo")
    exchanges = Exchanges(verify=True)
    assert service_of(store, exchanges).get(locator, timeout=PATIENT) == b"foo"
    store.script(Fault(hold=Stage.BEFORE_STATUS))
    service = service_of(store, exchanges)
    reading = Running(lambda: service.get(locator, timeout=PATIENT))
    store.wait_held(1)

    service.cancel()

    assert reading.result() is None
    assert store.counts() == {"GET": 2}
    exchanges.close()


def test_a_connection_whose_request_was_not_wholly_sent_is_not_used_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_early() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                # As one that would keep the connection; but it reads no more, and resets it.
                connection.sendall(b"HTTP/1.1 422 Enough\r\nContent-Length: 0\r\n\r\n")

        serving = Running(answer_early)
        name = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        exchanges = Exchanges(verify=True)
        service = KeepService(name, exchanges, {})

        assert not service.put("0" * 32, bytes(60_000_000), PATIENT)

        serving.result()
        assert service.last_status() == 422
        assert not exchanges.sends_at_once(name, 3)
        exchanges.close()


@pytest.mark.parametrize("has_session", [False, True])
def test_a_late_cancel_does_not_affect_the_next_exchange_of_the_socket(
    cluster: Cluster, store: KeepstoreControls, *, has_session: bool
) -> None:
    session = requests.Session()
    exchanges = Exchanges(verify=True, template=session if has_session else None)
    locator = cluster.store(b"foo")
    store.script(Fault(), Fault(hold=Stage.BEFORE_STATUS))
    others: list[Running[object]] = []

    class Watched(FreshAllocation):
        """Memory whose block has come; the exchange isn't over yet."""

        def first(self, size: int) -> bytes:
            """Have another exchange begin, and this one cancelled."""
            others.append(
                Running(lambda: service_of(store, exchanges).get(locator, timeout=PATIENT))
            )
            store.wait_held(1)
            service.cancel()
            return super().first(size)

    class Observer(ReadObserver):
        def allocate(self, size: int) -> Watched:
            """Make such memory."""
            return Watched(size)

    headers = {"Authorization": f"Bearer {TEST_TOKEN}"}
    service = KeepService(root(store), exchanges, headers, observer=Observer())

    service.get(locator, timeout=PATIENT)
    store.release()

    assert others[0].result() == b"foo"
    exchanges.close()
    session.close()


# --- idle connections ---


def test_a_connection_expires_after_an_idle_time(store: KeepstoreControls) -> None:
    clock = FakeClock()
    connections = Connections(verify=True, clock=clock)
    wire = connections.take(root(store), 2)
    connections.give_back(root(store), wire)
    clock.advance(IDLE_SECONDS - 1)
    again = connections.take(root(store), 2)
    connections.give_back(root(store), again)

    clock.advance(IDLE_SECONDS + 1)
    had_idle = connections.has_idle(root(store))
    other = connections.take(root(store), 2)

    assert again is wire
    assert other is not wire
    assert not had_idle
    assert wire.fileno() == -1
    other.close()


@pytest.mark.parametrize("stray", [b"HTTP/1.1 408 Request Timeout\r\n\r\n", b""], ids=repr)
def test_an_idle_connection_that_was_closed_or_received_bytes_is_not_reused(
    stray: bytes,
) -> None:
    connections = Connections(verify=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        wire = connections.take(url, 2)
        peer, _ = server.accept()
        connections.give_back(url, wire)
        with peer:
            peer.sendall(stray)
        select.select([wire], [], [], PATIENCE)

        other = connections.take(url, 2)

    assert other is not wire
    assert wire.fileno() == -1
    other.close()


def test_expired_connections_are_closed_while_others_are_used(
    store: KeepstoreControls,
) -> None:
    clock = FakeClock()
    connections = Connections(verify=True, clock=clock)
    wires = [connections.take(root(store), 2) for _ in range(3)]
    for wire in wires:
        connections.give_back(root(store), wire)
    clock.advance(30)
    connections.give_back(root(store), connections.take(root(store), 2))
    clock.advance(30)

    used = connections.take(root(store), 2)
    connections.give_back(root(store), used)

    assert used is wires[2]
    assert [wire.fileno() == -1 for wire in wires] == [True, True, False]
    connections.close()


def test_a_forked_process_uses_no_connection_of_its_parent(
    store: KeepstoreControls,
) -> None:
    connections = Connections(verify=True)
    wire = connections.take(root(store), 2)
    connections.give_back(root(store), wire)

    child = os.fork()
    if not child:
        os._exit(1 if connections.has_idle(root(store)) or wire.fileno() != -1 else 0)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert connections.take(root(store), 2) is wire
    assert wire.is_usable()
    wire.close()


# --- TLS ---


def test_all_connections_share_a_tls_context_until_the_bundle_is_replaced(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", authority.bundle)
    loads: list[str] = []
    load = ssl.SSLContext.load_verify_locations

    def count(context: ssl.SSLContext, *args: str, **named: str) -> None:
        loads.append(named["cafile"])
        load(context, *args, **named)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", count)
    with (
        KeepstoreControls(listening=Listening(tls=authority.certify())) as one,
        KeepstoreControls(listening=Listening(tls=authority.certify())) as two,
    ):
        cluster.api.lists = [[ServiceEntry.of(one.url, 1), ServiceEntry.of(two.url, 2)]]
        for _ in range(2):
            cluster.client().put(b"foo", copies=2)
        before = list(loads)
        os.utime(authority.bundle, (1, 1))
        cluster.client().put(b"foo", copies=2)

    assert before == [authority.bundle]
    assert loads == [authority.bundle] * 2


def test_over_tls_too_a_kept_connection_that_has_ended_is_replaced(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", authority.bundle)
    with KeepstoreControls(listening=Listening(tls=authority.certify())) as store:
        cluster.api.lists = [[ServiceEntry.of(store.url)]]
        client = cluster.client(cache=KeepBlockCache(1))
        locator = KeepLocator(store.store_block(b"foo"))
        client.get(str(locator))
        store.script(ENDS[0], Fault(), ENDS[1])

        assert client.get(str(locator)) == b"foo"
        client.put(b"bar", copies=1)

    assert store.counts() == {"GET": 3, "PUT": 2}
