"""Where the collections of a mount come from: a local store, or the API server with its token."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from keepfs.collections.local_collections import LocalCollections
from keepfs.collections.remote_collections import RemoteCollections
from keepfs.collections.remote_errors import CollectionError
from keepfs.config.arvados import load_settings
from keepfs.keep.errors import Cause
from keepfs.keep.services.api import ApiClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.collections.records import CollectionRecord
    from keepfs.config.options import StoreOptions
    from keepfs.keep.client import KeepClient
    from keepfs.renewing_store import RenewingStore

#: Rounds after the first of requests to the API server for a collection, and seconds that all
#: may take: the program that looks it up waits.
_COLLECTION_RETRIES, _COLLECTION_TIMEOUT = 2, 60.0


class RenewingCollections:
    """The collections of a cluster, with the token of a `RenewingStore`.

    Any thread may use it. What is asked for is asked with the store's latest token.

    Args:
        api: Asks the API server.
        client: The store's.
        store: Reads the token again when it is refused.
    """

    def __init__(self, api: ApiClient, client: KeepClient, store: RenewingStore) -> None:
        self._api = api
        self._client = client
        self._store = store
        self._remote = RemoteCollections(
            api, retries=_COLLECTION_RETRIES, total=_COLLECTION_TIMEOUT
        )

    def get(self, name: str, *, with_manifest: bool = True) -> CollectionRecord:
        """Return a collection by uuid or portable data hash. Blocks.

        Raises:
            CollectionError: It couldn't be had; the cause says why.
        """
        token = self._api.api_token = self._client.api_token
        try:
            return self._trusted(self._remote.get(name, with_manifest=with_manifest))
        except CollectionError as error:
            if error.cause is not Cause.DENIED:
                raise
            if not self._store.renew() and self._client.api_token == token:
                raise
        self._api.api_token = self._client.api_token
        return self._trusted(self._remote.get(name, with_manifest=with_manifest))

    def _trusted(self, record: CollectionRecord) -> CollectionRecord:
        """Have the blocks read from the disk cache without asking about each name."""
        if record.manifest is not None and self._api.api_token == self._client.api_token:
            self._client.trust_signed(record.manifest)
        return record

    def close(self) -> None:
        """End the requests under way."""
        self._api.close()


@contextlib.contextmanager
def collections_of(
    options: StoreOptions, client: KeepClient, store: RenewingStore
) -> Iterator[LocalCollections | RenewingCollections | None]:
    """Have where collections come from for a while; None where only services are known.

    Args:
        options: Where the blocks are.
        client: The client whose token is used.
        store: Reads the token again when it is refused.
    """
    if options.local_store is not None:
        yield LocalCollections(options.local_store)
        return
    settings = load_settings()
    if not settings.api_host:
        yield None
        return
    api = ApiClient.of_settings(settings, client.api_token)
    with contextlib.closing(RenewingCollections(api, client, store)) as collections:
        yield collections
