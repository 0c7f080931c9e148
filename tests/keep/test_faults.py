"""Every fault of a keepstore and a keepproxy, and what get, head and put make of it.

A row is a way things are wrong; the columns say what each call comes to: None
is success, else the error's cause. `SDK` marks rows in which a read raises
`NotFoundError`, as the SDK's does.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import requests

from keepfs.keep import (
    Cause,
    KeepClient,
    KeepLocator,
    KeepReadError,
    KeepRequestError,
    KeepWriteError,
    NotFoundError,
)
from tests.keep.clusters import AT_ONCE, Cluster
from tests.keepstore import (
    TEST_TOKEN,
    Fault,
    KeepproxyControls,
    KeepstoreControls,
    ProxySettings,
    Stage,
    Store,
)
from tests.messages.provoking import assert_shows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

FOO = "acbd18db4cc2f85cedef654fccc4a4d8"
SMALL = b"foo"
LARGE = bytes(range(256)) * 1024  # four pieces of what keepstore checks and sends at once
ELSEWHERE = "v2/zzzzz-gj3su-000000000000000/anothersecret"

DENIED, FULL, OTHER = Cause.DENIED, Cause.FULL, Cause.OTHER
CORRUPT, MISSING, LATE = Cause.CORRUPT, Cause.NOT_FOUND, Cause.TIMED_OUT
GONE = Cause.UNREACHABLE


@dataclasses.dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        name: What is wrong.
        arrange: Makes it so, and returns the locator to read.
        get: What `get` comes to.
        head: What `head` comes to.
        put: What a put of the block comes to, on the same service.
        block: The block.
        is_not_found: Whether reads raise `NotFoundError`.
        token: The client's.
    """

    name: str
    arrange: Callable[[KeepstoreControls], str]
    get: Cause | None
    head: Cause | None
    put: Cause | None = None
    block: bytes = SMALL
    is_not_found: bool = False
    token: str = TEST_TOKEN


def stored(
    then: Callable[[KeepstoreControls, str], object], block: bytes = SMALL
) -> Callable[[KeepstoreControls], str]:
    """Store a block, then spoil something."""

    def arrange(store: KeepstoreControls) -> str:
        locator = store.store_block(block)
        then(store, locator[:32])
        return locator

    return arrange


def named(make: Callable[[str, str], str]) -> Callable[[KeepstoreControls], str]:
    """Store `foo`, and name it otherwise: `make` gets its locator's signature hint, and digest."""

    def arrange(store: KeepstoreControls) -> str:
        digest, _, signature = store.store_block(SMALL).split("+")
        return make(signature, digest)

    return arrange


def faulty(fault: Fault, block: bytes = SMALL) -> Callable[[KeepstoreControls], str]:
    """Store a block; every exchange then has a fault."""
    return stored(lambda store, _: store.always(fault), block)


def down(store: KeepstoreControls, _: str) -> None:
    """Refuse connections."""
    store.go_down()


def broken_and_empty(store: KeepstoreControls, digest: str) -> None:
    """Break the volume, and remove the block."""
    store.configure_volume(broken=True)
    store.remove_block(digest)


def full_and_empty(store: KeepstoreControls, digest: str) -> None:
    """Fill the volume, and remove the block."""
    store.configure_volume(capacity=3)
    store.remove_block(digest)


def without_signatures(store: KeepstoreControls) -> str:
    """Store `foo` where nothing is signed; name it by its digest alone."""
    store.configure(signing=False, key="")
    return store.store_block(SMALL)[:32]


def status(code: int) -> Callable[[KeepstoreControls], str]:
    """Answer everything with a status."""
    return faulty(Fault(status=code, body=b""))


