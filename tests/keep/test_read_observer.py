"""ReadObserver: which of its methods each store calls, and in which order."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import KeepLocator
from keepfs.keep.buffers import FreshAllocation
from keepfs.keep.counters import Counters
from keepfs.keep.errors import KeepReadError
from keepfs.keep.fetching import Sources
from keepfs.keep.local import LocalStore
from keepfs.keep.services.connect import connect
from keepfs.keep.services.service import KeepService
from keepfs.keep.services.writers import KeepWriterThreadPool
from keepfs.keep.store import CallOptions, ReadObserver
from tests.keep.clusters import Cluster, root
from tests.keepstore import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keepfs.keep.services.remote import RemoteStore
    from keepfs.keep.store import Store


class Noting(ReadObserver):
    """Notes what it is notified of."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int | str]] = []

    def began(self, size: int) -> None:
        """Note the size."""
        self.events.append(("began", size))

    def allocate(self, size: int) -> FreshAllocation:
        """Note the size, and make the memory."""
        self.events.append(("allocate", size))
        return FreshAllocation(size)

    def received_from(self, name: str) -> None:
        """Note the service."""
        self.events.append(("received from", name))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run two keepstores."""
    with Cluster(2) as running:
        yield running


class Parts:
    """The classes that a remote store works with."""

    KeepService = KeepService
    KeepWriterThreadPool = KeepWriterThreadPool


@pytest.fixture
def remote(cluster: Cluster) -> Iterator[RemoteStore]:
    """Make a store of the two keepstores."""
    store, *_ = connect(Parts(), Counters(), cluster.api, "", None, None)
    yield store
    store.close()


def read(store: Store, locator: KeepLocator, observer: ReadObserver) -> bytes:
    """Read a block, once from each service."""
    return bytes(store.read(locator, CallOptions(time.monotonic() + 20, observer=observer)))


def test_a_local_store_allocates_memory_and_reports_its_name(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    locator = store.put(b"foo").locator
    noting = Noting()

    assert read(store, locator, noting) == b"foo"
    assert noting.events == [("allocate", 3), ("received from", store.name)]


def test_services_announce_a_block_before_its_memory_is_needed(
    cluster: Cluster, remote: RemoteStore
) -> None:
    locator = cluster.store(b"foo")
    first, _ = cluster.by_probe_order(locator)
    noting = Noting()

    assert read(remote, locator, noting) == b"foo"
    assert noting.events == [("began", 3), ("allocate", 3), ("received from", root(first))]


def test_only_the_service_of_the_verified_block_is_named(
    cluster: Cluster, remote: RemoteStore
) -> None:
    locator = cluster.store(b"foo")
    first, second = cluster.by_probe_order(locator)
    first.always(Fault(body=b"bar"), method="GET")
    noting = Noting()

    assert read(remote, locator, noting) == b"foo"
    assert noting.events == [
        ("began", 3),
        ("allocate", 3),
        ("began", 3),
        ("allocate", 3),
        ("received from", root(second)),
    ]


def test_nothing_is_recorded_for_a_block_that_no_service_sends(
    remote: RemoteStore, tmp_path: Path
) -> None:
    noting = Noting()

    for store in (remote, LocalStore(tmp_path)):
        with pytest.raises(KeepReadError):
            read(store, KeepLocator.of_block(b"foo"), noting)

    assert noting.events == []


def test_by_default_the_memory_is_new_and_nothing_is_recorded(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    locator = store.put(b"foo").locator

    assert store.read(locator, CallOptions(time.monotonic() + 20)) == b"foo"
    assert isinstance(ReadObserver().allocate(3), FreshAllocation)


def test_the_services_of_a_block_are_those_recorded_last() -> None:
    sources = Sources()
    locator = KeepLocator.of_block(b"foo")
    assert sources.of(locator) == ()

    sources.note(locator, "a", "b")
    sources.note(KeepLocator.of_block(b"bar"), "c")

    assert sources.of(locator) == ("a", "b")
    sources.note(locator, "d")
    assert sources.of(locator) == ("d",)
