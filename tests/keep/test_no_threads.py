"""If the system can't start threads, calls work without them, or one call fails."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import Cause, KeepBlockCache, KeepClient, KeepLocator, KeepReadError
from keepfs.keep.hashing import growing
from keepfs.keep.survey import survey
from tests.fakes.threads import wait_until
from tests.keep.clusters import StandInApi
from tests.keepstore import KeepstoreControls, ServiceEntry, start_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


LARGE = bytes(range(256)) * (32 * 1024)  # 8 MiB: hashed by a thread, where there is one


@pytest.fixture
def stores() -> Iterator[list[KeepstoreControls]]:
    """Run two keepstores in processes of their own: they need threads too."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(start_process(KeepstoreControls)) for _ in range(2)]


@pytest.fixture
def client(stores: list[KeepstoreControls]) -> Iterator[KeepClient]:
    """Make a client of them."""
    entries = [ServiceEntry.of(store.url, number) for number, store in enumerate(stores)]
    with KeepClient(
        StandInApi(entries), proxy="", local_store="", block_cache=KeepBlockCache()
    ) as made:
        yield made


@contextlib.contextmanager
def no_threads(
    reason: Exception = RuntimeError("can't start new thread"),  # noqa: B008 - raised only
) -> Iterator[None]:
    """Let no thread be started meanwhile."""

    def refuse(_thread: threading.Thread) -> None:
        raise reason

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


@pytest.mark.parametrize("block", [b"foo", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("extension", [growing.shared_digest, None], ids=["extension", "hashlib"])
def test_a_block_is_stored_and_read(
    client: KeepClient,
    block: bytes,
    extension: Callable[[], growing.GrowingDigest] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(growing, "shared_digest", extension)
    client.build_services_list()
    client.put(b"x", copies=2)  # the cluster's defaults are known

    with no_threads():
        locator = client.put(block, copies=2)
        found = client.get(locator)

    assert found == block
    assert client.block_cache.statistics().in_flight == 0


def test_a_survey_asks_every_service(client: KeepClient) -> None:
    locator = KeepLocator(client.put(b"foo", copies=2))

    with no_threads():
        sightings = survey(client, locator)

    assert [each.cause for each in sightings] == [None, None]


def test_an_error_that_answers_a_survey_is_no_failure_of_the_service(client: KeepClient) -> None:
    sightings = survey(client, KeepLocator("0" * 32 + "+1"))

    assert [each.cause for each in sightings] == [Cause.DENIED, Cause.DENIED]
    assert client.counters.failures.by_cause() == {}


def test_a_block_whose_prefetch_found_no_thread_is_fetched_when_read(
    client: KeepClient,
) -> None:
    locator = KeepLocator(client.put(b"foo", copies=2))

    with no_threads():
        client.prefetch_block(locator)
        told = client.probe_block(locator, 60)
        found = bytes(client.get_block(locator))

    assert told is None
    assert found == b"foo"


def test_without_a_list_of_services_one_call_fails_and_the_next_works(
    client: KeepClient, stores: list[KeepstoreControls]
) -> None:
    locator = stores[0].store_block(b"foo")
    before = threading.active_count()

    with no_threads(), pytest.raises(KeepReadError, match="can't start new thread"):
        client.get(locator)

    assert client.get(locator) == b"foo"
    wait_until(lambda: threading.active_count() <= before)