ROWS = [
    # --- section 8: tokens and signatures ---
    Row("no token", stored(lambda *_: None), DENIED, DENIED, token=""),
    Row("unsigned", named(lambda _, digest: f"{digest}+3"), DENIED, DENIED),
    Row("bad signature", named(lambda _, d: f"{d}+3+A{'0' * 40}@ffffffff"), DENIED, DENIED),
    Row("another's token", stored(lambda *_: None), DENIED, DENIED, token=ELSEWHERE),
    Row("expired", named(lambda s, d: f"{d}+3+{s[:42]}00000001"), DENIED, DENIED),
    Row("missing", lambda store: store.sign(f"{FOO}+3"), MISSING, MISSING, is_not_found=True),
    Row("missing, unsigned", lambda _: f"{FOO}+3", DENIED, DENIED),
    Row("trashed", stored(KeepstoreControls.trash), MISSING, MISSING, is_not_found=True),
    Row("removed", stored(KeepstoreControls.remove_block), MISSING, MISSING, is_not_found=True),
    # --- sizes ---
    Row("digest alone, signing on", named(lambda _, digest: digest), DENIED, DENIED),
    Row("digest alone, signing off", without_signatures, None, None),
    Row("signed, without a size", named(lambda s, d: f"{d}+{s}"), None, None),
    Row("size too small", named(lambda s, d: f"{d}+2+{s}"), CORRUPT, CORRUPT),
    Row("size too big", named(lambda s, d: f"{d}+99+{s}"), CORRUPT, CORRUPT),
    Row("size 0", named(lambda s, d: f"{d}+0+{s}"), CORRUPT, CORRUPT),
    Row("size over 64 MiB", named(lambda s, d: f"{d}+67108865+{s}"), CORRUPT, CORRUPT),
    # --- copies that are damaged ---
    Row("corrupt, small", stored(KeepstoreControls.corrupt), CORRUPT, CORRUPT, OTHER),
    Row(
        "corrupt, large",
        stored(lambda store, digest: store.corrupt(digest, 70_000), LARGE),
        CORRUPT,
        CORRUPT,
        OTHER,
        LARGE,
    ),
    Row(
        "cut, small",
        stored(lambda store, digest: store.resize(digest, 2)),
        CORRUPT,
        CORRUPT,
        OTHER,
    ),
    Row(
        "cut, large",
        stored(lambda store, digest: store.resize(digest, 100_000), LARGE),
        CORRUPT,
        CORRUPT,
        OTHER,
        LARGE,
    ),
    Row("emptied", stored(lambda store, digest: store.resize(digest, 0)), CORRUPT, CORRUPT, OTHER),
    Row(
        "too long, small",
        stored(lambda store, digest: store.resize(digest, 4)),
        CORRUPT,
        CORRUPT,
        OTHER,
    ),
    Row(
        "too long, large: sent whole and right",
        stored(lambda store, digest: store.resize(digest, len(LARGE) + 9), LARGE),
        None,
        CORRUPT,
        OTHER,
        LARGE,
    ),
    Row(
        "over 64 MiB on disk",
        stored(lambda store, digest: store.resize(digest, 67_108_865)),
        OTHER,
        OTHER,
    ),
    Row(
        "a directory in its place", stored(KeepstoreControls.place_directory), OTHER, OTHER, OTHER
    ),
    # --- writing ---
    Row(
        "read-only",
        stored(lambda store, _: store.configure_volume(read_only=True)),
        None,
        None,
        FULL,
    ),
    Row(
        "full, but it has the block",
        stored(lambda store, _: store.configure_volume(capacity=3)),
        None,
        None,
    ),
    Row(
        "volume broken",
        stored(broken_and_empty),
        MISSING,
        MISSING,
        OTHER,
        is_not_found=True,
    ),
    Row(
        "full",
        stored(full_and_empty),
        MISSING,
        MISSING,
        FULL,
        is_not_found=True,
    ),
    # --- too much to do ---
    Row(
        "busy",
        stored(lambda store, _: store.configure(max_requests=0, max_queued=0)),
        OTHER,
        OTHER,
        OTHER,
    ),
    Row("keepstore's own deadline", status(499), LATE, LATE, LATE),
    Row("too many requests", status(429), OTHER, OTHER, OTHER),
    Row("request timeout", status(408), LATE, LATE, LATE),
    Row("gateway timeout", status(504), LATE, LATE, LATE),
    Row("any 500", status(500), OTHER, OTHER, OTHER),
    Row("not implemented", status(501), OTHER, OTHER, OTHER),
    Row("gone", status(410), MISSING, MISSING, OTHER, is_not_found=True),
    Row("a redirect", status(301), OTHER, OTHER, OTHER),
    # --- no answer ---
    Row("refused", stored(down), GONE, GONE, GONE),
    Row("closed unanswered", faulty(Fault(close=Stage.BEFORE_STATUS)), GONE, GONE, GONE),
    Row(
        "reset unanswered", faulty(Fault(close=Stage.BEFORE_STATUS, reset=True)), GONE, GONE, GONE
    ),
    Row("closed while sending", faulty(Fault(close=Stage.MID_BODY)), GONE, None, GONE),
    Row(
        "reset while sending",
        faulty(Fault(close=Stage.MID_BODY, reset=True), LARGE),
        GONE,
        None,
        GONE,
        LARGE,
    ),
    Row("silent", faulty(Fault(hold=Stage.BEFORE_STATUS)), LATE, LATE, LATE),
    Row(
        "silent in the middle", faulty(Fault(hold=Stage.MID_BODY), LARGE), LATE, None, LATE, LARGE
    ),
    # --- answers that can't be ---
    Row(
        "a 200 without a body",
        faulty(Fault(status=200, body=b"", headers={"Content-Length": "0"})),
        CORRUPT,
        None,
        OTHER,
    ),
    Row("another block", faulty(Fault(status=200, body=b"bar")), CORRUPT, None, OTHER),
    Row(
        "a foreign locator",
        faulty(Fault(body=b"37b51d194a7513e45b56f6524f2d51f2+3\n")),
        CORRUPT,
        CORRUPT,
        OTHER,
    ),
]


