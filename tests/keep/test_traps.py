"""The traps of `requests`, and the ways a token could get out: none of them bites."""

from __future__ import annotations

import gc
import io
import logging
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import requests
from requests.adapters import BaseAdapter, HTTPAdapter

from keepfs.keep import (
    Cause,
    KeepBlockCache,
    KeepClient,
    KeepLocator,
    KeepReadError,
    KeepWriteError,
)
from keepfs.keep.http.exchange import Exchanges
from keepfs.keep.services.tokens import salted_token
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
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

FOO = "acbd18db4cc2f85cedef654fccc4a4d8+3"
SECRET = TEST_TOKEN.rpartition("/")[2]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run two keepstores."""
    with Cluster(2) as running:
        yield running


# --- requests ---


def test_netrc_does_not_replace_the_token(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password other\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    client = cluster.client()

    assert client.get(client.put(b"foo")) == b"foo"

    for store in cluster.stores:
        for entry in store.log():
            assert entry.header("Authorization") == f"Bearer {TEST_TOKEN}"


def test_the_environments_proxy_is_not_used(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/")
    monkeypatch.delenv("no_proxy", raising=False)
    client = cluster.client()

    assert client.get(client.put(b"foo")) == b"foo"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(cluster: Cluster, code: int) -> None:
    source, target = cluster.stores
    locator = source.store_block(b"foo")
    target.store_block(b"foo")
    cluster.api.lists = [cluster.entries(source)]
    source.always(Fault(status=code, headers={"Location": f"{target.url}/{locator}"}))
    client = cluster.client(retries=2)

    with pytest.raises(KeepReadError, match=str(code)):
        client.get(locator)
    with pytest.raises(KeepReadError, match=str(code)):
        client.head(locator)
    with pytest.raises(KeepWriteError, match=str(code)):
        client.put(b"bar", copies=1)

    assert target.counts() == {}
    assert source.counts() == {"GET": 1, "HEAD": 1, "PUT": 1}


def test_cookies_are_not_kept(cluster: Cluster) -> None:
    client = cluster.client()
    for store in cluster.stores:
        store.always(Fault(headers={"Set-Cookie": "a=b"}))

    client.get(client.put(b"foo"))

    assert all(entry.header("Cookie") is None for it in cluster.stores for entry in it.log())


def test_reading_an_endless_error_text_ends(cluster: Cluster) -> None:
    client = cluster.client(timeout=(2, 20, 1))
    locator = cluster.store(b"foo")
    bad = cluster.by_probe_order(locator)[0]
    bad.always(Fault(status=500, body=b"x" * 1000, hold=Stage.MID_BODY), method="GET")

    assert client.get(str(locator)) == b"foo"  # after a second, though 20 are allowed


def test_a_wrong_length_of_an_error_text_does_not_matter(cluster: Cluster) -> None:
    client = cluster.client()
    locator = cluster.store(b"foo")
    for store in cluster.stores:
        store.always(Fault(status=404, body=b"", headers={"Content-Length": "3"}, close_after=0))

    with pytest.raises(KeepReadError, match="404"):
        client.get(str(locator))


# --- speed ---


def test_a_call_to_a_slow_sender_ends(cluster: Cluster) -> None:
    client = cluster.client(timeout=(2, 0.3, 1_000_000))
    locator = cluster.store(bytes(400_000))
    slow = cluster.by_probe_order(locator)[0]
    slow.always(Fault(send_rate=100_000))

    assert len(client.get(str(locator))) == 400_000
    assert client.counters.failures.get() == {root(slow): 1}


def test_a_call_to_a_slow_receiver_ends(cluster: Cluster) -> None:
    with KeepstoreControls(listening=Listening(receive_buffer=4096)) as slow:
        slow.always(Fault(receive_rate=50_000))
        cluster.api.lists = [cluster.entries(slow)]
        client = cluster.client(timeout=(2, 0.3, 1_000_000))

        with pytest.raises(KeepWriteError, match=r"only \d+ bytes in 0\.\d seconds") as caught:
            client.put(bytes(20_000_000), copies=1)

    assert caught.value.cause is Cause.TIMED_OUT


def test_a_call_to_a_sender_above_the_least_rate_succeeds(cluster: Cluster) -> None:
    client = cluster.client(timeout=(2, 0.2, 10_000))
    locator = cluster.store(bytes(100_000))
    for store in cluster.stores:
        store.always(Fault(send_rate=200_000))

    assert len(client.get(str(locator))) == 100_000


def test_a_head_is_limited_too(cluster: Cluster) -> None:
    client = cluster.client(timeout=(2, 0.2, 1))
    locator = cluster.store(b"foo")
    for store in cluster.stores:
        store.always(Fault(hold=Stage.BEFORE_STATUS), method="HEAD")

    with pytest.raises(KeepReadError) as caught:
        client.head(str(locator))

    assert caught.value.cause is Cause.TIMED_OUT


# --- a user's session ---


class CountingAdapter(HTTPAdapter):
    """Counts what goes through it."""

    sent = 0

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:  # noqa: ANN401 - as given
        """Count, and send."""
        type(self).sent += 1
        return super().send(*args, **kwargs)


def test_a_users_adapters_are_used_and_left_open(cluster: Cluster) -> None:
    session = requests.Session()
    adapter = CountingAdapter()
    session.mount("http://", adapter)
    session.headers["X-Session"] = "not ours"
    session.auth = ("me", "other")
    locator = cluster.store(b"foo" * 100_000)

    with cluster.client(session=session) as client:
        assert len(client.get(str(locator))) == 300_000

    entry = cluster.by_probe_order(locator)[0].log()[0]
    assert CountingAdapter.sent == 1
    assert entry.header("X-Session") is None
    assert entry.header("Authorization") == f"Bearer {TEST_TOKEN}"
    assert session.get(f"{cluster.stores[0].url}/").status_code == 400  # theirs still works
    session.close()


def test_a_users_adapter_keeps_the_pace_too(cluster: Cluster) -> None:
    session = requests.Session()
    locator = cluster.store(bytes(400_000))
    slow = cluster.by_probe_order(locator)[0]
    slow.always(Fault(send_rate=100_000))
    client = cluster.client(timeout=(2, 0.3, 1_000_000), session=session)

    assert len(client.get(str(locator))) == 400_000
    assert client.counters.failures.get() == {root(slow): 1}
    session.close()


class CannedAdapter(BaseAdapter):
    """Answers by itself, and remembers what it was asked.

    Args:
        body: Of every answer.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.requests: list[requests.PreparedRequest] = []
        self._body = body

    def send(
        self,
        request: requests.PreparedRequest,
        *_: object,
        **__: object,
    ) -> requests.Response:
        """Answer."""
        self.requests.append(request)
        response = requests.Response()
        response.status_code = 200
        response.reason = "OK"
        response.request = request
        response.raw = io.BytesIO(self._body)
        return response

    def close(self) -> None:
        """Do nothing."""


