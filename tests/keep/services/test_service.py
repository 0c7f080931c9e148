"""One Keep service: the outcome of each request, and whether a further one is useful."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import Cause, HttpError, KeepLocator
from keepfs.keep.counters import Counters
from keepfs.keep.http.exchange import Exchanges
from keepfs.keep.http.timeouts import Timeouts
from keepfs.keep.services.service import KeepService
from keepfs.keep.store import ReadObserver
from tests.fakes.threads import Running
from tests.keepstore import TEST_TOKEN, Fault, KeepstoreControls, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

FOO = KeepLocator("acbd18db4cc2f85cedef654fccc4a4d8+3")
PATIENT = Timeouts(2, 20, 1)


@pytest.fixture
def store() -> Iterator[KeepstoreControls]:
    """Run a keepstore."""
    with KeepstoreControls() as running:
        yield running


@pytest.fixture
def exchanges() -> Iterator[Exchanges]:
    """Make one, closed in the end."""
    it = Exchanges(verify=True)
    yield it
    it.close()


@pytest.fixture
def counters() -> Counters:
    """Make counters that stand at 0."""
    return Counters()


@pytest.fixture
def service(store: KeepstoreControls, exchanges: Exchanges, counters: Counters) -> KeepService:
    """Make the keepstore's service."""
    headers = {"Authorization": f"Bearer {TEST_TOKEN}"}
    return KeepService(f"{store.url}/", exchanges, headers, counters)


def test_before_the_first_request_there_is_no_outcome(service: KeepService) -> None:
    assert service.usable()
    assert not service.finished()
    assert service.outcome() is None
    assert service.last_status() is None
    assert service.last_result()["status_code"] is None
    assert TEST_TOKEN not in repr(service)


def test_the_outcome_of_a_get(
    service: KeepService, store: KeepstoreControls, counters: Counters
) -> None:
    locator = KeepLocator(store.store_block(b"foo"))

    assert service.get(locator, timeout=PATIENT) == b"foo"
    assert service.usable()
    assert service.finished()
    result = service.last_result()
    assert (result["status_code"], result["error"], result["body"]) == (200, False, b"foo")
    assert result["headers"]["content-length"] == "3"
    assert counters.download.get() == 3


@pytest.mark.parametrize(("status", "usable"), [(503, True), (404, False)])
def test_a_failure_is_transient_or_permanent(
    service: KeepService, store: KeepstoreControls, status: int, *, usable: bool
) -> None:
    store.always(Fault(status=status))

    assert service.get(FOO, timeout=PATIENT) is None
    assert service.usable() is usable
    assert service.finished() is not usable
    error = service.last_result()["error"]
    assert isinstance(error, HttpError)
    assert error.status_code == status


def test_the_outcome_of_a_put(
    service: KeepService, store: KeepstoreControls, counters: Counters
) -> None:
    assert service.put(FOO.md5sum, b"foo", timeout=5, headers={"X-Mine": "1"})

    assert store.content(FOO.md5sum) == b"foo"
    assert service.last_result()["body"].startswith(str(FOO))
    assert service.last_result()["headers"]["x-keep-replicas-stored"] == "1"
    assert store.log()[0].header("X-Mine") == "1"
    assert counters.upload.get() == 3


def test_head_is_true_or_the_locator_that_the_service_gave(
    service: KeepService, store: KeepstoreControls
) -> None:
    locator = KeepLocator(store.store_block(b"foo"))

    assert service.get(locator, "HEAD", PATIENT) is True
    store.always(Fault(headers={"X-Keep-Locator": "x"}))
    assert service.get(locator, "HEAD", PATIENT) == "x"


def test_a_head_of_another_size_is_a_damaged_copy(
    service: KeepService, store: KeepstoreControls, counters: Counters
) -> None:
    locator = KeepLocator(store.store_block(b"foo"))
    store.always(Fault(length=4), method="HEAD")

    assert not service.get(locator, "HEAD", PATIENT)
    outcome = service.outcome()

    assert outcome is not None
    assert outcome.cause is Cause.CORRUPT
    assert counters.bad_copies.get() == {f"{store.url}/": 1}