def outcome(call: Callable[[], object]) -> tuple[Cause | None, KeepRequestError | None]:
    """Make a call and return what it came to."""
    try:
        call()
    except KeepRequestError as error:
        return error.cause, error
    return None, None


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run one keepstore."""
    with Cluster(1) as running:
        yield running


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_keepstores_fault(row: Row, cluster: Cluster) -> None:
    cluster.api.api_token = row.token
    [store] = cluster.stores
    locator = row.arrange(store)
    # A silent service is given up after 0.2 seconds.
    with KeepClient(cluster.api, "", (2, 0.2, 1), (2, 0.2, 1), local_store="") as client:
        get, get_error = outcome(lambda: client.get(locator))
        head, head_error = outcome(lambda: client.head(locator))
        put, put_error = outcome(lambda: client.put(row.block, copies=1))

    assert (get, head, put) == (row.get, row.head, row.put)
    for error in (get_error, head_error):
        assert error is None or isinstance(error, KeepReadError)
        assert isinstance(error, NotFoundError) == (row.is_not_found and error is not None)
    assert put_error is None or isinstance(put_error, KeepWriteError)
    for failure in (get_error, head_error, put_error):
        assert TEST_TOKEN not in f"{failure} {failure!r}"


#: Of which the same service may be asked again, in the next round.
TRANSIENT = (408, 409, 423, 429, 499, 500, 502, 503, 504)
PERMANENT = (301, 302, 307, 400, 401, 403, 404, 405, 410, 413, 422, 501, 507)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
@pytest.mark.parametrize("code", [*TRANSIENT, *PERMANENT])
def test_a_transient_status_is_retried(code: int, method: str, cluster: Cluster) -> None:
    client = cluster.client(retries=2)
    [store] = cluster.stores
    locator = store.store_block(SMALL)
    store.always(Fault(status=code, body=b"", headers={"Location": f"{store.url}/x"}))
    call: dict[str, Callable[[], object]] = {
        "GET": lambda: client.get(locator),
        "HEAD": lambda: client.head(locator),
        "PUT": lambda: client.put(SMALL, copies=1),
    }

    with pytest.raises(KeepRequestError):
        call[method]()

    assert store.counts() == {method: 3 if code in TRANSIENT else 1}


def test_malformed_locators_are_not_found_without_a_request(cluster: Cluster) -> None:
    client = cluster.client()
    malformed = ["", "foo", FOO.upper() + "+3", f"{FOO}++3", f"{FOO}+3+", f"{FOO}+3+3", f"{FOO}/3"]

    for text in malformed:
        for call in (client.get, client.head):
            with pytest.raises(NotFoundError):
                call(text)

    assert cluster.stores[0].counts() == {}


def test_a_put_whose_body_does_not_match_fails_permanently(cluster: Cluster) -> None:
    client = cluster.client(retries=2)

    with pytest.raises(KeepWriteError, match="400 Bad Request"):
        client.put_block(b"bar", 1, locator=KeepLocator(f"{FOO}+3"))

    assert cluster.stores[0].counts() == {"PUT": 1}


def test_unknown_storage_classes_are_reported_as_full(cluster: Cluster) -> None:
    with pytest.raises(KeepWriteError) as caught:
        cluster.client().put(SMALL, classes=["unbacked"])

    assert caught.value.cause is FULL


# --- three services, one of them bad ---


def corrupt_all(store: KeepstoreControls) -> None:
    """Spoil every block."""
    for digest in store.blocks():
        store.corrupt(digest, 70_000)


WOES: dict[str, Callable[[KeepstoreControls], object]] = {
    "dead": KeepstoreControls.go_down,
    "silent": lambda store: store.always(Fault(hold=Stage.BEFORE_STATUS)),
    "crawling": lambda store: store.always(
        Fault(send_rate=2000, pause={Stage.BEFORE_STATUS: 0.01})
    ),
    "corrupt": corrupt_all,
    "full": lambda store: store.configure_volume(capacity=1, read_only=True),
    "busy": lambda store: store.configure(max_requests=0, max_queued=0),
    "erring": lambda store: store.always(Fault(status=500)),
}


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "second", "third"])
@pytest.mark.parametrize("woe", WOES)
def test_one_bad_service_of_three_does_not_fail_a_call(woe: str, place: int) -> None:
    with Cluster(3) as cluster:
        client = cluster.client(timeout=(2, 0.3, 100_000))
        locator = cluster.store(LARGE)
        written = LARGE[:-1] + b"x"
        WOES[woe](cluster.by_probe_order(locator)[place])
        before = sum(store.counts().get("PUT", 0) for store in cluster.stores)

        assert client.get(str(locator)) == LARGE
        receipt = client.put_block(written, copies=2)

        assert receipt.copies == 2
        puts = sum(store.counts().get("PUT", 0) for store in cluster.stores) - before
        assert puts <= 3
        digest = receipt.locator.md5sum
        whole = [store for store in cluster.stores if store.content(digest) == written]
        assert len(whole) <= 3
        assert bytes(client.get_block(receipt.locator)) == written
        for store in cluster.stores:
            store.heal()


def test_a_bad_copy_is_named_in_the_log_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    for block, position in ((SMALL, 0), (LARGE, 70_000)):
        with Cluster(2) as cluster:
            caplog.clear()
            client = cluster.client()
            locator = cluster.store(block)
            bad = cluster.by_probe_order(locator)[0]
            bad.corrupt(locator.md5sum, position)

            assert client.get(str(locator)) == block

            assert client.counters.bad_copies.get() == {f"{bad.url}/": 1}
            [record] = [it for it in caplog.records if it.levelname == "WARNING"]
            assert f"{bad.url}/" in record.getMessage()
            assert locator.stripped() in record.getMessage()
            assert_shows(record.getMessage(), "bad-copy")


@pytest.mark.parametrize(
    ("block", "spoil"),
    [
        (SMALL, lambda store, digest: store.corrupt(digest)),
        (SMALL, lambda store, digest: store.resize(digest, 2)),
        (LARGE, lambda store, digest: store.corrupt(digest, 70_000)),
        (LARGE, lambda store, digest: store.resize(digest, 100_000)),
        (SMALL, lambda store, _: store.always(Fault(status=200, body=b"bar"))),
    ],
    ids=["small", "small, cut", "large", "large, cut", "on the way"],
)
def test_copies_that_are_all_damaged_are_fetched_once_each(
    block: bytes, spoil: Callable[[KeepstoreControls, str], object]
) -> None:
    with Cluster(2) as cluster:
        locator = cluster.store(block)
        for store in cluster.stores:
            spoil(store, locator.md5sum)

        with pytest.raises(KeepReadError, match="after 1 attempt") as caught:
            cluster.client(retries=4).get(str(locator))

        assert caught.value.cause is CORRUPT
        assert [store.counts()["GET"] for store in cluster.stores] == [1, 1]


@pytest.mark.parametrize("is_ours", [True, False], ids=["our own HTTP", "a user's session"])
def test_a_service_that_ends_in_the_middle_of_a_block_has_no_bad_copy(
    caplog: pytest.LogCaptureFixture,
    cluster: Cluster,
    is_ours: bool,  # noqa: FBT001 - a column
) -> None:
    client = cluster.client(session=None if is_ours else requests.Session())
    locator = cluster.store(LARGE)
    cluster.stores[0].always(Fault(close_after=100_000), method="GET")

    with pytest.raises(KeepReadError, match="the connection ended after 100000") as caught:
        client.get(str(locator))

    assert caught.value.cause is GONE
    assert client.counters.bad_copies.get() == {}
    assert "bad copy" not in caplog.text


def test_a_block_that_was_cut_in_transit_is_fetched_again(cluster: Cluster) -> None:
    locator = cluster.store(LARGE)
    cluster.stores[0].script(Fault(close_after=100_000), method="GET")

    assert cluster.client(retries=1).get(str(locator)) == LARGE


@pytest.mark.parametrize("stage", [Stage.BEFORE_STATUS, Stage.BEFORE_BODY, Stage.MID_BODY])
def test_a_put_whose_answer_is_cut_is_retried(stage: Stage, cluster: Cluster) -> None:
    cluster.stores[0].script(Fault(close=stage), method="PUT")

    assert cluster.client(retries=1).put(SMALL, copies=1).startswith(FOO)


@pytest.mark.parametrize(
    ("first", "second", "cause"),
    [
        (404, 403, DENIED),
        (404, 401, DENIED),
        (404, 503, OTHER),
        (404, 504, LATE),
        (503, 401, DENIED),
        (410, 404, MISSING),
        (403, 403, DENIED),
    ],
)
def test_of_different_failures_the_one_a_user_can_act_on_is_the_cause(
    first: int, second: int, cause: Cause
) -> None:
    with Cluster(2) as cluster:
        locator = cluster.store(SMALL)
        one, other = cluster.by_probe_order(locator)
        one.always(Fault(status=first))
        other.always(Fault(status=second))

        with pytest.raises(KeepReadError) as caught:
            cluster.client().get(str(locator))

    assert caught.value.cause is cause
    assert isinstance(caught.value, NotFoundError) == ({first, second} <= {403, 404, 410})


def test_a_block_that_may_be_on_a_dead_service_is_not_reported_as_missing() -> None:
    with Cluster(2) as cluster:
        locator = cluster.stores[0].sign(f"{FOO}+3")
        cluster.stores[0].go_down()

        with pytest.raises(KeepReadError) as caught:
            cluster.client().get(locator)

    assert caught.value.cause is GONE
    assert not isinstance(caught.value, NotFoundError)


@pytest.mark.parametrize(
    ("statuses", "cause"),
    [
        ((507, 507), FULL),
        ((507, None), FULL),
        ((503, None), Cause.TOO_FEW_COPIES),
        ((503, 507), FULL),
        ((403, 507), DENIED),
        ((504, 507), LATE),
    ],
)
def test_the_cause_of_a_failed_put(statuses: tuple[int | None, ...], cause: Cause) -> None:
    with Cluster(2) as cluster:
        for store, code in zip(cluster.stores, statuses, strict=True):
            if code is not None:
                store.always(Fault(status=code), method="PUT")

        with pytest.raises(KeepWriteError) as caught:
            cluster.client().put(SMALL, copies=2)

    assert caught.value.cause is cause


# --- section 9: keepproxy, in front of two keepstores ---


@dataclasses.dataclass(frozen=True)
class ProxyRow:
    """One fault seen through a proxy; columns as in `Row`."""

    name: str
    arrange: Callable[[KeepproxyControls, list[KeepstoreControls]], str]
    get: Cause | None
    head: Cause | None
    put: Cause | None = None
    block: bytes = SMALL
    is_not_found: bool = False
    token: str = TEST_TOKEN


def behind(
    then: Callable[[list[KeepstoreControls], str], object], block: bytes = SMALL
) -> Callable[[KeepproxyControls, list[KeepstoreControls]], str]:
    """Store a block on the keepstores behind a proxy, then spoil something."""

    def arrange(_: KeepproxyControls, stores: list[KeepstoreControls]) -> str:
        locators = [store.store_block(block) for store in stores]
        then(stores, locators[0][:32])
        return locators[0]

    return arrange


def each(stores: list[KeepstoreControls], do: Callable[[KeepstoreControls], object]) -> None:
    """Do something to every keepstore."""
    for store in stores:
        do(store)


def one_dead_and_one_empty(stores: list[KeepstoreControls], digest: str) -> None:
    """Leave one keepstore that answers, and hasn't the block."""
    stores[0].go_down()
    stores[1].remove_block(digest)