def test_any_adapter_of_a_session_is_accepted(cluster: Cluster) -> None:
    session = requests.Session()
    session.mount("http://", CannedAdapter(b"foo"))
    client = cluster.client(session=session)

    assert client.get(FOO) == b"foo"
    assert client.get("acbd18db4cc2f85cedef654fccc4a4d8") == b"foo"
    with pytest.raises(KeepReadError, match="bad copy"):
        client.get("37b51d194a7513e45b56f6524f2d51f2+3")
    with pytest.raises(KeepReadError, match="more than"):
        client.get("37b51d194a7513e45b56f6524f2d51f2+2")


# --- where the token goes ---


def hinted_client(cluster: Cluster, token: str = TEST_TOKEN) -> tuple[KeepClient, CannedAdapter]:
    """Make a client for which the hosts that hints name are an adapter."""
    session = requests.Session()
    foreign = CannedAdapter(b"foo")
    session.mount("https://", foreign)
    cluster.api.api_token = token
    return cluster.client(session=session), foreign


def test_a_cluster_that_a_hint_names_gets_the_salted_token_and_is_asked_first(
    cluster: Cluster,
) -> None:
    client, foreign = hinted_client(cluster)
    locator = f"{cluster.stores[0].sign(FOO)}+K@xyzzy"

    assert client.get(locator) == b"foo"

    [request] = foreign.requests
    assert request.url == f"https://keep.xyzzy.arvadosapi.com/{locator}"
    assert request.headers["Authorization"] == f"Bearer {salted_token(TEST_TOKEN, 'xyzzy')}"
    assert SECRET not in str(request.headers)
    assert cluster.counts("GET") == [0, 0]


@pytest.mark.parametrize(
    ("token", "hint"),
    [
        ("a" * 50, "K@xyzzy"),  # of the old form
        ("whatever", "K@xyzzy"),
        (f"v2/zzzzz-gj3su-000000000000000/{'a' * 40}", "K@xyzzy"),  # salted already
        (TEST_TOKEN, "K@zzzzz"),  # that cluster's own: it would go unsalted
        ("", "K@xyzzy"),
    ],
)
def test_a_token_that_cannot_be_salted_is_not_sent(
    cluster: Cluster, token: str, hint: str
) -> None:
    client, foreign = hinted_client(cluster, token)

    with pytest.raises(KeepReadError, match=rf"hint not followed: \+{hint} needs an API token"):
        client.get(f"{FOO}+{hint}")

    assert foreign.requests == []


def test_writing_follows_no_hints(cluster: Cluster) -> None:
    client, foreign = hinted_client(cluster)

    client.put_block(b"foo", 2, locator=KeepLocator(f"{FOO}+K@xyzzy"))

    assert foreign.requests == []


def test_a_caller_cannot_put_another_token_into_the_headers(cluster: Cluster) -> None:
    client = cluster.client()
    locator = cluster.store(b"foo")

    assert client.get(str(locator), headers={"authorization": "Bearer other"}) == b"foo"


