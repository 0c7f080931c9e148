"""KeepClient over Keep services: get, put, head and the other methods."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

from keepfs.keep import (
    ArgumentError,
    Cause,
    HttpError,
    KeepBlockCache,
    KeepClient,
    KeepLocator,
    KeepReadError,
    KeepRequestError,
    KeepWriteError,
    NotFoundError,
)
from keepfs.keep.services.api import ApiClient
from keepfs.keep.services.service import KeepService
from keepfs.keep.services.writers import KeepWriterThreadPool
from tests.contracts.block_store import BlockStoreContract
from tests.fakes.threads import Running, wait_until
from tests.keep.clusters import AT_ONCE, Cluster, StandInApi, root
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    Authority,
    Fault,
    KeepproxyControls,
    Listening,
    ProxySettings,
    ServiceEntry,
    Stage,
    Store,
)
from tests.messages.provoking import assert_shows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FOO = "acbd18db4cc2f85cedef654fccc4a4d8+3"
BAR = "37b51d194a7513e45b56f6524f2d51f2+3"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run three keepstores."""
    with Cluster(3) as running:
        yield running


@pytest.fixture
def client(cluster: Cluster) -> KeepClient:
    """Make a client of them."""
    return cluster.client()


class TestKeepClientOverServices(BlockStoreContract):
    @pytest.fixture
    def store(self, client: KeepClient, cluster: Cluster) -> KeepClient:
        """Make a client of keepstores that want no signatures, as the contract's names have none.

        What the contract asks of any store can be asked of services too.
        """
        for each in cluster.stores:
            each.configure(signing=False, key="")
        return client


# --- reading ---


def test_a_block_is_read_from_the_first_service_in_probe_order(
    cluster: Cluster, client: KeepClient
) -> None:
    locator = cluster.store(b"foo")

    assert client.get(str(locator)) == b"foo"
    assert [len(store.log("GET")) for store in cluster.by_probe_order(locator)] == [1, 0, 0]


def test_services_are_asked_in_probe_order_until_one_has_the_block(
    cluster: Cluster, client: KeepClient
) -> None:
    last = cluster.by_probe_order(b"foo")[-1]
    locator = cluster.store(b"foo", last)

    assert client.get(str(locator)) == b"foo"
    assert cluster.counts("GET") == [1, 1, 1]


def test_the_request_of_a_get_follows_the_protocol(cluster: Cluster, client: KeepClient) -> None:
    locator = cluster.store(b"foo")

    client.get(str(locator), request_id="req-mine", headers={"X-Mine": "1"})

    entry = cluster.by_probe_order(locator)[0].log("GET")[0]
    assert entry.target == f"/{locator}"
    sent = {name.lower(): value for name, value in entry.headers}
    del sent["user-agent"], sent["host"]
    assert sent == {
        "authorization": f"Bearer {TEST_TOKEN}",
        "x-request-id": "req-mine",
        "accept": "application/octet-stream",
        "accept-encoding": "identity",
        "x-mine": "1",
    }


def test_several_locators_are_the_concatenation_of_their_blocks(
    cluster: Cluster, client: KeepClient
) -> None:
    foo, bar = cluster.store(b"foo"), cluster.store(b"bar")

    assert client.get(f"{foo},{bar},{foo}") == b"foobarfoo"