def dead_proxy(proxy: KeepproxyControls, _: list[KeepstoreControls]) -> str:
    """Refuse connections."""
    proxy.go_down()
    return f"{FOO}+3"


def busy_proxy(proxy: KeepproxyControls, _: list[KeepstoreControls]) -> str:
    """Have too much to do."""
    proxy.configure(max_requests=0, max_queued=0)
    return f"{FOO}+3"


#: A proxy's 403: the SDK calls it not found; the cause says what it is.
REFUSED = (DENIED, DENIED, DENIED, SMALL, True)

PROXY_ROWS = [
    ProxyRow("well", behind(lambda *_: None), None, None),
    ProxyRow("no token", behind(lambda *_: None), *REFUSED, token=""),
    ProxyRow("unknown token", behind(lambda *_: None), *REFUSED, token=ELSEWHERE),
    ProxyRow(
        "missing",
        lambda _, stores: stores[0].sign(f"{FOO}+3"),
        MISSING,
        MISSING,
        is_not_found=True,
    ),
    ProxyRow("unsigned", lambda _, stores: stores[0].store_block(SMALL)[:34], DENIED, DENIED),
    ProxyRow(
        "size too small",
        lambda _, stores: stores[0].store_block(SMALL).replace("+3+", "+2+"),
        OTHER,
        OTHER,
    ),
    ProxyRow(
        "size too big",
        lambda _, stores: stores[0].store_block(SMALL).replace("+3+", "+99+"),
        CORRUPT,
        OTHER,
    ),
    ProxyRow(
        "corrupt everywhere, small",
        behind(lambda stores, digest: each(stores, lambda it: it.corrupt(digest))),
        CORRUPT,
        OTHER,
        Cause.TOO_FEW_COPIES,
    ),
    ProxyRow(
        "corrupt everywhere, large",
        behind(lambda stores, d: each(stores, lambda it: it.corrupt(d, 70_000)), LARGE),
        CORRUPT,
        OTHER,
        Cause.TOO_FEW_COPIES,
        LARGE,
    ),
    ProxyRow(
        "missing, and one keepstore is dead",
        behind(one_dead_and_one_empty),
        OTHER,
        OTHER,
        Cause.TOO_FEW_COPIES,
    ),
    ProxyRow(
        "keepstores full",
        behind(lambda stores, _: each(stores, lambda it: it.configure_volume(read_only=True))),
        None,
        None,
        Cause.TOO_FEW_COPIES,
    ),
    ProxyRow("proxy dead", dead_proxy, GONE, GONE, GONE),
    ProxyRow(
        "proxy busy",
        busy_proxy,
        OTHER,
        OTHER,
        OTHER,
    ),
]


