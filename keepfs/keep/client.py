"""KeepClient: a replacement for the SDK's class, with its names, defaults and results.

Other modules do the work: `blocks` reads and writes through the cache, `remote` uses
the services, `local` a directory.
"""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from keepfs.config.arvados import local_store_directory
from keepfs.keep.attributes import ClientAttributes
from keepfs.keep.buffers import as_buffer, as_bytes
from keepfs.keep.counters import Counters
from keepfs.keep.errors import KeepWriteError, NotFoundError
from keepfs.keep.http.timeouts import DEFAULT_PROXY_TIMEOUT, DEFAULT_TIMEOUT, Timeouts
from keepfs.keep.local import LocalStore
from keepfs.keep.locator import EMPTY_BLOCK, MAX_BLOCK_SIZE, KeepLocator, parse_list
from keepfs.keep.services import service, writer_queue, writers
from keepfs.keep.services.api import ApiClient
from keepfs.keep.services.connect import connect
from keepfs.keep.services.discovery import Access, Services, weight
from keepfs.keep.views import ViewClient

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import requests
    from typing_extensions import Buffer

    from keepfs.keep.caching.cache import KeepBlockCache
    from keepfs.keep.services.remote import RemoteStore
    from keepfs.keep.store import Store


class KeepClient(ClientAttributes, ViewClient):
    """Reads and writes blocks. Any thread may use it.

    Args:
        api_client: Finds the services: an `ApiClient`, the SDK's API client, or a
            compatible object. None: made from the Arvados settings.
        proxy: Base URLs of services to use instead of discovery, separated by blanks.
            None: `ARVADOS_KEEP_SERVICES`, else `ARVADOS_KEEP_PROXY`. Empty: discovery.
        timeout: Seconds to connect, seconds of the interval over which the rate is
            measured, and the least rate in bytes per second; or the first two; or one
            number for both. The connect timeout doubles with each round.
        proxy_timeout: The same, used if any service is a proxy.
        api_token: The token if `api_client` is None; None: from the settings.
        local_store: A directory to use instead of services. None: `$KEEP_LOCAL_STORE`.
            Empty: services.
        block_cache: Shared with other clients; None: a new one of 256 MiB.
        num_retries: Rounds after the first, the default of all calls.
        session: Provides adapters, TLS and proxy settings; None: the defaults.
        num_prefetch_threads: Blocks that the SDK's file readers fetch ahead; None: 2;
            0 disables `block_prefetch`.

    Raises:
        ArgumentError: The addresses of the services are unknown, or a proxy isn't a URL.
        TypeError: `block_cache` is the SDK's.
        ValueError: Both `api_client` and `api_token` are given, or a timeout or
            `num_prefetch_threads` is invalid.
    """

    DEFAULT_TIMEOUT = DEFAULT_TIMEOUT
    DEFAULT_PROXY_TIMEOUT = DEFAULT_PROXY_TIMEOUT

    # The SDK nests these classes here, and programs use, patch and replace them by that
    # path. They are defined in other modules. The client creates services and pools
    # through these attributes, so a replacement takes effect.
    KeepService: TypeAlias = service.KeepService
    KeepWriterQueue: TypeAlias = writer_queue.KeepWriterQueue
    KeepWriterThread: TypeAlias = writers.KeepWriterThread
    KeepWriterThreadPool: TypeAlias = writers.KeepWriterThreadPool

    def __init__(
        self,
        api_client: Any = None,  # noqa: ANN401 - anything that acts like the SDK's
        proxy: str | None = None,
        timeout: float | tuple[float, ...] = DEFAULT_TIMEOUT,
        proxy_timeout: float | tuple[float, ...] = DEFAULT_PROXY_TIMEOUT,
        api_token: str | None = None,
        local_store: str | os.PathLike[str] | None = None,
        block_cache: KeepBlockCache | None = None,
        num_retries: int = 0,
        session: requests.Session | None = None,
        num_prefetch_threads: int | None = None,
    ) -> None:
        if api_client is not None and api_token is not None:
            raise ValueError("give api_client or api_token, not both")
        if num_prefetch_threads is not None and num_prefetch_threads < 0:
            raise ValueError(f"num_prefetch_threads is {num_prefetch_threads}: give 0 or more")
        self.num_prefetch_threads = 2 if num_prefetch_threads is None else num_prefetch_threads
        directory = local_store_directory() if local_store is None else os.fspath(local_store)
        self.local_store = directory or None
        self._api_client = api_client
        self._remote: RemoteStore | None = None
        self._insecure = False
        self.counters = Counters()
        store: Store
        if directory:
            store = LocalStore(directory, self.counters)
        else:
            self._remote, self._api_client, self._insecure = connect(
                self, self.counters, api_client, proxy, api_token, session
            )
            self._remote.timeout = Timeouts.of(timeout)
            self._remote.proxy_timeout = Timeouts.of(proxy_timeout)
            store = self._remote
        super().__init__(store, block_cache, num_retries, self.counters, signs=not directory)
        # The SDK's names of the counters.
        self.upload_counter = self.counters.upload
        self.download_counter = self.counters.download
        self.put_counter = self.counters.puts
        self.get_counter = self.counters.gets
        self.hits_counter = self.counters.hits
        self.misses_counter = self.counters.misses

    def __repr__(self) -> str:
        return f"KeepClient({self.local_store or self._remote!r})"

    def close(self) -> None:
        """End the calls in progress, and close all connections; see `BlockClient.close`."""
        super().close()
        if isinstance(self._api_client, ApiClient):
            self._api_client.close()

    # --- information ------------------------------------------------------

    @property
    def api_token(self) -> str:
        """The token of later requests; it may be replaced at any time."""
        return self._remote.api_token if self._remote else ""

    @api_token.setter
    def api_token(self, token: str) -> None:
        if self._remote:
            self._remote.api_token = token
            self._grants.clear()
        if isinstance(self._api_client, ApiClient):
            self._api_client.api_token = self.api_token

    def trust_signed(self, manifest: bytes) -> None:
        """With a disk cache, record the locators of a manifest as accepted by the services.

        Args:
            manifest: A manifest that the API server has just signed for this token.
        """
        if self.block_cache.disk is not None:
            self._grants.signed(manifest)

    def _token(self) -> str:
        return self.api_token

    # --- services ---------------------------------------------------------

    def _any_nondisk_services(self, service_list: Iterable[Mapping[str, Any]]) -> bool:
        """Return whether any of these service records is not a keepstore's."""
        return any(record.get("service_type", "disk") != "disk" for record in service_list)

    def build_services_list(self, force_rebuild: bool = False) -> None:  # noqa: FBT001, FBT002 - the SDK's signature
        """Fetch the list of services unless it is known. Blocks.

        Args:
            force_rebuild: Fetch it even if it is known.

        Raises:
            NoKeepServersError: No list is known, and none could be fetched.
        """
        if self._remote:
            self._services(force=force_rebuild)

    def _service_weight(self, data_hash: str, service_uuid: str) -> str:
        """Return the weight of a service for a block: the heaviest is probed first."""
        return weight(data_hash, service_uuid)

    def weighted_service_roots(
        self,
        locator: KeepLocator,
        force_rebuild: bool = False,  # noqa: FBT001, FBT002 - the SDK's signature
        need_writable: bool = False,  # noqa: FBT001, FBT002 - the SDK's signature
    ) -> list[str]:
        """Return the roots to read a block from, or to store it at, in probe order. Blocks.

        For a read, the services that the locator's hints name come first, as in the SDK.

        Raises:
            NoKeepServersError: The services aren't known.
        """
        if not self._remote:
            return []
        access = Access.WRITE if need_writable else Access.READ
        return self._remote.roots(locator, self._services(force=force_rebuild), access)

    def map_new_services(
        self,
        roots_map: dict[str, service.KeepService],
        locator: KeepLocator,
        force_rebuild: bool,  # noqa: FBT001 - the SDK's signature
        need_writable: bool,  # noqa: FBT001 - the SDK's signature
        headers: Mapping[str, str],
    ) -> list[str]:
        """Add a service to `roots_map` for each root it lacks; return the roots in probe order.

        The services send `headers` with their requests, and do not change them. Blocks.

        Raises:
            NoKeepServersError: The services aren't known.
        """
        if not self._remote:
            return []
        access = Access.WRITE if need_writable else Access.READ
        services = self._services(force=force_rebuild)
        return self._remote.add_services(roots_map, services, locator, access, headers)

    def _services(self, *, force: bool) -> Services:
        if not self._remote:
            return Services()
        roster, patience = self._remote.roster, self._call().remaining()
        known = roster.known()
        return roster.refreshed(known, patience) if force and known else roster.current(patience)

    # --- reading ----------------------------------------------------------

    def get(
        self,
        loc_s: str,
        num_retries: int | None = None,
        request_id: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        """Return the concatenation of one or several comma-separated blocks. Blocks.

        Raises:
            TypeError: `loc_s` isn't text.
            NotFoundError: No service has one of them, or a part of `loc_s` isn't a locator.
            KeepReadError: One couldn't be read; `cause` has the reason.
        """
        block = self._get_or_head(loc_s, "GET", num_retries, request_id, headers)
        if not isinstance(block, bytes):
            raise TypeError("a GET returns bytes")
        return block

    def head(
        self,
        loc_s: str,
        num_retries: int | None = None,
        request_id: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Literal[True] | str:
        """Return the locator in the answer of a service that has the block; True without one.

        Blocks. Of several comma-separated blocks, all are checked, and the answer is that
        for the last.

        Raises:
            NotFoundError: No service has one of them, or a part of `loc_s` isn't a locator.
            KeepReadError: No service could answer; `cause` has the reason.
        """
        found = self._get_or_head(
            loc_s, "HEAD", num_retries=num_retries, request_id=request_id, headers=headers
        )
        if isinstance(found, bytes):
            raise TypeError("a HEAD returns no bytes")
        return found

    def _get_or_head(
        self,
        loc_s: str,
        method: str = "GET",
        num_retries: int | None = None,
        request_id: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes | Literal[True] | str:
        try:
            locators = parse_list(loc_s)
        except ValueError as error:
            raise NotFoundError(str(error)) from error
        request_id = request_id or self._request_id()
        if method == "HEAD":
            found: Literal[True] | str = True
            for locator in locators:
                if locator.md5sum != EMPTY_BLOCK.md5sum or locator.size:
                    call = self._call(num_retries, request_id, headers)
                    found = self._store.find(locator, call).locator or True
            return found
        blocks = [self.get_block(it, num_retries, request_id, headers) for it in locators]
        return as_bytes(blocks[0]) if len(blocks) == 1 else b"".join(blocks)

    def get_from_cache(self, loc: str) -> bytes | None:
        """Return a block if it is in the memory cache, else None; sends no request.

        Raises:
            ValueError: `loc` isn't a locator.
        """
        block = self.cached_block(KeepLocator(loc))
        return None if block is None else as_bytes(block)

    def is_cached(self, locator: str) -> bool:
        """Return whether a block is in the memory cache; see `get_from_cache`."""
        return self.cached_block(KeepLocator(locator)) is not None

    def block_prefetch(self, locator: str) -> None:
        """Start to fetch a block into the cache, unless that is disabled. Doesn't block."""
        if self.num_prefetch_threads:
            self.prefetch_block(KeepLocator(locator))

    def stop_prefetch_threads(self) -> None:
        """Wait until no background fetch is in progress, for `total_timeout` at most. Blocks."""
        self._background.wait_until_idle(self.total_timeout)

    def refresh_signature(self, loc: str) -> str:
        """Copy a block of another cluster to this one, and return its local, signed locator.

        Blocks. A locator of this cluster is returned unchanged: only the API server, or
        storing the block again, renews its signature.

        Raises:
            KeepReadError: The block couldn't be copied; `cause` has the reason.
        """
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        found = self.head(loc, headers={"X-Keep-Signature": f"local, {now}"})
        return found if isinstance(found, str) else loc

    # --- writing ----------------------------------------------------------

    def put(
        self,
        data: Buffer | str,
        copies: int = 2,
        num_retries: int | None = None,
        request_id: str | None = None,
        classes: Iterable[str] | None = None,
    ) -> str:
        """Store a block and return its locator. Blocks.

        Args:
            data: At most 64 MiB; a str is encoded as UTF-8.
            copies: Replicas to be confirmed, at most 1,000. Below 1 nothing is stored, and
                the unsigned locator is returned.
            num_retries: Rounds after the first; None: the client's default.
            request_id: Sent with the requests; None: a new one.
            classes: Storage classes; None or empty: the cluster's defaults.

        Raises:
            TypeError: `data` is neither a buffer nor a str.
            ArgumentError: `copies` is too large.
            KeepWriteError: The block is too large, or too few copies are confirmed;
                `cause` has the reason.
        """
        block = as_buffer(data)
        if copies < 1:
            if memoryview(block).nbytes > MAX_BLOCK_SIZE:
                raise KeepWriteError(f"a block has at most {MAX_BLOCK_SIZE} bytes")
            return str(KeepLocator.of_block(block))
        wanted = tuple(classes or ()) or None
        return str(self.put_block(block, copies, wanted, num_retries, request_id).locator)

    def local_store_put(
        self,
        data: Buffer | str,
        copies: int = 1,
        num_retries: int | None = None,
        request_id: str | None = None,
        classes: Iterable[str] | None = None,
    ) -> str:
        """Store a block, as `put` does; at least one copy. The SDK's method for a local store."""
        return self.put(data, max(copies, 1), num_retries, request_id, classes)

    def local_store_get(
        self, loc_s: str, num_retries: int | None = None, request_id: str | None = None
    ) -> bytes:
        """Read blocks, as `get` does. The SDK's method for a local store."""
        return self.get(loc_s, num_retries, request_id)

    def local_store_head(
        self, loc_s: str, num_retries: int | None = None, request_id: str | None = None
    ) -> Literal[True] | str:
        """Check blocks, as `head` does. The SDK's method for a local store."""
        return self.head(loc_s, num_retries, request_id)

    # --- inside -----------------------------------------------------------

    def _request_id(self) -> str:
        """Return the API client's request id, or make a new one."""
        given = getattr(self._api_client, "request_id", None)
        return given if isinstance(given, str) and given else super()._request_id()

    @staticmethod
    def _check_loop_result(result: tuple[object, int]) -> bool | None:
        """Classify the result of a round, as the SDK's loops do.

        Args:
            result: The result of the round, or None; and the number of services asked.

        Returns:
            True if there is a result other than an exception; False if no service was
            asked; None if another round may help.
        """
        brought, asked = result
        if brought is not None and not isinstance(brought, Exception):
            return True
        return None if asked else False
