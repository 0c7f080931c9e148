"""Clusters for tests: keepstores on 127.0.0.1, and a client that finds them.

The API client is a stand-in with the SDK's duck type, as a user's may be; the
servers are real ones (`tests.keepstore`).
"""

from __future__ import annotations

import contextlib
import hashlib
import weakref
from typing import TYPE_CHECKING, Any, Self

from keepfs.keep import KeepClient, KeepLocator
from keepfs.keep.retry import Backoff
from keepfs.keep.services.discovery import Services, probe_order
from keepfs.keep.services.service import KeepService
from tests.keepstore import TEST_TOKEN, Controls, KeepstoreControls, ServiceEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import requests

    from keepfs.keep import KeepBlockCache
    from tests.keepstore import Listening, Settings

#: Waits between rounds that take no time.
AT_ONCE = Backoff(0.0, 1.0, 0.0)


class StandInApi:
    """Acts like the SDK's API client, as far as a Keep client asks one.

    Args:
        entries: The services it lists.

    Attributes:
        lists: Lists, or errors, for the next requests, one each; the last stays.
        asked: How many lists were asked for.
        cluster: What `config()` returns, or raises.
    """

    def __init__(self, entries: Sequence[ServiceEntry | dict[str, Any]] = ()) -> None:
        self.api_token = TEST_TOKEN
        self.insecure = False
        self.request_id: str | None = None
        self.lists: list[Any] = [list(entries)]
        self.asked = 0
        self.cluster: Any = {"StorageClasses": {}}

    def keep_services(self) -> Self:
        """Be the collection of services too."""
        return self

    def accessible(self) -> Self:
        """Be the request for them as well."""
        return self

    def execute(self) -> dict[str, Any]:
        """Return the list."""
        self.asked += 1
        entries = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        if isinstance(entries, Exception):
            raise entries
        return {
            "items": [
                each
                if isinstance(each, dict)
                else {name: getattr(each, name) for name in each.__slots__}
                for each in entries
            ]
        }

    def config(self) -> Any:  # noqa: ANN401 - also what it shouldn't
        """Return the cluster's configuration."""
        if isinstance(self.cluster, Exception):
            raise self.cluster
        return self.cluster


class Cluster:
    """Running keepstores, listed by a stand-in for an API client.

    Args:
        stores: How many.
        kind: What they are listed as.
        settings: Of all of them.
        listening: Says for each how it listens.
    """

    def __init__(
        self,
        stores: int = 1,
        kind: str = "disk",
        settings: Settings | None = None,
        listening: Callable[[], Listening | None] = lambda: None,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self.stores = [
            self._stack.enter_context(KeepstoreControls(settings, listening=listening()))
            for _ in range(stores)
        ]
        self.kind = kind
        self.api = StandInApi(self.entries(*self.stores))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def entries(self, *servers: Controls) -> list[ServiceEntry]:
        """List servers, each under a number of its own."""
        return [
            ServiceEntry.of(server.url, number, kind=self.kind)
            for number, server in enumerate(servers)
        ]

    def client(
        self,
        *,
        cache: KeepBlockCache | None = None,
        retries: int = 0,
        timeout: Any = (2, 20, 1),  # noqa: ANN401 - any form
        session: requests.Session | None = None,
        api: StandInApi | None = None,
    ) -> KeepClient:
        """Make a client, closed with the cluster; it doesn't wait between rounds."""
        client = KeepClient(
            api or self.api,
            proxy="",
            local_store="",
            block_cache=cache,
            num_retries=retries,
            timeout=timeout,
            proxy_timeout=timeout,
            session=session,
        )
        client.backoff = AT_ONCE
        return self._stack.enter_context(client)

    def by_probe_order(self, locator: KeepLocator | str | bytes) -> list[KeepstoreControls]:
        """Return the keepstores as a block's reader asks them."""
        if isinstance(locator, bytes):
            locator = hashlib.md5(locator, usedforsecurity=False).hexdigest()
        name = locator if isinstance(locator, KeepLocator) else KeepLocator(locator)
        services = Services.of_list(self.api.execute()["items"])
        self.api.asked -= 1
        by_port = {store.port: store for store in self.stores}
        ranked = probe_order(name, services.records)
        return [by_port[int(each.root.rstrip("/").rpartition(":")[2])] for each in ranked]

    def store(self, block: bytes, *servers: KeepstoreControls) -> KeepLocator:
        """Put a block on keepstores, all when none is named, and return its signed locator."""
        names = [each.store_block(block) for each in servers or self.stores]
        return KeepLocator(names[0])

    def counts(self, method: str) -> list[int]:
        """Count the requests of each keepstore."""
        return [store.counts().get(method, 0) for store in self.stores]


def root(server: Controls) -> str:
    """Return a server's root as errors and receipts name it."""
    return f"{server.url}/"


def noting(made: list[weakref.ref[KeepService]]) -> type[KeepService]:
    """Return a class of services that adds each of its objects to a list, without keeping it."""

    class Noting(KeepService):
        def __init__(self, *args: Any, **named: Any) -> None:  # noqa: ANN401 - as its parent
            super().__init__(*args, **named)
            made.append(weakref.ref(self))

    return Noting