@pytest.mark.parametrize("row", PROXY_ROWS, ids=lambda row: row.name)
def test_a_keepproxys_fault(row: ProxyRow, cluster: Cluster) -> None:
    with KeepstoreControls() as second:
        stores = [cluster.stores[0], second]
        behind_it = [Store(f"zzzzz-bi6l4-{n:015d}", it.url) for n, it in enumerate(stores)]
        with KeepproxyControls(ProxySettings(stores=behind_it)) as proxy:
            locator = row.arrange(proxy, stores)
            with KeepClient(proxy=proxy.url, api_token=row.token, local_store="") as client:
                client.backoff = AT_ONCE
                get, get_error = outcome(lambda: client.get(locator))
                head, _ = outcome(lambda: client.head(locator))
                put, _ = outcome(lambda: client.put(row.block, copies=2))

    assert (get, head, put) == (row.get, row.head, row.put)
    assert isinstance(get_error, NotFoundError) == row.is_not_found


def test_copies_that_a_proxy_could_not_make_are_reported(cluster: Cluster) -> None:
    store = Store("zzzzz-bi6l4-000000000000000", cluster.stores[0].url)
    with (
        KeepproxyControls(ProxySettings(stores=[store])) as proxy,
        KeepClient(proxy=proxy.url, api_token=TEST_TOKEN, local_store="") as client,
        pytest.raises(KeepWriteError, match="wanted 3 copies but wrote 1") as caught,
    ):
        client.put(SMALL, copies=3)

    assert caught.value.cause is Cause.TOO_FEW_COPIES


