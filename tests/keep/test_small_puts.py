"""Small blocks: one thread sends them to all services, with the same results as for others."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import requests

from keepfs.keep import KeepClient, KeepWriteError
from keepfs.keep.http.wire import ONE_PIECE
from keepfs.keep.services.service import KeepService
from keepfs.keep.services.writers import KeepWriterThread
from tests.fakes.threads import Running
from tests.keep.clusters import Cluster, root
from tests.keepstore import Fault, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.keepstore import KeepstoreControls

SMALL, LARGE = b"s" * ONE_PIECE, b"l" * (ONE_PIECE + 1)
both_sizes = pytest.mark.parametrize("block", [SMALL, LARGE], ids=["small", "large"])


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run three keepstores."""
    with Cluster(3) as running:
        yield running


def connected(cluster: Cluster, **options: Any) -> KeepClient:  # noqa: ANN401 - the client's
    """Make a client that has a connection to each service."""
    client = cluster.client(**options)
    # With the short time limits of some tests a busy machine needs several attempts.
    client.put_block(b"first", copies=3, num_retries=10)
    for store in cluster.stores:
        store.clear_log()
    return client


def puts(*stores: KeepstoreControls) -> list[int]:
    """Count the PUTs of each, but for the first block."""
    return [len(each.log("PUT")) for each in stores]


@both_sizes
def test_enough_confirmed_copies_end_the_wait_for_a_slower_service(
    cluster: Cluster, block: bytes
) -> None:
    client = connected(cluster)
    first, second, _ = cluster.by_probe_order(block)
    second.always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")
    first.always(
        Fault(hold=Stage.BEFORE_STATUS, headers={"X-Keep-Replicas-Stored": "2"}), method="PUT"
    )

    writer = Running(lambda: client.put_block(block, copies=2))
    first.wait_held(1)
    second.wait_held(1)
    first.release()
    receipt = writer.result()  # though the second is held still

    assert receipt.services == (root(first),)
    assert receipt.copies == 2


@pytest.mark.parametrize(
    ("block", "make", "more"),
    [(SMALL, connected, 0), (LARGE, connected, 1), (SMALL, Cluster.client, 1)],
    ids=["small", "large", "small, but not connected"],
)
def test_all_services_have_the_request_before_any_answers(
    cluster: Cluster, block: bytes, make: Callable[[Cluster], KeepClient], more: int
) -> None:
    client = make(cluster)
    before = len(cluster.by_probe_order(block)[2].log("PUT"))
    first, second, third = cluster.by_probe_order(block)
    for each in (first, second):
        each.always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")

    writer = Running(lambda: client.put_block(block, copies=2))
    first.wait_held(1)
    second.wait_held(1)
    threads = sum(isinstance(each, KeepWriterThread) for each in threading.enumerate())
    second.release()
    first.release()

    assert set(writer.result().services) == {root(first), root(second)}
    assert threads == more
    assert len(third.log("PUT")) == before


@both_sizes
@pytest.mark.parametrize("silent", [0, 1])
@pytest.mark.parametrize("stage", [Stage.BEFORE_STATUS, Stage.BEFORE_BODY])
def test_a_service_that_never_answers_is_replaced_by_the_next(
    cluster: Cluster, block: bytes, silent: int, stage: Stage
) -> None:
    client = connected(cluster, timeout=(2, 0.3, 1))
    order = cluster.by_probe_order(block)
    hanging = order.pop(silent)
    hanging.always(Fault(hold=stage), method="PUT")

    receipt = client.put_block(block, copies=2)

    assert set(receipt.services) == {root(each) for each in order}
    assert puts(*order) == [1, 1]  # what the other answered meanwhile counts


@both_sizes
@pytest.mark.parametrize("status", [500, 503, 403])
def test_a_service_that_refuses_is_replaced_by_the_next(
    cluster: Cluster, block: bytes, status: int
) -> None:
    client = connected(cluster)
    order = cluster.by_probe_order(block)
    order[0].always(Fault(status=status), method="PUT")

    receipt = client.put_block(block, copies=2)

    assert set(receipt.services) == {root(each) for each in order[1:]}


@both_sizes
def test_a_service_that_is_down_is_replaced_by_the_next(cluster: Cluster, block: bytes) -> None:
    client = connected(cluster)
    order = cluster.by_probe_order(block)
    order[1].stop()

    receipt = client.put_block(block, copies=2)

    assert set(receipt.services) == {root(order[0]), root(order[2])}


@both_sizes
def test_a_call_ends_at_its_deadline(cluster: Cluster, block: bytes) -> None:
    client = connected(cluster, retries=100, timeout=(2, 300, 1))
    for store in cluster.stores:
        store.always(Fault(hold=Stage.BEFORE_STATUS))

    with pytest.raises(KeepWriteError, match="time is up"):
        client.put_block(block, 2, timeout=0.2)


@both_sizes
def test_closing_the_client_ends_puts_in_progress(cluster: Cluster, block: bytes) -> None:
    client = connected(cluster)
    first, second, _ = cluster.by_probe_order(block)
    for each in (first, second):
        each.always(Fault(hold=Stage.BEFORE_STATUS))
    writer = Running(lambda: client.put_block(block, copies=2))
    first.wait_held(1)
    second.wait_held(1)

    client.close()

    assert isinstance(writer.failure(), KeepWriteError)


@both_sizes
def test_a_users_session_stores_in_threads(cluster: Cluster, block: bytes) -> None:
    first, second, _ = cluster.by_probe_order(block)
    with requests.Session() as session:
        client = connected(cluster, session=session)
        for each in (first, second):
            each.always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")

        writer = Running(lambda: client.put_block(block, copies=2))
        first.wait_held(1)
        second.wait_held(1)  # though the first hasn't answered
        first.release()
        second.release()

        assert writer.result().copies == 2


@both_sizes
def test_a_replaced_put_is_what_is_called(cluster: Cluster, block: bytes) -> None:
    put: list[str] = []

    class Mine(KeepService):
        def put(self, hash_s: str, *args: Any, **kwargs: Any) -> bool:  # noqa: ANN401 - as given
            put.append(hash_s)
            return super().put(hash_s, *args, **kwargs)

    class Client(KeepClient):
        KeepService = Mine

    with Client(cluster.api, proxy="", local_store="") as client:
        client.put(b"first", copies=3)
        client.put(block, copies=2)

    assert len(put) == 5


@both_sizes
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (KeepClient.KeepWriterThread, "do_task"),
        (KeepClient.KeepWriterThread, "run"),
        (KeepClient.KeepWriterQueue, "get_next_task"),
    ],
)
def test_a_patched_writer_is_what_writes(
    cluster: Cluster, block: bytes, owner: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connected(cluster)
    done: list[str] = []
    original = getattr(owner, name)

    def patched(*args: Any) -> Any:  # noqa: ANN401 - as given
        done.append(name)
        return original(*args)

    monkeypatch.setattr(owner, name, patched)

    client.put(block, copies=2)

    assert len(done) >= 2
