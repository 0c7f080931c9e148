"""The real SDK and our client understand each other: same blocks, same names, same errors.

Both talk to the same test keepstores, or share a directory as local store.
"""

from __future__ import annotations

import gc
import re
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from keepfs.keep import KeepClient, KeepLocator
from keepfs.keep.services.discovery import Services, probe_order
from tests.keep.clusters import AT_ONCE, Cluster
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    ApiSettings,
    Authority,
    Fault,
    Listening,
    Stage,
    portable_data_hash,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the SDK's own imports say is not about us
    sdk = pytest.importorskip("arvados.keep")

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning:", "ignore::DeprecationWarning")

BLOCKS = [b"foo", b"x" * 65_536, bytes(range(256)) * 1024, b"\0" * 1_000_001]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run three keepstores."""
    with Cluster(3) as running:
        yield running


def theirs(cluster: Cluster, **arguments: Any) -> Any:  # noqa: ANN401 - the SDK has no types
    """Make the SDK's client of the cluster."""
    return sdk.KeepClient(
        cluster.api,
        proxy="",
        local_store="",
        block_cache=sdk.KeepBlockCache(cache_max=1 << 27),
        num_retries=0,
        timeout=(2, 1, 1),
        **arguments,
    )


@pytest.mark.parametrize("block", BLOCKS, ids=len)
def test_a_block_stored_by_the_sdk_is_read(cluster: Cluster, block: bytes) -> None:
    locator = theirs(cluster).put(block, copies=2)

    assert cluster.client().get(locator) == block


@pytest.mark.parametrize("block", BLOCKS, ids=len)
def test_the_sdk_reads_a_stored_block(cluster: Cluster, block: bytes) -> None:
    locator = cluster.client().put(block, copies=2)

    assert bytes(theirs(cluster).get(locator)) == block
    assert theirs(cluster).head(locator) is True


def test_both_put_a_block_on_the_same_services(cluster: Cluster) -> None:
    for number in range(8):
        block = b"block %d" % number
        digest = KeepLocator.of_block(block).md5sum
        cluster.client().put(block, copies=2)
        ours = {store.port for store in cluster.stores if store.content(digest)}
        for store in cluster.stores:
            store.remove_block(digest)
        theirs(cluster).put(block, copies=2)

        assert len(ours) == 2
        # The SDK may store a third copy.
        assert ours <= {store.port for store in cluster.stores if store.content(digest)}


def test_both_have_the_same_probe_order(cluster: Cluster) -> None:
    uris = " ".join(f"http://keep{number}:25107/" for number in range(12))
    client = sdk.KeepClient(proxy=uris, api_token="x", local_store="")  # noqa: S106 - none

    for number in range(20):
        locator = KeepLocator.of_block(b"%d" % number)
        ours = probe_order(locator, Services.of_uris(uris).records)

        assert client.weighted_service_roots(sdk.KeepLocator(str(locator))) == [
            each.root for each in ours
        ]
    assert cluster.api.asked == 0


@pytest.mark.parametrize("block", BLOCKS, ids=len)
def test_a_local_store_is_shared_in_both_directions(tmp_path: Path, block: bytes) -> None:
    ours = KeepClient(local_store=tmp_path)
    their = sdk.KeepClient(local_store=str(tmp_path))

    assert ours.get(their.put(block)) == block
    ours.put(block[1:])
    assert their.get(KeepLocator.of_block(block[1:]).stripped()) == block[1:]


# --- the same error for the same fault ---

FAULTS: dict[str, Fault] = {
    "404": Fault(status=404),
    "403": Fault(status=403),
    "410": Fault(status=410),
    "400": Fault(status=400),
    "401": Fault(status=401),
    "422": Fault(status=422),
    "500": Fault(status=500),
    "503": Fault(status=503),
    "507": Fault(status=507),
    "closed": Fault(close=Stage.BEFORE_STATUS),
    "cut": Fault(close=Stage.MID_BODY),
}