@pytest.mark.parametrize("signing", [True, False])
def test_a_proxy_is_asked_for_a_size_first(cluster: Cluster, signing: bool) -> None:  # noqa: FBT001
    [keepstore] = cluster.stores
    if not signing:
        keepstore.configure(signing=False, key="")
    digest, _, signature = keepstore.store_block(SMALL).partition("+3")
    store = Store("zzzzz-bi6l4-000000000000000", keepstore.url)
    with (
        KeepproxyControls(ProxySettings(stores=[store])) as proxy,
        KeepClient(proxy=proxy.url, api_token=TEST_TOKEN, local_store="") as client,
    ):
        assert client.get(f"{digest}{signature}") == SMALL
        assert proxy.counts() == {"HEAD": 1, "GET": 1}


def test_a_proxys_refusal_is_not_reported_as_not_found(cluster: Cluster) -> None:
    store = Store("zzzzz-bi6l4-000000000000000", cluster.stores[0].url)
    locator = cluster.store(SMALL)
    with (
        KeepproxyControls(ProxySettings(stores=[store])) as proxy,
        KeepClient(proxy=proxy.url, api_token=ELSEWHERE, local_store="") as client,
        pytest.raises(NotFoundError, match=r"failed to read .*\(the token, or") as caught,
    ):
        client.get(str(locator))

    assert "not found" not in str(caught.value)
    assert caught.value.cause is DENIED