def test_a_locator_without_a_size_fails_like_its_get_if_the_head_has_no_size(
    service: KeepService, store: KeepstoreControls
) -> None:
    store.configure(signing=False)
    store.store_block(b"foo")
    store.always(Fault(drop_headers=("Content-Length",), close=Stage.BEFORE_BODY), method="HEAD")

    service.get(KeepLocator(FOO.md5sum), timeout=PATIENT)

    outcome = service.outcome()
    assert outcome is not None
    assert outcome.cause is not None or outcome.block == b"foo"


def test_a_cancelled_service_makes_no_request(
    service: KeepService, store: KeepstoreControls
) -> None:
    service.cancel()

    assert not service.put(FOO.md5sum, b"foo", PATIENT)
    assert store.counts() == {}


def test_cancelling_ends_a_request_under_way(
    service: KeepService, store: KeepstoreControls
) -> None:
    store.always(Fault(hold=Stage.BEFORE_STATUS))
    running = Running(lambda: service.put(FOO.md5sum, b"foo", PATIENT))
    store.wait_held(1)

    service.cancel()

    assert running.result() is False
    outcome = service.outcome()
    assert outcome is not None
    assert (outcome.cause, outcome.reason) == (Cause.OTHER, "given up")


def test_a_deadline_that_has_passed_allows_no_request(
    store: KeepstoreControls, exchanges: Exchanges
) -> None:
    late = KeepService(f"{store.url}/", exchanges, {}, deadline=time.monotonic())

    assert late.get(FOO) is None
    outcome = late.outcome()
    assert outcome is not None
    assert outcome.cause is Cause.TIMED_OUT
    assert store.counts() == {}


def test_after_close_a_request_fails_like_any(service: KeepService, exchanges: Exchanges) -> None:
    exchanges.close()

    assert service.get(FOO) is None
    assert service.last_status() == 0


def test_the_size_is_announced_before_the_block_is_received(
    store: KeepstoreControls, exchanges: Exchanges
) -> None:
    sizes: list[int] = []
    locator = KeepLocator(store.store_block(b"foo"))
    headers = {"Authorization": f"Bearer {TEST_TOKEN}"}

    class Observer(ReadObserver):
        def began(self, size: int) -> None:
            """Note the size."""
            assert asked.outcome() is None
            sizes.append(size)

    asked = KeepService(f"{store.url}/", exchanges, headers, observer=Observer())

    asked.get(locator)

    assert sizes == [3]


def test_a_long_odd_reason_is_shown_as_one_short_line(
    service: KeepService, store: KeepstoreControls
) -> None:
    store.go_down()

    service.get(FOO)

    outcome = service.outcome()
    assert outcome is not None
    assert outcome.reason == "[Errno 111] Connection refused"
    assert outcome.cause is Cause.UNREACHABLE


def test_a_large_block_is_sent_and_received_whole(
    service: KeepService, store: KeepstoreControls
) -> None:
    block = bytes(range(256)) * (20 * 4096)
    digest = hashlib.md5(block, usedforsecurity=False).hexdigest()

    assert service.put(digest, memoryview(block), PATIENT)
    assert store.content(digest) == block
    assert service.get(KeepLocator(service.last_result()["body"]), timeout=PATIENT) == block


@pytest.mark.slow
def test_a_head_of_a_large_block_on_a_slow_disk_is_waited_for(
    service: KeepService, store: KeepstoreControls
) -> None:
    large = KeepLocator(store.store_block(bytes(256 * 1024)))
    small = KeepLocator(store.store_block(b"foo"))
    store.always(Fault(pause={Stage.BEFORE_STATUS: 1.5}), method="HEAD")
    impatient = Timeouts(2, 0.3, 4096)  # 64 seconds for the large block

    assert service.get(large, "HEAD", impatient)
    assert service.get(small, "HEAD", impatient) is None
    outcome = service.outcome()
    assert outcome is not None
    assert outcome.cause is Cause.TIMED_OUT
