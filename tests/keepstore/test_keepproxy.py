"""A keepproxy and its keepstores work together, each in a process of its own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tests.keepstore import (
    Fault,
    KeepproxyControls,
    KeepstoreControls,
    ProxySettings,
    Store,
    refusing_port,
    start_process,
)

if TYPE_CHECKING:
    import requests

FOO = "acbd18db4cc2f85cedef654fccc4a4d8"


def test_a_block_goes_through_in_two_copies(session: requests.Session) -> None:
    with contextlib.ExitStack() as exits:
        stores = [exits.enter_context(start_process(KeepstoreControls)) for _ in range(3)]
        listed = [Store(f"zzzzz-bi6l4-{n:015d}", store.url) for n, store in enumerate(stores)]
        proxy = exits.enter_context(
            start_process(KeepproxyControls, settings=ProxySettings(stores=listed))
        )

        put = session.put(f"{proxy.url}/{FOO}", data=b"foo", timeout=10)
        got = session.get(f"{proxy.url}/{put.text}", timeout=10)

        assert put.headers["X-Keep-Replicas-Stored"] == "2"
        assert got.content == b"foo"
        # The order of the reference vectors: 0, 2, 1.
        assert [store.blocks() for store in stores] == [[FOO], [], [FOO]]
        assert proxy.counts() == {"PUT": 1, "GET": 1}
        assert [entry.header("Authorization") for entry in stores[0].log("PUT")] == [
            session.headers["Authorization"]
        ]


def test_a_temporary_failure_is_tried_again(session: requests.Session) -> None:
    with KeepstoreControls() as store, refusing_port() as port:
        listed = [
            Store("zzzzz-bi6l4-000000000000000", store.url),
            Store("zzzzz-bi6l4-000000000000001", f"http://127.0.0.1:{port}"),
        ]
        store.script(Fault(status=503))
        with KeepproxyControls(ProxySettings(stores=listed, replication=1)) as proxy:
            put = session.put(f"{proxy.url}/{FOO}", data=b"foo", timeout=10)

        assert put.status_code == 200
        assert len(store.log("PUT")) == 2
