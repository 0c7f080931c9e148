"""Silent services while a block is stored: the next one is used, and no call waits for them."""

from __future__ import annotations

import gc
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import requests

from keepfs.keep import Cause, KeepBlockCache, KeepLocator, KeepWriteError
from keepfs.keep.blocks import BlockClient
from keepfs.keep.counters import Counters
from keepfs.keep.http.timeouts import Timeouts
from keepfs.keep.services import writers
from keepfs.keep.services.connect import connect
from keepfs.keep.services.outcome import Confirmation
from keepfs.keep.services.service import KeepService
from keepfs.keep.services.writers import KeepWriterThread, KeepWriterThreadPool
from keepfs.keep.threads import NoThreadError
from tests.fakes.threads import Running
from tests.keep.clusters import AT_ONCE, Cluster, noting, root
from tests.keepstore import Fault, Listening, Stage
from tests.keepstore.certificates import Authority

if TYPE_CHECKING:
    import weakref
    from collections.abc import Iterator
    from pathlib import Path

    from keepfs.keep.services.remote import RemoteStore
    from keepfs.keep.services.writer_queue import Tally
    from keepfs.keep.store import Receipt
    from tests.keepstore import KeepstoreControls

#: Seconds of silence after which the next service is used, in these tests.
SILENCE = 0.5
#: A service that is silent is waited for longer than a test lasts.
PATIENT = Timeouts(2, 300, 1)
LARGE = bytes(range(256)) * (8 * 1024)  # 2 MiB
HELD = Fault(hold=Stage.BEFORE_STATUS)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_thread_is_left")]


class Parts:
    """The classes that a store works with."""

    KeepService = KeepService
    KeepWriterThreadPool = KeepWriterThreadPool


def store_of(
    cluster: Cluster, parts: Parts | None = None, session: requests.Session | None = None
) -> RemoteStore:
    """Make a store that soon uses another service; a client closes it."""
    store, *_ = connect(parts or Parts(), Counters(), cluster.api, "", None, session)
    store.silence = SILENCE
    store.timeout = store.proxy_timeout = PATIENT
    return store


def client_of(store: RemoteStore) -> BlockClient:
    """Make a client that doesn't wait between rounds."""
    client = BlockClient(store, KeepBlockCache())
    client.backoff = AT_ONCE
    return client


@pytest.fixture
def client(cluster: Cluster) -> Iterator[BlockClient]:
    """Make a client of them that soon uses another one."""
    with client_of(store_of(cluster)) as made:
        yield made


def put(client: BlockClient, block: bytes, copies: int = 2) -> Receipt:
    """Store a block in a thread, so that a test ends that waits for ever."""
    return Running(lambda: client.put_block(block, copies, num_retries=0)).result()


def order_of(cluster: Cluster, block: bytes) -> list[KeepstoreControls]:
    """Return the services in the probe order of a block."""
    return cluster.by_probe_order(KeepLocator.of_block(block))


def first_at(cluster: Cluster, service: KeepstoreControls) -> Iterator[bytes]:
    """Make blocks whose first service is this one."""
    for number in itertools.count():
        if order_of(cluster, block := b"block %d" % number)[0] is service:
            yield block


def puts(*services: KeepstoreControls) -> list[int]:
    """Count the PUTs of each service."""
    return [service.counts()["PUT"] for service in services]