def raised(call: Callable[[], object]) -> str:
    """Name the class of the error that a call raises."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - that of either client
        return type(error).__name__
    return "nothing"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_raises_the_same_class_of_error(cluster: Cluster, name: str) -> None:
    locator = cluster.store(bytes(300_000))
    for store in cluster.stores:
        store.always(FAULTS[name])
    our_client, their_client = cluster.client(), theirs(cluster)

    for method in ("get", "head"):
        ours = raised(lambda it=method: getattr(our_client, it)(str(locator)))  # type: ignore[misc]
        their = raised(lambda it=method: getattr(their_client, it)(str(locator)))  # type: ignore[misc]
        assert ours == their, method
    assert raised(lambda: our_client.put(b"foo")) == raised(lambda: their_client.put(b"foo"))


def test_a_dead_service_raises_the_same_class_of_error(cluster: Cluster) -> None:
    locator = cluster.store(b"foo")
    for store in cluster.stores:
        store.go_down()
    our_client, their_client = cluster.client(), theirs(cluster)

    for name, argument in (("get", str(locator)), ("head", str(locator)), ("put", b"foo")):
        ours = raised(lambda n=name, a=argument: getattr(our_client, n)(a))  # type: ignore[misc]
        their = raised(lambda n=name, a=argument: getattr(their_client, n)(a))  # type: ignore[misc]
        assert ours == their


def test_a_corrupt_block_raises_the_same_class_of_error(cluster: Cluster) -> None:
    for block in (b"foo", bytes(300_000)):
        locator = cluster.store(block)
        for store in cluster.stores:
            store.corrupt(locator.md5sum)

        ours = raised(lambda it=locator: cluster.client().get(str(it)))  # type: ignore[misc]
        their = raised(lambda it=locator: theirs(cluster).get(str(it)))  # type: ignore[misc]
        assert ours == their == "KeepReadError"


def test_errors_have_the_same_services_and_message_without_signature(cluster: Cluster) -> None:
    locator = cluster.store(b"foo")
    for store in cluster.stores:
        store.always(Fault(status=503))

    errors: list[Any] = []
    for client in (cluster.client(), theirs(cluster)):
        with pytest.raises(Exception, match="failed to read") as caught:
            client.get(str(locator), request_id="req-x")
        errors.append(caught.value)

    ours, their = errors
    # The SDK's reasons have a line end, and its text the signature.
    text = str(their).replace("\r\n", "").replace(str(locator), locator.stripped())
    assert str(ours) == text
    assert list(ours.request_errors()) == list(their.request_errors())
    assert [it.status_code for it in ours.request_errors().values()] == [
        it.status_code for it in their.request_errors().values()
    ]


def test_a_not_found_error_has_the_same_text_without_signature(cluster: Cluster) -> None:
    locator = cluster.stores[0].sign("acbd18db4cc2f85cedef654fccc4a4d8+3")

    texts = []
    for client in (cluster.client(), theirs(cluster)):
        with pytest.raises(Exception, match="not found") as caught:
            client.get(locator, request_id="req-x")
        texts.append(str(caught.value).replace("\r\n", ""))

    assert texts[0] == texts[1].replace(locator, KeepLocator(locator).stripped())


def test_the_sdks_api_client_type_is_ours_to_use(cluster: Cluster) -> None:
    # A client made for one is a client for the other: the same object serves both.
    client = KeepClient(cluster.api, proxy="", local_store="")
    client.backoff = AT_ONCE

    assert client.get(theirs(cluster).put(b"foo")) == b"foo"
    assert client.api_token == TEST_TOKEN
    client.close()


@pytest.fixture
def server(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ApiControls]:
    """An API server that lists the cluster's keepstores, for the SDK's client of it."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    with ApiControls(ApiSettings(), listening=Listening(tls=authority.certify())) as started:
        started.list_services(cluster.entries(*cluster.stores))
        yield started
        # What the SDK's client left open is to warn here, where it is expected.
        gc.collect()


@pytest.mark.filterwarnings("ignore")  # the SDK's own libraries warn of themselves
def test_the_sdks_own_api_client_finds_services_for_us(
    cluster: Cluster, server: ApiControls
) -> None:
    import arvados  # noqa: PLC0415 - slow to import, and for few tests

    api = arvados.api("v1", host=server.host, token=TEST_TOKEN)
    with KeepClient(api_client=api, local_store="") as client:
        locator = client.put(b"found by the SDK's client", copies=1)
        client.block_cache.clear()

        assert client.get(locator) == b"found by the SDK's client"
        assert client.api_token == TEST_TOKEN
    api.close()
    assert sum(cluster.counts("PUT")) == 1


@pytest.mark.filterwarnings("ignore")  # the SDK's own libraries warn of themselves
def test_the_sdks_collections_read_and_write_with_our_client(
    cluster: Cluster, server: ApiControls
) -> None:
    import arvados.collection  # noqa: PLC0415 - slow to import, and for few tests

    api = arvados.api("v1", host=server.host, token=TEST_TOKEN)
    with KeepClient(api_client=api, local_store="") as client:
        collection = arvados.collection.Collection(None, api, client, replication_desired=1)
        for name, content in (("one", b"one"), ("d/two", b"two" * 1000)):
            with collection.open(name, "wb") as file:
                file.write(content)
        manifest = collection.manifest_text()
        name = portable_data_hash(manifest)
        assert collection.portable_data_hash() == name
        collection.stop_threads()
        server.configure(collections={name: manifest})
        client.block_cache.clear()

        reader = arvados.collection.CollectionReader(name, api, client)

        assert sorted(reader) == ["d", "one"]
        assert reader.open("one", "rb").read() == b"one"
        file = reader.open("d/two", "rb")
        for number in range(300):  # it prefetches at every 128th reading
            assert file.readfrom(number * 3, 3) == b"two"
        reader.stop_threads()
    api.close()
    assert sum(cluster.counts("GET")) == len(set(re.findall(r"[0-9a-f]{32}\+", manifest)))


def test_blocks_are_fetched_ahead_unless_that_is_turned_off(cluster: Cluster) -> None:
    with cluster.client() as client:
        locator = client.put(b"ahead", copies=1)
    for threads, cached in ((None, True), (1, True), (0, False)):
        with KeepClient(cluster.api, num_prefetch_threads=threads, local_store="") as client:
            client.block_prefetch(locator)
            client.stop_prefetch_threads()

            assert client.is_cached(locator) is cached
    with pytest.raises(ValueError, match="num_prefetch_threads is -1"):
        KeepClient(cluster.api, num_prefetch_threads=-1)