# --- where the token is not seen ---


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, body=TEST_TOKEN.encode()),
        Fault(status=403, body=b"token " + SECRET.encode()),
        Fault(close=Stage.BEFORE_STATUS),
        Fault(status=200, body=TEST_TOKEN.encode()),
        Fault(status=503, headers={"X-Echo": TEST_TOKEN}),
    ],
    ids=["500", "403", "closed", "200", "503"],
)
def test_no_failure_shows_the_token(
    cluster: Cluster, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = cluster.client(retries=1)
    locator = cluster.store(b"foo")
    for store in cluster.stores:
        store.always(fault)

    for call in (
        lambda: client.get(str(locator)),
        lambda: client.head(str(locator)),
        lambda: client.put(b"foo"),
    ):
        try:
            call()
        except (KeepReadError, KeepWriteError) as error:
            seen = [str(error), repr(error), repr(error.request_errors()), repr(vars(error))]
            seen += [repr(pickle.dumps(error)), repr(error.__cause__), repr(error.__context__)]
            assert not any(SECRET in text for text in seen)
    assert SECRET not in caplog.text


def test_no_repr_shows_the_token(cluster: Cluster) -> None:
    client = cluster.client()
    client.put(b"foo")
    services: dict[str, Any] = {}
    client.map_new_services(
        services, KeepLocator(FOO), force_rebuild=False, need_writable=False, headers={}
    )

    for thing in (client, client.counters, services, vars(client).values(), client.block_cache):
        assert SECRET not in repr(thing)


# --- memory ---


def test_a_failure_keeps_no_block_alive(cluster: Cluster) -> None:
    client = cluster.client()
    for store in cluster.stores:
        store.always(Fault(status=500))
    block = bytearray(b"foo")

    with pytest.raises(KeepWriteError) as caught:
        client.put(block)

    error, caught = caught.value.fresh(), None  # type: ignore[assignment] # forget the traceback
    gc.collect()
    block.clear()  # BufferError if anybody had a view of it still
    assert "failed to write" in str(error)


def test_idle_sessions_are_bounded(cluster: Cluster) -> None:
    client = cluster.client(cache=KeepBlockCache(1))
    locator = cluster.store(b"foo")

    for _ in range(40):
        client.get(str(locator))

    assert len({entry.connection for store in cluster.stores for entry in store.log()}) == 1


# --- TLS ---


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[KeepstoreControls, str]]:
    """Run a keepstore that speaks https, and name the bundle to check it by."""
    authority = Authority(tmp_path)
    with KeepstoreControls(listening=Listening(tls=authority.certify())) as store:
        yield store, authority.bundle


def test_certificates_are_checked_by_the_named_bundle(
    secure: tuple[KeepstoreControls, str], monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    store, bundle = secure
    monkeypatch.setenv("SSL_CERT_FILE", bundle)
    cluster.api.lists = [[ServiceEntry.of(store.url)]]
    client = cluster.client()

    block = b"foo" * 1_000_000
    assert client.get(client.put(block, copies=1)) == block
    assert store.url.startswith("https://")


def test_a_service_with_an_untrusted_certificate_is_not_used(
    secure: tuple[KeepstoreControls, str], cluster: Cluster
) -> None:
    store, _ = secure
    cluster.api.lists = [[ServiceEntry.of(store.url)]]

    with pytest.raises(KeepReadError, match="certificate verify failed") as caught:
        cluster.client().get(store.store_block(b"foo"))

    assert caught.value.cause is Cause.UNREACHABLE
    assert store.counts() == {}


def test_certificates_go_unchecked_where_the_user_says_so(
    secure: tuple[KeepstoreControls, str], cluster: Cluster
) -> None:
    store, _ = secure
    cluster.api.lists = [[ServiceEntry.of(store.url)]]
    cluster.api.insecure = True

    assert cluster.client().get(store.store_block(b"foo")) == b"foo"


def test_the_bundle_of_a_users_session_is_used(
    secure: tuple[KeepstoreControls, str], cluster: Cluster
) -> None:
    store, bundle = secure
    session = requests.Session()
    session.verify = bundle
    cluster.api.lists = [[ServiceEntry.of(store.url)]]

    assert cluster.client(session=session).get(store.store_block(b"foo")) == b"foo"
    session.close()


def test_a_users_http_proxy_is_used(cluster: Cluster) -> None:
    session = requests.Session()
    session.proxies = {"http": cluster.stores[1].url}
    cluster.api.lists = [[ServiceEntry.of("http://keep.invalid:25107")]]
    client = cluster.client(session=session)

    with pytest.raises(KeepReadError):
        client.get(FOO)

    assert cluster.stores[1].log()[0].target == f"http://keep.invalid:25107/{FOO}"
    session.close()


def test_after_close_no_exchange_begins() -> None:
    exchanges = Exchanges(verify=True)
    exchanges.close()

    with pytest.raises(ConnectionError):
        exchanges.begin(None)  # type: ignore[arg-type] # unused