def test_a_block_is_received_whole_whatever_its_size(cluster: Cluster, client: KeepClient) -> None:
    for size in (1, 65535, 65536, 65537, 262144, 262145, 3_000_000):
        block = bytes(range(256)) * (size // 256) + b"x" * (size % 256)

        assert client.get(str(cluster.store(block))) == block


def test_the_bytes_of_a_get_are_no_copy_of_the_cached_block(
    cluster: Cluster, client: KeepClient
) -> None:
    locator = cluster.store(b"foo" * 100_000)

    block = client.get(str(locator))

    assert client.get_block(locator).obj is block


def test_connections_are_used_again(cluster: Cluster) -> None:
    client = cluster.client(cache=KeepBlockCache(1))
    locator = cluster.store(b"foo")
    missing = cluster.stores[0].sign("0" * 32 + "+3")

    for _ in range(3):
        client.get(str(locator))
        client.head(str(locator))
        client.put(b"bar")
        with pytest.raises(NotFoundError):
            client.get(missing)

    for store in cluster.stores:
        assert len({entry.connection for entry in store.log()}) <= 2


def test_a_locator_without_a_size_can_be_read(cluster: Cluster, client: KeepClient) -> None:
    digest, _, signature = str(cluster.store(b"foo")).split("+")

    assert client.get(f"{digest}+{signature}") == b"foo"
    assert client.head_block(KeepLocator(f"{digest}+{signature}")) == 3


def test_a_block_that_is_too_large_is_not_asked_for(cluster: Cluster, client: KeepClient) -> None:
    with pytest.raises(KeepReadError) as caught:
        client.get("0" * 32 + "+67108865")

    assert caught.value.cause is Cause.CORRUPT
    assert cluster.counts("GET") == [0, 0, 0]


def test_readers_of_one_block_make_one_request(cluster: Cluster, client: KeepClient) -> None:
    locator = cluster.store(b"foo")
    first = cluster.by_probe_order(locator)[0]
    first.always(Fault(hold=Stage.BEFORE_STATUS), method="GET")

    readers = [Running(lambda: client.get(str(locator))) for _ in range(50)]
    wait_until(lambda: client.block_cache.statistics().joined == 49)
    first.wait_held(1)
    first.release()

    assert {reader.result() for reader in readers} == {b"foo"}
    assert cluster.counts("GET").count(0) == 2
    assert sum(cluster.counts("GET")) == 1


def test_readers_of_one_failing_block_fail_together_after_one_try(cluster: Cluster) -> None:
    client = cluster.client(retries=0)
    locator = cluster.stores[0].sign(FOO)
    for store in cluster.stores:
        store.always(Fault(status=503, hold=Stage.BEFORE_STATUS), method="GET")
    first = cluster.by_probe_order(FOO)[0]

    readers = [Running(lambda: client.get(locator)) for _ in range(50)]
    wait_until(lambda: client.block_cache.statistics().joined == 49)
    for store in (first, *cluster.by_probe_order(FOO)[1:]):
        store.wait_held(1)
        store.release()
    failures = [reader.failure() for reader in readers]

    assert cluster.counts("GET") == [1, 1, 1]
    assert all(isinstance(failure, KeepReadError) for failure in failures)
    assert len({id(failure) for failure in failures}) == 50


# --- rounds ---


def test_rounds_are_repeated_up_to_the_number_of_retries(cluster: Cluster) -> None:
    client = cluster.client(retries=2)
    locator = cluster.store(b"foo")
    for store in cluster.stores:
        store.script(Fault(status=503), Fault(status=503), method="GET")

    assert client.get(str(locator)) == b"foo"
    assert sum(cluster.counts("GET")) == 7
    assert cluster.api.asked == 3


def test_the_text_of_a_failure_names_services_and_attempts(cluster: Cluster) -> None:
    client = cluster.client()
    locator = cluster.store(b"foo")
    for store in cluster.stores:
        store.always(Fault(status=503), method="GET")

    with pytest.raises(KeepReadError) as caught:
        client.get(str(locator), num_retries=3, request_id="req-x")

    said = "; ".join(
        f"service {root(store)} responded with 503 HTTP/1.1 503 Service Unavailable"
        for store in cluster.by_probe_order(locator)
    )
    assert (
        str(caught.value)
        == f"[req-x] failed to read {locator.stripped()} after 4 attempts: {said}"
    )
    assert list(caught.value.request_errors()) == [
        root(store) for store in cluster.by_probe_order(locator)
    ]
    assert all(isinstance(it, HttpError) for it in caught.value.request_errors().values())


def test_a_permanent_failure_is_not_retried_in_the_call(cluster: Cluster) -> None:
    client = cluster.client(retries=3)
    locator = cluster.store(b"foo")
    first, second, third = cluster.by_probe_order(locator)
    first.always(Fault(status=404), method="GET")
    second.script(Fault(status=500), method="GET")
    third.script(Fault(status=500), method="GET")

    assert client.get(str(locator)) == b"foo"
    assert [store.counts()["GET"] for store in (first, second, third)] == [1, 2, 1]


def test_a_block_that_no_service_has_is_not_found_without_a_retry(cluster: Cluster) -> None:
    client = cluster.client(retries=5)

    with pytest.raises(NotFoundError) as caught:
        client.get(cluster.stores[0].sign(FOO), request_id="req-x")

    assert caught.value.cause is Cause.NOT_FOUND
    assert cluster.counts("GET") == [1, 1, 1]
    assert re.match(
        r"\[req-x\] acbd\S+ not found:  http://127.0.0.1:\d+/ responded with"
        r" 404 HTTP/1.1 404 Not Found;",
        str(caught.value),
    )


def test_a_service_that_joins_is_asked_in_the_next_round(cluster: Cluster) -> None:
    client = cluster.client(retries=1)
    old, new = cluster.stores[0], cluster.stores[1]
    locator = cluster.store(b"foo", new)
    old.always(Fault(status=503), method="GET")
    cluster.api.lists = [
        cluster.entries(old),
        [ServiceEntry.of(old.url, 0), ServiceEntry.of(new.url, 1)],
    ]

    assert client.get(str(locator)) == b"foo"


def test_a_missing_block_is_requested_from_services_added_meanwhile(
    cluster: Cluster,
) -> None:
    client = cluster.client()
    old, new = cluster.stores[0], cluster.stores[1]
    locator = cluster.store(b"foo", new)
    cluster.api.lists = [cluster.entries(old), cluster.entries(old, new)]
    old.script(Fault(hold=Stage.BEFORE_STATUS), method="GET")

    reader = Running(lambda: client.get(str(locator)))
    old.wait_held(1)
    client.build_services_list(force_rebuild=True)
    old.release()

    assert reader.result() == b"foo"


def test_the_known_services_are_used_while_the_api_server_is_down(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    client = cluster.client(retries=2)
    locator = cluster.store(b"foo")
    cluster.api.lists = [cluster.api.lists[0], RuntimeError("down")]
    for store in cluster.stores:
        store.script(Fault(status=500), Fault(status=500), method="GET")

    assert client.get(str(locator)) == b"foo"
    assert "going on with the known Keep services" in caplog.text


def test_without_any_list_there_are_no_services(cluster: Cluster) -> None:
    client = cluster.client(retries=2)
    cluster.api.lists = [RuntimeError("down")]

    with pytest.raises(KeepReadError, match=r"no Keep services available .*RuntimeError: down"):
        client.get(FOO)
    with pytest.raises(KeepWriteError, match=r"no Keep services available .*RuntimeError: down"):
        client.put(b"foo", classes=[])

    assert cluster.api.asked == 6


def test_an_api_server_that_comes_back_is_asked_again(cluster: Cluster) -> None:
    client = cluster.client(retries=1)
    locator = cluster.store(b"foo")
    cluster.api.lists.insert(0, RuntimeError("down"))

    assert client.get(str(locator)) == b"foo"


def test_an_empty_list_is_an_error(cluster: Cluster) -> None:
    client = cluster.client()
    cluster.api.lists = [[]]

    with pytest.raises(KeepReadError, match="no Keep services available") as caught:
        client.get(FOO)

    assert caught.value.cause is Cause.UNREACHABLE


# --- writing ---


def test_a_block_goes_to_the_first_services_in_probe_order(
    cluster: Cluster, client: KeepClient
) -> None:
    locator = client.put(b"foo", copies=2)

    first, second, third = cluster.by_probe_order(b"foo")
    assert first.content(FOO[:32]) == second.content(FOO[:32]) == b"foo"
    assert third.counts() == {}
    assert client.get(locator) == b"foo"


def test_the_request_of_a_put_follows_the_protocol(cluster: Cluster, client: KeepClient) -> None:
    client.put(b"foo", copies=1, request_id="req-mine")

    entry = cluster.by_probe_order(b"foo")[0].log("PUT")[0]
    assert entry.target == f"/{FOO[:32]}"
    sent = {name.lower(): value for name, value in entry.headers}
    del sent["user-agent"], sent["host"]
    assert sent == {
        "authorization": f"Bearer {TEST_TOKEN}",
        "x-request-id": "req-mine",
        "accept": "*/*",
        "accept-encoding": "identity",
        "content-length": "3",
        "x-keep-desired-replicas": "1",
    }


def test_a_receipt_has_the_confirmations_of_each_service(
    cluster: Cluster, client: KeepClient
) -> None:
    receipt = client.put_block(b"foo", copies=2, classes=["default"])

    assert receipt.copies == 2
    assert sorted(receipt.services) == sorted(
        root(store) for store in cluster.by_probe_order(b"foo")[:2]
    )
    assert receipt.classes == {"default": 2}
    assert receipt.locator.stripped() == FOO
    assert receipt.locator.perm_sig is not None


def test_a_locator_that_was_computed_before_is_not_computed_again(
    cluster: Cluster, client: KeepClient
) -> None:
    with pytest.raises(KeepWriteError):
        client.put_block(b"bar", copies=1, locator=KeepLocator(FOO))

    assert sum(cluster.counts("PUT")) == 3
    assert client.put_block(b"foo", 1, locator=KeepLocator(FOO)).locator.stripped() == FOO


@pytest.mark.parametrize("of", [bytes, bytearray, memoryview], ids=lambda of: of.__name__)
def test_any_buffer_may_be_put_large_or_small(
    cluster: Cluster, client: KeepClient, of: type
) -> None:
    for block in (b"", b"foo", b"foo" * 1_000_000):
        locator = client.put(of(block), copies=3)

        assert locator.startswith(KeepLocator.of_block(block).stripped() + "+A")
        digest = locator[:32]
        assert [store.content(digest) for store in cluster.stores] == [block] * 3


def test_a_text_is_put_as_utf_8(cluster: Cluster, client: KeepClient) -> None:
    locator = client.put("é")

    assert cluster.by_probe_order("é".encode())[0].content(locator[:32]) == "é".encode()


def test_a_block_over_64_mib_is_refused_without_a_request(
    cluster: Cluster, client: KeepClient
) -> None:
    with pytest.raises(KeepWriteError, match="at most 67108864 bytes"):
        client.put(bytes(67108865))

    assert cluster.counts("PUT") == [0, 0, 0]


def test_a_put_of_no_copies_sends_no_request(cluster: Cluster, client: KeepClient) -> None:
    assert client.put(b"foo", copies=0) == FOO
    assert cluster.counts("PUT") == [0, 0, 0]


def test_too_few_copies_are_an_error_with_their_number(cluster: Cluster) -> None:
    client = cluster.client()
    for store in cluster.stores[1:]:
        store.always(Fault(status=503), method="PUT")

    with pytest.raises(KeepWriteError) as caught:
        client.put(b"foo", copies=2, num_retries=2, request_id="req-x")

    assert caught.value.cause is Cause.TOO_FEW_COPIES
    assert re.match(
        r"\[req-x\] failed to write acbd18db4cc2f85cedef654fccc4a4d8 after 3 attempts"
        r" \(wanted 2 copies but wrote 1\): service http",
        str(caught.value),
    )
    assert set(caught.value.request_errors()) == {root(it) for it in cluster.stores[1:]}
    assert cluster.counts("PUT") == [1, 3, 3]


def test_a_failed_service_is_replaced_by_the_next(cluster: Cluster, client: KeepClient) -> None:
    first, second, third = cluster.by_probe_order(b"foo")
    first.always(Fault(status=503), method="PUT")

    receipt = client.put_block(b"foo", copies=2)

    assert set(receipt.services) == {root(second), root(third)}
    assert cluster.counts("PUT") == [1, 1, 1]


def test_copies_add_up_over_the_rounds(cluster: Cluster) -> None:
    client = cluster.client(retries=1)
    for store in cluster.stores[1:]:
        store.script(Fault(status=503), method="PUT")

    receipt = client.put_block(b"foo", copies=3)

    assert receipt.copies == 3
    assert cluster.counts("PUT") == [1, 2, 2]


def test_a_read_only_service_is_not_written_to(cluster: Cluster) -> None:
    entries = cluster.entries(*cluster.stores)
    read_only = [
        ServiceEntry.of(store.url, number, read_only=number == 0)
        for number, store in enumerate(cluster.stores)
    ]
    assert entries != read_only
    client = cluster.client(api=StandInApi(read_only))

    client.put(b"foo", copies=2)

    assert cluster.counts("PUT") == [0, 1, 1]


def test_two_copies_confirmed_by_one_service_count(cluster: Cluster) -> None:
    client = cluster.client()
    for store in cluster.stores:
        store.always(Fault(headers={"X-Keep-Replicas-Stored": "2"}), method="PUT")

    receipt = client.put_block(b"foo", copies=3)

    assert receipt.copies >= 3
    assert sum(cluster.counts("PUT")) <= 3


# --- storage classes ---


def test_the_clusters_default_classes_are_requested(cluster: Cluster) -> None:
    client = cluster.client()
    cluster.api.cluster = {
        "StorageClasses": {"b": {"Default": True}, "a": {"Default": True}, "c": {"Priority": 1}}
    }

    with pytest.raises(KeepWriteError):
        client.put(b"foo", copies=1)

    for store in cluster.stores:
        assert store.log("PUT")[0].header("X-Keep-Storage-Classes") == "a, b"


@pytest.mark.parametrize(
    "config", [{}, {"StorageClasses": None}, None, [], RuntimeError("no config")], ids=repr
)
def test_without_default_classes_no_classes_are_requested(
    cluster: Cluster,
    config: Any,  # noqa: ANN401 - what a server may say
) -> None:
    client = cluster.client()
    cluster.api.cluster = config

    client.put(b"foo", copies=1)

    entry = cluster.by_probe_order(b"foo")[0].log("PUT")[0]
    assert entry.header("X-Keep-Storage-Classes") is None


def test_given_classes_override_the_clusters(cluster: Cluster) -> None:
    client = cluster.client()
    cluster.api.cluster = {"StorageClasses": {"other": {"Default": True}}}

    client.put(b"foo", classes=["default"])

    entry = cluster.by_probe_order(b"foo")[0].log("PUT")[0]
    assert entry.header("X-Keep-Storage-Classes") == "default"


def test_classes_count_over_all_rounds(cluster: Cluster) -> None:
    # Three copies, all in class hot, although one round brings copies without it.
    client = cluster.client(retries=1)
    a, b, c = cluster.stores
    for store in cluster.stores:
        store.configure_volume(classes=("hot",))
    a.always(Fault(headers={"X-Keep-Storage-Classes-Confirmed": "hot=1"}), method="PUT")
    b.always(Fault(headers={"X-Keep-Storage-Classes-Confirmed": "cold=1"}), method="PUT")
    c.script(Fault(status=503), method="PUT")
    c.always(Fault(headers={"X-Keep-Storage-Classes-Confirmed": "hot=1"}), method="PUT")

    with pytest.raises(KeepWriteError, match=r"wanted 3 copies but wrote 3; storage class hot: 2"):
        client.put(b"foo", copies=3, classes=["hot"])


def test_a_server_without_the_classes_header_counts_by_copies(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    client = cluster.client()
    for store in cluster.stores:
        store.always(Fault(drop_headers=("X-Keep-Storage-Classes-Confirmed",)), method="PUT")

    for block in (b"foo", b"bar"):
        assert client.put_block(block, copies=2, classes=["default"]).copies == 2

    assert caplog.text.count("confirms no storage classes") == 1
    assert_shows(caplog.text, "classes-unconfirmed")


# --- proxies ---


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[KeepproxyControls]:
    """Run a keepproxy in front of the keepstores."""
    stores = [
        Store(f"zzzzz-bi6l4-{number:015d}", store.url)
        for number, store in enumerate(cluster.stores)
    ]
    with KeepproxyControls(ProxySettings(stores=stores)) as running:
        yield running


@pytest.fixture
def through_proxy(proxy: KeepproxyControls) -> Iterator[KeepClient]:
    """Make a client that knows the proxy alone."""
    with KeepClient(proxy=proxy.url, api_token=TEST_TOKEN, local_store="") as client:
        client.backoff = AT_ONCE
        yield client


def test_a_proxy_makes_the_copies_itself(
    cluster: Cluster, proxy: KeepproxyControls, through_proxy: KeepClient
) -> None:
    receipt = through_proxy.put_block(b"foo", copies=3)

    assert receipt.copies == 3
    assert receipt.services == (root(proxy),)
    assert proxy.counts() == {"PUT": 1}
    assert [store.content(FOO[:32]) for store in cluster.stores] == [b"foo"] * 3


def test_copies_of_a_proxy_do_not_add_to_those_of_the_services_behind_it(
    cluster: Cluster, proxy: KeepproxyControls
) -> None:
    client = cluster.client(retries=1)
    only, *full = cluster.stores
    for store in full:
        store.always(Fault(status=503), method="PUT")
    cluster.api.lists = [
        cluster.entries(*cluster.stores),
        [ServiceEntry.of(proxy.url, 9, kind="proxy")],
    ]

    with pytest.raises(KeepWriteError, match=r"wanted 2 copies but wrote [01]"):
        client.put_block(b"foo", copies=2)

    assert proxy.counts() == {"PUT": 1}
    assert only.content(FOO[:32]) == b"foo"


def test_a_block_stored_through_a_proxy_is_read_through_it(through_proxy: KeepClient) -> None:
    locator = through_proxy.put(b"foo")

    assert through_proxy.head(locator) is True
    assert through_proxy.get(locator) == b"foo"


def test_a_proxys_refusal_is_a_not_found_error_that_says_denied(
    proxy: KeepproxyControls, through_proxy: KeepClient
) -> None:
    locator = through_proxy.put(b"foo")
    through_proxy.api_token = "v2/zzzzz-gj3su-000000000000000/unknown"  # noqa: S105 - none

    with pytest.raises(NotFoundError) as caught:
        through_proxy.get(locator)

    assert caught.value.cause is Cause.DENIED
    proxy.wait_ended(2)
    assert proxy.log("GET")[-1].status == 403


def test_proxies_may_come_from_the_environment(
    proxy: KeepproxyControls, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    locator = cluster.store(b"foo")
    monkeypatch.setenv("ARVADOS_KEEP_PROXY", "http://nobody.invalid/")
    monkeypatch.setenv("ARVADOS_KEEP_SERVICES", proxy.url)
    monkeypatch.setenv("ARVADOS_API_TOKEN", TEST_TOKEN)

    with KeepClient() as client:
        assert client.get(str(locator)) == b"foo"
        assert client.weighted_service_roots(locator) == [root(proxy)]


def test_an_empty_proxy_argument_means_discovery(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVADOS_KEEP_PROXY", "http://nobody.invalid/")

    assert len(cluster.client().weighted_service_roots(KeepLocator(FOO))) == 3


def test_a_fixed_list_is_never_fetched_but_default_classes_are(
    cluster: Cluster, proxy: KeepproxyControls
) -> None:
    cluster.api.cluster = {"StorageClasses": {"default": {"Default": True}}}

    with KeepClient(cluster.api, proxy=proxy.url, local_store="") as client:
        client.put(b"foo")

    assert cluster.api.asked == 0
    assert proxy.log("PUT")[0].header("X-Keep-Storage-Classes") == "default"


# --- the cache ---


def test_a_cached_block_is_not_requested(cluster: Cluster, client: KeepClient) -> None:
    locator = cluster.store(b"foo")
    assert not client.is_cached(str(locator))
    assert client.get_from_cache(str(locator)) is None

    client.get(str(locator))
    client.get(str(locator))

    assert client.is_cached(str(locator))
    assert client.get_from_cache(str(locator)) == b"foo"
    assert sum(cluster.counts("GET")) == 1
    client.block_cache.clear()
    client.get(str(locator))
    assert sum(cluster.counts("GET")) == 2


def test_the_services_decide_about_an_expired_signature(
    cluster: Cluster, client: KeepClient
) -> None:
    locator = cluster.store(b"foo")
    client.get(str(locator))
    expired = KeepLocator(f"{FOO}+A{locator.perm_sig}@00000001")

    assert client.cached_block(expired) is None
    with pytest.raises(KeepReadError) as caught:
        client.get(str(expired))

    assert caught.value.cause is Cause.DENIED
    with pytest.raises(KeepReadError) as caught:
        client.probe_block(expired, wait=20)
    assert caught.value.cause is Cause.DENIED


def test_head_sends_a_request_and_caches_nothing(cluster: Cluster, client: KeepClient) -> None:
    locator = cluster.store(b"foo")

    assert client.head(str(locator)) is True
    assert client.head(str(locator)) is True
    assert client.head_block(locator) == 3
    assert not client.is_cached(str(locator))
    assert sum(cluster.counts("HEAD")) == 3


def test_the_empty_block_is_read_without_a_request(cluster: Cluster, client: KeepClient) -> None:
    empty = "d41d8cd98f00b204e9800998ecf8427e+0"

    assert client.get(empty) == b""
    assert client.head(empty) is True
    assert client.head_block(KeepLocator(empty)) == 0
    assert client.probe_block(KeepLocator(empty), wait=0) == 0
    assert cluster.counts("GET") == cluster.counts("HEAD") == [0, 0, 0]


# --- probing ---


def test_a_probe_returns_the_size_while_the_block_is_being_received(
    cluster: Cluster, client: KeepClient
) -> None:
    block = b"x" * 300_000
    locator = cluster.store(block)
    first = cluster.by_probe_order(locator)[0]
    first.always(Fault(hold=Stage.MID_BODY), method="GET")

    assert client.probe_block(locator, wait=20) == 300_000
    assert client.cached_block(locator) is None
    reader = Running(lambda: client.get_block(locator))
    wait_until(lambda: client.block_cache.statistics().joined == 1)
    first.wait_held(1)
    first.release()

    assert bytes(reader.result()) == block
    assert sum(cluster.counts("GET")) == 1


def test_a_probe_of_a_cached_block_sends_no_request(cluster: Cluster, client: KeepClient) -> None:
    locator = cluster.store(b"foo")
    client.get(str(locator))

    assert client.probe_block(locator, wait=0) == 3
    assert sum(cluster.counts("GET")) == 1


def test_probes_of_one_block_share_one_fetch(cluster: Cluster, client: KeepClient) -> None:
    locator = cluster.store(b"foo")
    first = cluster.by_probe_order(locator)[0]
    first.always(Fault(hold=Stage.BEFORE_STATUS), method="GET")

    probes = [Running(lambda: client.probe_block(locator, wait=20)) for _ in range(10)]
    wait_until(lambda: client.block_cache.statistics().joined == 9)
    first.wait_held(1)
    first.release()

    assert {probe.result() for probe in probes} == {3}
    assert sum(cluster.counts("GET")) == 1


def test_a_probe_joins_a_readers_fetch(cluster: Cluster, client: KeepClient) -> None:
    locator = cluster.store(b"x" * 300_000)
    first = cluster.by_probe_order(locator)[0]
    first.always(Fault(hold=Stage.MID_BODY), method="GET")

    reader = Running(lambda: client.get_block(locator))
    first.wait_held(1)

    assert client.probe_block(locator, wait=20) == 300_000
    first.release()
    assert len(reader.result()) == 300_000
    assert sum(cluster.counts("GET")) == 1


def test_a_probe_does_not_wait_longer_than_it_may(cluster: Cluster, client: KeepClient) -> None:
    locator = cluster.store(b"foo")
    first = cluster.by_probe_order(locator)[0]
    first.always(Fault(hold=Stage.BEFORE_STATUS), method="GET")

    assert client.probe_block(locator, wait=0) is None
    first.wait_held(1)
    assert client.probe_block(locator, wait=0.01) is None
    first.release()

    assert bytes(client.get_block(locator)) == b"foo"
    assert sum(cluster.counts("GET")) == 1


def test_a_probe_makes_one_round(cluster: Cluster) -> None:
    client = cluster.client(retries=5)
    locator = cluster.store(b"foo")
    for store in cluster.stores:
        store.script(Fault(status=503), method="GET")

    with pytest.raises(KeepReadError) as caught:
        client.probe_block(locator, wait=20)

    assert caught.value.cause is Cause.OTHER
    assert cluster.counts("GET") == [1, 1, 1]


@pytest.mark.parametrize(
    ("status", "cause"), [(404, Cause.NOT_FOUND), (403, Cause.DENIED), (401, Cause.DENIED)]
)
def test_a_probe_raises_not_found_when_all_services_have_answered(
    cluster: Cluster, client: KeepClient, status: int, cause: Cause
) -> None:
    locator = cluster.store(b"foo")
    for store in cluster.stores:
        store.always(Fault(status=status), method="GET")

    with pytest.raises(KeepReadError) as caught:
        client.probe_block(locator, wait=20)

    assert caught.value.cause is cause


def test_a_reader_that_joined_a_failed_probe_fetches_the_block(cluster: Cluster) -> None:
    client = cluster.client(retries=1)
    locator = cluster.store(b"foo")
    first, *others = cluster.by_probe_order(locator)
    first.script(Fault(status=503, hold=Stage.BEFORE_STATUS), method="GET")
    for store in others:
        store.script(Fault(status=503), method="GET")

    assert client.probe_block(locator, wait=0) is None
    first.wait_held(1)
    reader = Running(lambda: client.get_block(locator))
    wait_until(lambda: client.block_cache.statistics().joined == 1)
    first.release()

    assert bytes(reader.result()) == b"foo"


def test_a_probe_with_an_expired_signature_sends_head_and_caches_nothing(
    cluster: Cluster, client: KeepClient
) -> None:
    for store in cluster.stores:
        store.configure(signing=False)
    locator = cluster.store(b"foo")
    expired = KeepLocator(f"{FOO}+A{locator.perm_sig}@00000001")

    assert client.probe_block(expired, wait=20) == 3
    assert client.cached_block(locator) is None
    assert cluster.counts("GET") == [0, 0, 0]
    client.prefetch_block(expired)
    client.close()
    assert client.probe_block(expired, wait=20) is None


def test_a_probe_that_joined_a_failed_fetch_of_other_hints_fetches_again(
    cluster: Cluster, client: KeepClient
) -> None:
    locator = cluster.store(b"foo")
    first = cluster.by_probe_order(locator)[0]
    first.script(Fault(hold=Stage.BEFORE_STATUS), method="GET")
    unsigned = Running(lambda: client.get(FOO))
    first.wait_held(1)
    probe = Running(lambda: client.probe_block(locator, wait=20))
    wait_until(lambda: client.block_cache.statistics().joined == 1)
    first.release()

    assert isinstance(unsigned.failure(), KeepReadError)
    assert probe.result() == 3


def test_a_probe_that_joined_a_fetch_of_another_size_raises(
    cluster: Cluster, client: KeepClient
) -> None:
    locator = cluster.store(b"foo" * 30_000)
    first = cluster.by_probe_order(locator)[0]
    first.script(Fault(hold=Stage.MID_BODY), method="GET")
    reader = Running(lambda: client.get_block(locator))
    first.wait_held(1)

    with pytest.raises(KeepReadError) as caught:
        client.probe_block(KeepLocator(str(locator).replace("+90000+", "+99+")), wait=20)

    assert caught.value.cause is Cause.CORRUPT
    first.release()
    reader.result()


def test_a_prefetched_block_is_cached(cluster: Cluster, client: KeepClient) -> None:
    locator = cluster.store(b"foo")

    client.block_prefetch(str(locator))
    client.stop_prefetch_threads()

    assert client.is_cached(str(locator))
    assert client.get(str(locator)) == b"foo"
    assert sum(cluster.counts("GET")) == 1


# --- the token ---


def test_a_new_token_is_used_from_the_next_request_on(
    cluster: Cluster, client: KeepClient
) -> None:
    other = "v2/zzzzz-gj3su-000000000000000/anothersecret"
    locator = cluster.stores[0].store_block(b"foo", token=other)
    for store in cluster.stores[1:]:
        store.store_block(b"foo")
    with pytest.raises(KeepReadError):
        client.get(locator)

    client.api_token = f" {other} "

    assert client.api_token == other
    assert client.get(locator) == b"foo"


def test_a_token_that_fits_in_no_header_is_refused(client: KeepClient) -> None:
    with pytest.raises(ArgumentError) as caught:
        client.api_token = "s3cret\r\nX-Evil: 1"  # noqa: S105 - none

    assert "s3cret" not in str(caught.value)


def test_without_a_token_none_is_sent(cluster: Cluster) -> None:
    cluster.api.api_token = ""
    client = cluster.client()

    client.put(b"foo", copies=1)

    assert cluster.by_probe_order(b"foo")[0].log("PUT")[0].header("Authorization") is None


# --- refresh_signature, request ids, counters ---


def test_refresh_signature_requests_a_local_signature(
    cluster: Cluster, client: KeepClient
) -> None:
    locator = cluster.store(b"foo")
    first = cluster.by_probe_order(locator)[0]
    first.script(Fault(headers={"X-Keep-Locator": f"{FOO}+Anew"}), method="HEAD")

    assert client.refresh_signature(str(locator)) == f"{FOO}+Anew"
    asked = first.log("HEAD")[0].header("X-Keep-Signature")
    assert asked is not None
    assert re.fullmatch(r"local, \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", asked)
    when = dt.datetime.fromisoformat(asked.removeprefix("local, "))
    assert abs(when - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=5)


def test_refresh_signature_of_a_local_block_is_the_locator(
    cluster: Cluster, client: KeepClient
) -> None:
    locator = str(cluster.store(b"foo"))

    assert client.refresh_signature(locator) == locator


def test_a_request_has_an_id_from_any_source(cluster: Cluster) -> None:
    client = cluster.client()

    client.put(b"foo", copies=1)
    cluster.api.request_id = "req-of-the-api-client"
    client.put(b"foo", copies=1)
    client.put(b"foo", copies=1, request_id="req-given")

    ids = [it.header("X-Request-Id") for it in cluster.by_probe_order(b"foo")[0].log("PUT")]
    assert re.fullmatch(r"req-[0-9a-z]{20}", ids[0] or "")
    assert ids[1:] == ["req-of-the-api-client", "req-given"]


def test_all_requests_of_a_call_have_one_id(cluster: Cluster) -> None:
    client = cluster.client(retries=1)
    for store in cluster.stores:
        store.script(Fault(status=503), method="PUT")

    client.put(b"foo", copies=3)

    ids = {entry.header("X-Request-Id") for store in cluster.stores for entry in store.log("PUT")}
    assert len(ids) == 1


def test_the_counters_count(cluster: Cluster, client: KeepClient) -> None:
    locator = client.put(b"foo", copies=2)
    client.get(locator)
    client.get(locator)
    with pytest.raises(NotFoundError):
        client.get(cluster.stores[0].sign(BAR))

    assert client.upload_counter.get() == 6
    assert client.download_counter.get() == 3
    assert client.put_counter.get() == 1
    assert client.get_counter.get() == 3
    assert client.hits_counter.get() == 1
    assert client.misses_counter.get() == 2
    assert sum(client.counters.requests.get().values()) == 6
    assert sum(client.counters.failures.get().values()) == 3


# --- the SDK's other names ---


def test_roots_are_those_of_hints_first_and_weighted_services_after(
    cluster: Cluster, client: KeepClient
) -> None:
    gateway = "zzzzz-bi6l4-gateway00000000"
    cluster.api.lists[0].append(
        {
            "uuid": gateway,
            "service_host": "gw",
            "service_port": 1,
            "service_type": "gateway:test",
        }
    )
    ranked = [root(store) for store in cluster.by_probe_order(FOO)]
    locator = KeepLocator(f"{FOO}+K@xyzzy+K@{gateway}")

    assert client.weighted_service_roots(locator) == [
        "https://keep.xyzzy.arvadosapi.com/",
        "http://gw:1/",
        *ranked,
    ]
    assert client.weighted_service_roots(locator, need_writable=True) == ranked


def test_a_gateway_that_a_hint_names_is_asked_first(cluster: Cluster, client: KeepClient) -> None:
    gateway = cluster.stores[2]
    uuid = "zzzzz-bi6l4-gateway00000000"
    entry = ServiceEntry(
        uuid=uuid,
        service_host="127.0.0.1",
        service_port=gateway.port,
        service_type="gateway:test",
    )
    cluster.api.lists = [[*cluster.entries(*cluster.stores[:2]), entry]]
    locator = cluster.store(b"foo", gateway)

    assert client.get(f"{locator}+K@{uuid}") == b"foo"
    assert cluster.counts("GET") == [0, 0, 1]
    assert gateway.log("GET")[0].header("Authorization") == f"Bearer {TEST_TOKEN}"


def test_the_list_of_services_is_built_once_unless_forced(
    cluster: Cluster, client: KeepClient
) -> None:
    client.build_services_list()
    client.build_services_list()
    client.build_services_list(False)  # noqa: FBT003 - by place, as the SDK's callers may
    assert cluster.api.asked == 1

    client.build_services_list(force_rebuild=True)
    client.weighted_service_roots(KeepLocator(FOO), force_rebuild=True)

    assert cluster.api.asked == 3


def test_map_new_services_adds_what_is_new_and_leaves_the_headers(
    cluster: Cluster, client: KeepClient
) -> None:
    roots: dict[str, KeepService] = {}
    headers = {"X-Mine": "1"}

    order = client.map_new_services(
        roots, KeepLocator(FOO), force_rebuild=False, need_writable=False, headers=headers
    )
    before = dict(roots)
    again = client.map_new_services(
        roots, KeepLocator(FOO), force_rebuild=True, need_writable=False, headers=headers
    )

    assert order == again == [root(store) for store in cluster.by_probe_order(FOO)]
    assert roots == before
    assert headers == {"X-Mine": "1"}
    locator = cluster.store(b"foo")
    assert roots[order[0]].get(locator) == b"foo"


def test_the_current_timeout_depends_on_the_kind_of_services(cluster: Cluster) -> None:
    with (
        KeepClient(cluster.api, proxy="", local_store="") as disks,
        KeepClient(proxy="http://proxy/", local_store="") as proxies,
    ):
        assert disks.current_timeout(0) == (2, 256, 32768)
        assert disks.current_timeout(3) == (16, 256, 32768)
        assert proxies.current_timeout(0) == (20, 256, 32768)
        assert proxies.current_timeout(1) == (40, 256, 32768)


def test_small_methods_of_the_sdk(client: KeepClient) -> None:
    assert client._any_nondisk_services([{"service_type": "disk"}, {}]) is False  # noqa: SLF001 - the SDK's name
    assert client._any_nondisk_services([{"service_type": "proxy"}]) is True  # noqa: SLF001 - ditto
    assert (
        client._service_weight("d41d8cd98f00b204e9800998ecf8427e", "zzzzz-bi6l4-000000000000000")  # noqa: SLF001 - ditto
        == "32edec567ae8f2413932044af0f9a783"
    )


@pytest.mark.parametrize(
    ("result", "verdict"),
    [((b"x", 1), True), ((True, 3), True), ((None, 2), None), ((None, 0), False)],
)
def test_a_loop_result_is_classified_as_in_the_sdk(
    result: tuple[object, int], *, verdict: bool | None
) -> None:
    assert KeepClient._check_loop_result(result) is verdict  # noqa: SLF001 - the SDK's name


def test_a_local_store_has_no_services(tmp_path: Any) -> None:  # noqa: ANN401 - a path
    client = KeepClient(local_store=tmp_path)

    client.build_services_list(force_rebuild=True)
    assert client.weighted_service_roots(KeepLocator(FOO)) == []
    assert (
        client.map_new_services(
            {}, KeepLocator(FOO), force_rebuild=False, need_writable=False, headers={}
        )
        == []
    )
    assert client.current_timeout(1) == (4, 256, 32768)
    assert client.default_copies() is None
    assert client.api_token == ""
    client.api_token = "ignored"  # noqa: S105 - none
    client.close()


def test_the_clusters_default_replication(cluster: Cluster, client: KeepClient) -> None:
    cluster.api.cluster = {"Collections": {"DefaultReplication": 3}}

    assert client.default_copies() == 3


@pytest.mark.parametrize(
    "config", [{}, {"Collections": 5}, {"Collections": {"DefaultReplication": 0}}], ids=repr
)
def test_a_cluster_may_not_publish_its_default_replication(
    cluster: Cluster, client: KeepClient, config: dict[str, Any]
) -> None:
    cluster.api.cluster = config

    assert client.default_copies() is None


# --- replaced parts ---


def test_a_replaced_service_class_takes_effect(cluster: Cluster) -> None:
    class Counting(KeepService):
        made = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as given
            Counting.made += 1
            super().__init__(*args, **kwargs)

    class Mine(KeepClient):
        KeepService = Counting

    locator = cluster.store(b"foo")

    with Mine(cluster.api, proxy="", local_store="") as client:
        assert client.get(str(locator)) == b"foo"
    assert Counting.made == 3


def test_a_replaced_pool_class_takes_effect(cluster: Cluster) -> None:
    class Refusing(KeepWriterThreadPool):
        def join(self) -> None:
            """Do nothing."""

    class Mine(KeepClient):
        KeepWriterThreadPool = Refusing

    with Mine(cluster.api, proxy="", local_store="") as client, pytest.raises(KeepWriteError):
        client.put(b"foo")
    assert cluster.counts("PUT") == [0, 0, 0]


# --- ends ---


def test_every_call_ends_at_its_deadline(cluster: Cluster) -> None:
    client = cluster.client(retries=100, timeout=(2, 300, 1))
    locator = cluster.store(b"foo")
    for store in cluster.stores:
        store.always(Fault(hold=Stage.BEFORE_STATUS))

    for call in (
        lambda: client.get_block(locator, timeout=0.2),
        lambda: client.head_block(locator, timeout=0.2),
        lambda: client.put_block(b"bar", 2, timeout=0.2),
    ):
        with pytest.raises((KeepReadError, KeepWriteError)) as caught:
            call()

        assert caught.value.cause is Cause.TIMED_OUT
        assert "time is up" in str(caught.value)


def test_a_wait_for_another_readers_fetch_ends_at_the_deadline(cluster: Cluster) -> None:
    client = cluster.client()
    locator = cluster.store(b"foo")
    first = cluster.by_probe_order(locator)[0]
    first.always(Fault(hold=Stage.BEFORE_STATUS))
    reader = Running(lambda: client.get_block(locator))
    first.wait_held(1)

    with pytest.raises(KeepReadError) as caught:
        client.get_block(locator, timeout=0.05)

    assert caught.value.cause is Cause.TIMED_OUT
    first.release()
    assert bytes(reader.result()) == b"foo"


def test_a_wait_for_the_list_of_services_ends_at_the_deadline(cluster: Cluster) -> None:
    gate = threading.Event()

    class Slow(StandInApi):
        def execute(self) -> dict[str, Any]:
            gate.wait(20)
            return super().execute()

    client = cluster.client(api=Slow(cluster.entries(*cluster.stores)))
    locator = cluster.store(b"foo")

    with pytest.raises(KeepReadError) as caught:
        client.get_block(locator, timeout=0.05)

    assert caught.value.cause is Cause.TIMED_OUT
    gate.set()
    assert bytes(client.get_block(locator)) == b"foo"


def test_closing_the_client_ends_calls_in_progress(cluster: Cluster) -> None:
    client = cluster.client(retries=3)
    locator = cluster.store(b"foo")
    first = cluster.by_probe_order(locator)[0]
    first.always(Fault(hold=Stage.BEFORE_STATUS))
    client.probe_block(cluster.store(b"bar"), wait=0)
    reader = Running(lambda: client.get_block(locator))
    first.wait_held(1)

    client.close()

    assert "closed" in str(reader.failure())
    with pytest.raises(KeepReadError, match="closed"):
        client.get_block(locator)
    with pytest.raises(KeepWriteError, match="closed"):
        client.put_block(b"foo", 1)
    assert client.probe_block(locator, wait=0) is None


def test_a_client_can_be_shown(cluster: Cluster, client: KeepClient) -> None:
    client.build_services_list()

    assert root(cluster.stores[0]) in repr(client)
    assert TEST_TOKEN not in repr(client)


# --- which services ---


def test_without_settings_the_argument_error_names_both_ways(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,  # noqa: ANN401 - a path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))
    for name in ("ARVADOS_API_HOST", "ARVADOS_API_TOKEN", "KEEP_LOCAL_STORE"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(ArgumentError, match=r"ARVADOS_API_HOST.*local_store=DIRECTORY"):
        KeepClient()


def test_settings_and_a_given_token_make_a_client(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,  # noqa: ANN401 - a path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("ARVADOS_API_HOST", "api.invalid")
    monkeypatch.setenv("ARVADOS_API_TOKEN", "theirs")

    with KeepClient() as theirs, KeepClient(api_token="mine") as mine:  # noqa: S106 - none
        assert theirs.api_token == "theirs"  # noqa: S105 - none
        assert mine.api_token == "mine"  # noqa: S105 - none
        mine.api_token = "newer"  # noqa: S105 - none
        assert mine.api_token == "newer"  # noqa: S105 - none


def test_an_invalid_proxy_is_an_argument_error() -> None:
    with pytest.raises(ArgumentError, match="Invalid proxy URI"):
        KeepClient(proxy="keep", local_store="")


def test_a_request_id_that_is_no_text_is_replaced(cluster: Cluster) -> None:
    # A user's fake may be any object; its request id may be anything too.
    cluster.api.request_id = object()  # type: ignore[assignment] # that is the point
    client = cluster.client()

    client.put(b"foo")

    ids = {it.header("X-Request-Id") for it in cluster.stores[0].log("PUT")}
    assert all(re.fullmatch(r"req-[0-9a-z]{20}", each or "") for each in ids)


def test_a_local_keepstore_is_used_by_any_number_of_threads(cluster: Cluster) -> None:
    client = cluster.client(cache=KeepBlockCache(1))
    blocks = [b"%d" % number * 1000 for number in range(40)]

    writers = [Running(lambda it=block: client.put(it, copies=2)) for block in blocks]  # type: ignore[misc]
    locators = [writer.result() for writer in writers]
    readers = [Running(lambda it=locator: client.get(it)) for locator in locators]  # type: ignore[misc]

    assert [reader.result() for reader in readers] == blocks
    assert sum(cluster.counts("PUT")) == 80


# --- lists and arguments that can't be right ---


def test_read_only_services_alone_are_reported_as_read_only(cluster: Cluster) -> None:
    cluster.api.lists = [
        [dataclasses.replace(it, read_only=True) for it in cluster.entries(*cluster.stores)]
    ]

    with pytest.raises(KeepWriteError, match=r"all Keep services \(3\) are read-only") as caught:
        cluster.client().put(b"foo")

    assert caught.value.cause is Cause.READ_ONLY


def test_too_many_copies_are_refused_without_a_request(
    cluster: Cluster, client: KeepClient
) -> None:
    with pytest.raises(ArgumentError, match="1000000 copies"):
        client.put(b"foo", copies=1_000_000)

    assert cluster.counts("PUT") == [0, 0, 0]


def test_an_api_server_that_refuses_the_token_is_asked_once(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with ApiControls(listening=Listening(tls=authority.certify())) as api:
        api.always(Fault(status=401))
        found = ApiClient(f"https://{api.host}/", TEST_TOKEN, insecure=True)
        client = KeepClient(found, "", local_store="", num_retries=5)
        calls: list[Callable[[str], object]] = [client.get, client.put]
        for call in calls:
            with pytest.raises(KeepRequestError, match="401") as caught:
                call(FOO)
            assert caught.value.cause is Cause.DENIED
        client.close()

        assert len([it for it in api.log() if "keep_services" in it.target]) == 2


def test_a_refused_unsigned_locator_is_reported_as_unsigned(
    cluster: Cluster, client: KeepClient
) -> None:
    locator = cluster.store(b"foo")

    with pytest.raises(KeepReadError, match="the locator has no signature") as caught:
        client.get(f"{locator.md5sum}+3")

    assert caught.value.cause is Cause.DENIED