@pytest.mark.parametrize(
    ("block", "copies"),
    [(b"foo", 2), (LARGE, 2), (b"foo", 1), (LARGE, 1)],
    ids=["small", "large", "small, one copy", "large, one copy"],
)
@pytest.mark.parametrize("stage", [Stage.BEFORE_STATUS, Stage.BEFORE_READ], ids=str)
@pytest.mark.parametrize("is_connected", [False, True], ids=["new", "connected"])
def test_a_block_is_stored_at_the_next_service_if_one_is_silent(
    cluster: Cluster,
    client: BlockClient,
    block: bytes,
    copies: int,
    stage: Stage,
    is_connected: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    if is_connected:
        put(client, b"before", 3)
    first, *others = order_of(cluster, block)
    first.always(Fault(hold=stage), method="PUT")

    receipt = put(client, block, copies)

    assert receipt.copies == copies
    assert set(receipt.services) == {root(other) for other in others[:copies]}
    first.heal()


@pytest.mark.parametrize("stage", [Stage.BEFORE_BODY, Stage.MID_BODY], ids=str)
def test_a_block_is_stored_at_the_next_service_if_one_stalls_in_its_answer(
    cluster: Cluster, client: BlockClient, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    monkeypatch.setattr(writers, "_REST_OF_ANSWER", SILENCE)
    put(client, b"before", 3)
    first, *others = order_of(cluster, b"foo")
    first.always(Fault(hold=stage), method="PUT")

    assert set(put(client, b"foo").services) == {root(other) for other in others}
    first.heal()


def test_the_error_tells_a_stalled_answer_from_the_end_of_the_call(
    cluster: Cluster, client: BlockClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "_REST_OF_ANSWER", SILENCE)
    put(client, b"before", 3)
    for each in cluster.stores:
        each.always(Fault(hold=Stage.BEFORE_BODY), method="PUT")

    with pytest.raises(KeepWriteError, match=f"rest of the answer didn't come in {SILENCE} s"):
        put(client, b"foo")
    for each in cluster.stores:
        each.heal()


def test_an_answer_over_tls_has_not_begun_with_the_session_tickets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A new connection receives bytes at once, which belong to the handshake."""
    monkeypatch.setattr(writers, "_REST_OF_ANSWER", SILENCE)
    authority = Authority(tmp_path)
    with Cluster(3, listening=lambda: Listening(tls=authority.certify())) as cluster:
        cluster.api.insecure = True
        store = store_of(cluster)
        store.silence = 60.0
        with client_of(store) as client:
            put(client, b"before", 3)
            for each in cluster.stores:  # so that the answers are received on new connections
                each.cut_connections()
            first, second, _ = order_of(cluster, b"foo")
            first.always(Fault(pause={Stage.BEFORE_STATUS: 4 * SILENCE}), method="PUT")

            assert set(put(client, b"foo").services) == {root(first), root(second)}


def test_the_answer_to_a_repeated_request_has_not_begun(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "_REST_OF_ANSWER", SILENCE)
    store = store_of(cluster)
    store.silence = 60.0
    with client_of(store) as client:
        put(client, b"before", 3)
        first, second, _ = order_of(cluster, b"foo")
        first.script(Fault(close=Stage.BEFORE_STATUS), method="PUT")
        first.always(Fault(pause={Stage.BEFORE_STATUS: 4 * SILENCE}), method="PUT")

        assert set(put(client, b"foo").services) == {root(first), root(second)}


def test_a_thread_that_cannot_be_started_is_started_later(
    cluster: Cluster, client: BlockClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = order_of(cluster, b"foo")
    first.always(HELD, method="PUT")
    start, refused = KeepWriterThread.start, list[KeepWriterThread]()

    def refuse_first(thread: KeepWriterThread) -> None:
        if not refused:
            refused.append(thread)
            raise NoThreadError("no memory")
        start(thread)

    monkeypatch.setattr(KeepWriterThread, "start", refuse_first)

    assert put(client, b"foo", 1).services == (root(second),)
    assert refused
    first.heal()


def test_a_late_answer_is_not_taken_for_a_prompt_one_in_the_next_round() -> None:
    with Cluster(2) as cluster, client_of(store_of(cluster)) as client:
        late, failing = cluster.stores
        blocks = first_at(cluster, late)
        late.script(Fault(pause={Stage.BEFORE_STATUS: 4 * SILENCE}), method="PUT")
        failing.script(Fault(status=503), method="PUT")
        assert client.put_block(next(blocks), 2, num_retries=1).copies == 2

        assert put(client, next(blocks), 1).services == (root(failing),)


def test_a_users_pool_of_writers_need_not_hedge(cluster: Cluster) -> None:
    class Serial:
        """Has the methods of the pool that the SDK has, and the tally."""

        def __init__(self, data: bytes, data_hash: str, tally: Tally, **_: object) -> None:
            self.tasks: list[tuple[KeepService, str]] = []
            self.block, self.name, self.tally = data, data_hash, tally

        def add_task(self, ks: KeepService, service_root: str) -> None:
            self.tasks.append((ks, service_root))

        def join(self) -> None:
            for service, its_root in self.tasks:
                if self.tally.missing() and service.put(self.name, self.block):
                    self.tally.add(Confirmation(1, None), its_root, service.last_result()["body"])

    class Mine(Parts):
        KeepWriterThreadPool: Any = Serial

    with client_of(store_of(cluster, Mine())) as client:
        assert put(client, b"foo").copies == 2


def test_two_silent_services_are_replaced() -> None:
    with Cluster(4) as cluster, client_of(store_of(cluster)) as client:
        put(client, b"before", 4)
        services = order_of(cluster, b"foo")
        for each in services[:2]:
            each.always(HELD, method="PUT")

        assert set(put(client, b"foo").services) == {root(each) for each in services[2:]}
        for each in services[:2]:
            each.heal()


def test_a_service_that_was_silent_is_not_used_for_the_next_blocks(
    cluster: Cluster, client: BlockClient
) -> None:
    silent = cluster.stores[0]
    blocks = first_at(cluster, silent)
    silent.always(HELD, method="PUT")
    put(client, next(blocks))
    silent.heal()

    for _ in range(3):
        assert put(client, next(blocks)).copies == 2
    assert puts(silent) == [1]


def test_a_service_that_was_silent_is_used_if_the_others_do_not_suffice(
    cluster: Cluster, client: BlockClient
) -> None:
    silent, other, failing = cluster.stores
    blocks = first_at(cluster, silent)
    silent.script(HELD, method="PUT")
    put(client, next(blocks))
    silent.heal()
    failing.always(Fault(status=503), method="PUT")

    assert set(put(client, next(blocks)).services) == {root(silent), root(other)}
    failing.clear_faults()
    # It has answered in time, so it is back in its place.
    assert root(silent) in put(client, next(blocks)).services


def test_a_late_answer_counts_if_no_other_service_is_left(
    cluster: Cluster, client: BlockClient
) -> None:
    first, second, third = order_of(cluster, b"foo")
    first.always(Fault(pause={Stage.BEFORE_STATUS: 4 * SILENCE}), method="PUT")
    third.always(Fault(status=503), method="PUT")

    assert set(put(client, b"foo").services) == {root(first), root(second)}


def test_not_each_block_goes_to_further_services_if_all_are_slow(
    cluster: Cluster, client: BlockClient
) -> None:
    for each in cluster.stores:
        each.always(Fault(pause={Stage.BEFORE_STATUS: 2 * SILENCE}), method="PUT")
    put(client, b"first")
    known = sum(puts(*cluster.stores))

    for number in range(3):
        assert put(client, b"block %d" % number).copies == 2
    assert known == 3
    assert sum(puts(*cluster.stores)) == known + 3 * 2


def test_a_service_that_timed_out_is_used_last_the_next_time(cluster: Cluster) -> None:
    store = store_of(cluster)
    store.silence = 60.0
    store.timeout = Timeouts(2, 4 * SILENCE, 1)
    silent = cluster.stores[0]
    blocks = first_at(cluster, silent)
    silent.always(HELD, method="PUT")
    with client_of(store) as client:
        assert put(client, next(blocks)).copies == 2
        assert put(client, next(blocks)).copies == 2

    assert puts(silent) == [1]
    silent.heal()


def test_services_are_used_for_silent_ones_after_a_call_that_had_little_time(
    cluster: Cluster, client: BlockClient
) -> None:
    first, second, _ = order_of(cluster, b"foo")
    for each in cluster.stores:
        each.always(Fault(pause={Stage.BEFORE_STATUS: SILENCE}), method="PUT")
    with pytest.raises(KeepWriteError, match="time is up"):
        client.put_block(b"foo", 1, num_retries=0, timeout=SILENCE / 2)
    for each in cluster.stores:
        each.heal()
    first.always(HELD, method="PUT")

    assert put(client, b"foo", 1).services == (root(second),)
    first.heal()


def test_if_each_service_is_silent_the_error_names_each(cluster: Cluster) -> None:
    store = store_of(cluster)
    store.timeout = Timeouts(2, 4 * SILENCE, 1)
    for each in cluster.stores:
        each.always(HELD, method="PUT")
    with client_of(store) as client:
        running = Running(lambda: client.put_block(b"foo", 2, num_retries=0))
        error = running.failure()

    assert isinstance(error, KeepWriteError)
    assert error.cause is Cause.TIMED_OUT
    assert all(root(each) in str(error) for each in cluster.stores)
    for each in cluster.stores:
        each.heal()


FAULTS = [HELD, Fault(hold=Stage.BEFORE_READ), Fault(close=Stage.BEFORE_STATUS, reset=True)]


@pytest.mark.parametrize("fault", FAULTS, ids=["silent", "not read", "reset"])
@pytest.mark.parametrize("has_session", [False, True], ids=["direct", "session"])
def test_a_hedged_write_leaves_no_garbage(
    cluster: Cluster,
    has_session: bool,  # noqa: FBT001 - a parameter of the test
    fault: Fault,
) -> None:
    made: list[weakref.ref[KeepService]] = []

    class Mine(Parts):
        KeepService = noting(made)

    with (
        requests.Session() as session,
        client_of(store_of(cluster, Mine(), session if has_session else None)) as client,
    ):
        client.put_block(b"before", 3, num_retries=0)
        order_of(cluster, LARGE)[0].always(fault, method="PUT")
        gc.disable()
        try:
            assert client.put_block(LARGE, 2, num_retries=0).copies == 2
            alive = [ref for ref in made[3:] if ref() is not None]
        finally:
            gc.enable()

    assert len(made) == 6
    assert alive == []
    order_of(cluster, LARGE)[0].heal()
