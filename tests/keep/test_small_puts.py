"""Small blocks go to all services from one thread; for callers nothing differs from large ones."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import requests

from keepfs.keep import KeepClient, KeepWriteError
from keepfs.keep.service import KeepService
from keepfs.keep.wire import ONE_PIECE
from keepfs.keep.writers import KeepWriterThread
from tests.fakes.threads import Running
from tests.keep.clusters import Cluster, root
from tests.keepstore import Fault, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL, LARGE = b"s" * ONE_PIECE, b"l" * (ONE_PIECE + 1)
both_sizes = pytest.mark.parametrize("block", [SMALL, LARGE], ids=["small", "large"])


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run three keepstores."""
    with Cluster(3) as running:
        yield running


@both_sizes
def test_enough_confirmed_copies_end_the_wait_for_a_slower_service(
    cluster: Cluster, block: bytes
) -> None:
    client = cluster.client()
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


@pytest.mark.parametrize(("block", "more"), [(SMALL, 0), (LARGE, 1)], ids=["small", "large"])
def test_all_services_have_the_request_before_any_answers(
    cluster: Cluster, block: bytes, more: int
) -> None:
    client = cluster.client()
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
    assert third.log("PUT") == []


@both_sizes
@pytest.mark.parametrize("silent", [0, 1])
def test_a_service_that_never_answers_is_made_up_for(
    cluster: Cluster, block: bytes, silent: int
) -> None:
    client = cluster.client(timeout=(2, 0.3, 1))
    order = cluster.by_probe_order(block)
    hanging = order.pop(silent)
    hanging.always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")

    receipt = client.put_block(block, copies=2)

    assert set(receipt.services) == {root(each) for each in order}
    assert [len(each.log("PUT")) for each in order] == [1, 1]


@both_sizes
@pytest.mark.parametrize("status", [500, 503, 403])
def test_a_service_that_refuses_is_made_up_for(
    cluster: Cluster, block: bytes, status: int
) -> None:
    client = cluster.client()
    order = cluster.by_probe_order(block)
    order[0].always(Fault(status=status), method="PUT")

    receipt = client.put_block(block, copies=2)

    assert set(receipt.services) == {root(each) for each in order[1:]}


@both_sizes
def test_a_service_that_is_gone_is_made_up_for(cluster: Cluster, block: bytes) -> None:
    client = cluster.client()
    client.put_block(block + b"0", copies=3)  # connections to all are there
    order = cluster.by_probe_order(block)
    order[1].stop()

    receipt = client.put_block(block, copies=2)

    assert set(receipt.services) == {root(order[0]), root(order[2])}


@both_sizes
def test_a_call_ends_at_its_deadline(cluster: Cluster, block: bytes) -> None:
    client = cluster.client(retries=100, timeout=(2, 300, 1))
    for store in cluster.stores:
        store.always(Fault(hold=Stage.BEFORE_STATUS))

    with pytest.raises(KeepWriteError, match="time is up"):
        client.put_block(block, 2, timeout=0.2)


@both_sizes
def test_closing_the_client_ends_what_is_under_way(cluster: Cluster, block: bytes) -> None:
    client = cluster.client()
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
    with requests.Session() as session:
        client = cluster.client(session=session)

        assert client.put_block(block, copies=3).copies == 3


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
        client.put(block, copies=2)

    assert len(put) == 2


@both_sizes
def test_a_replaced_task_is_what_is_done(
    cluster: Cluster, block: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str | None] = []
    original = KeepWriterThread.do_task

    def do_task(self: KeepWriterThread, service: Any, service_root: str | None) -> Any:  # noqa: ANN401 - as given
        done.append(service_root)
        return original(self, service, service_root)

    monkeypatch.setattr(KeepClient.KeepWriterThread, "do_task", do_task)

    cluster.client().put(block, copies=2)

    assert len(done) == 2
