"""Sources of collections: a local store, or the API server with the token of the mount."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from keepfs import stores
from keepfs.collections.local_collections import LocalCollections
from keepfs.collections.remote_collections import RemoteCollections
from keepfs.collections.remote_errors import CollectionError
from keepfs.config.arvados import load_settings
from keepfs.keep.errors import Cause

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.collections.records import CollectionRecord
    from keepfs.config.options import StoreOptions
    from keepfs.keep.client import KeepClient
    from keepfs.keep.services.api import ApiClient
    from keepfs.renewing_store import RenewingStore

#: Retry rounds of a request for a collection, and seconds for all rounds: the program that
#: looks the collection up waits.
_COLLECTION_RETRIES, _COLLECTION_TIMEOUT = 2, 60.0


class RenewingCollections:
    """The collections of a cluster, with the token of a `RenewingStore`.

    Any thread may use it. Requests have the latest token of the store.

    Args:
        api: Sends the requests; closed by `close`.
        client: The client of the store.
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
            CollectionError: It couldn't be read; the cause has the reason.
        """
        token = self._api.api_token = self._client.api_token
        try:
            return self._accepted(token, self._remote.get(name, with_manifest=with_manifest))
        except CollectionError as error:
            if error.cause is Cause.NOT_FOUND:
                self._store.note_accepted(token)
            if error.cause is not Cause.DENIED:
                raise
            if not self._store.renew() and self._client.api_token == token:
                raise
        token = self._api.api_token = self._client.api_token
        return self._accepted(token, self._remote.get(name, with_manifest=with_manifest))

    def _accepted(self, token: str, record: CollectionRecord) -> CollectionRecord:
        """Note that the API server has accepted the token.

        Reads of the record's blocks then use the disk cache without a request for each name.
        """
        self._store.note_accepted(token)
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
    """Open the source of collections; None if there is neither a local store nor an API server.

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
    api = stores.api_of(settings, client.api_token)
    with contextlib.closing(RenewingCollections(api, client, store)) as collections:
        yield collections
