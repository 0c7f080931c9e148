"""The fetch that a lookup starts: without a free thread, and when it fails."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import Cause, KeepBlockCache, KeepClient, KeepLocator, KeepReadError
from keepfs.keep.background import Background
from keepfs.keep.threads import BusyError
from tests.fakes.threads import wait_until
from tests.keep.clusters import Cluster
from tests.keepstore import Fault, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as it:
        yield it


def test_a_lookup_without_a_free_thread_sends_head(cluster: Cluster) -> None:
    client = cluster.client()
    blocks = [cluster.store(b"%d" % number) for number in range(34)]
    missing = KeepLocator(cluster.stores[0].sign("0" * 32 + "+5"))
    cluster.stores[0].always(Fault(hold=Stage.BEFORE_STATUS), method="GET")
    for locator in blocks[:32]:
        client.prefetch_block(locator)
    cluster.stores[0].wait_held(32)

    with pytest.raises(KeepReadError) as caught:
        client.probe_block(missing, 20)
    size = client.probe_block(blocks[33], 20)
    cluster.stores[0].heal()

    assert caught.value.cause is Cause.NOT_FOUND
    assert size == 2


def test_a_read_that_joined_a_failed_lookup_makes_its_own_rounds(
    cluster: Cluster,
) -> None:
    client = cluster.client()  # a read makes one round too
    locator = cluster.store(b"foo")
    cluster.stores[0].script(Fault(status=503, hold=Stage.BEFORE_STATUS), method="GET")
    client.prefetch_block(locator)
    cluster.stores[0].wait_held(1)
    joined = client.block_cache.statistics().joined
    results: list[bytes] = []
    reader = threading.Thread(target=lambda: results.append(bytes(client.get_block(locator))))
    reader.start()
    wait_until(lambda: client.block_cache.statistics().joined > joined)
    cluster.stores[0].release()
    reader.join(60)

    assert results == [b"foo"]


def test_a_read_that_joined_a_fetch_without_a_thread_fetches_the_block() -> None:
    cache = KeepBlockCache()
    locator = KeepLocator("acbd18db4cc2f85cedef654fccc4a4d8+3")
    results: list[bytes] = []

    def no_thread(_: Callable[[], None]) -> None:
        reader.start()
        wait_until(lambda: cache.statistics().joined == 1)
        raise BusyError("32 are at work")

    reader = threading.Thread(
        target=lambda: results.append(bytes(cache.get_or_fetch(locator, lambda: b"foo")))
    )
    with pytest.raises(BusyError):
        cache.begin(locator, lambda: b"foo", no_thread, effort=-1)
    reader.join(60)

    assert results == [b"foo"]


def test_the_wait_of_a_lookup_follows_the_answers_of_services(cluster: Cluster) -> None:
    client = cluster.client()
    before = client.lookup_wait(1000.0)
    client.get_block(cluster.store(b"foo"))

    assert before == 1000.0
    assert client.lookup_wait(1000.0) < 1000.0


def test_a_lookup_in_a_local_store_waits_for_the_full_time(tmp_path: Path) -> None:
    with KeepClient(local_store=tmp_path) as client:
        client.head_block(client.put_block(b"foo", 1).locator)

        assert client.lookup_wait(2.0) == 2.0


# --- work in the background --------------------------------------------------


def test_the_caller_gets_the_result_or_exception_of_a_call() -> None:
    background = Background(1)

    assert background.call(lambda: 5, time.monotonic() + 60) == 5
    with pytest.raises(ZeroDivisionError):
        background.call(lambda: 1 // 0, time.monotonic() + 60)


def test_a_call_continues_after_its_deadline() -> None:
    background, gate = Background(1), threading.Event()

    assert background.call(lambda: gate.wait(60), time.monotonic() + 0.01) is None
    assert background.call(lambda: 5, time.monotonic() + 0.01) is None  # there is no place
    gate.set()
    assert background.call(lambda: 5, time.monotonic() + 60) == 5


def test_nothing_is_called_after_close() -> None:
    background = Background(1)
    background.close()

    assert background.call(lambda: 5, time.monotonic() + 60) is None
