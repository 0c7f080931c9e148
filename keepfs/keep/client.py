"""KeepClient: the SDK's class of that name: its names, defaults and results.

What they do is done below: blocks and their cache in `blocks`, the services
in `remote`, a directory in `local`.
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
    """Reads and writes blocks.

    Args:
        api_client: Finds the services: ours, the SDK's, or any that acts like
            them. Without one, it is made from Arvados's settings.
        proxy: Keep proxies to use instead of finding services, blank-separated;
            `ARVADOS_KEEP_SERVICES`, then `ARVADOS_KEEP_PROXY`, when None; an
            empty string means none.
        timeout: Seconds to connect, seconds of the interval over which the
            speed is measured, bytes a second that it must reach; or the first
            two; or one number for both. The connect part doubles each round.
        proxy_timeout: The same, where any service is a proxy.
        api_token: For proxies, without an API client; from the settings when None.
        local_store: A directory instead of services; `$KEEP_LOCAL_STORE` when
            None; an empty string means services.
        block_cache: Shared with other clients if given; else one of 256 MiB.
        num_retries: Default for get and put.
        session: A session whose adapters, TLS and proxy settings are used.
        num_prefetch_threads: Blocks that the SDK's file readers fetch ahead, 2 when
            None; 0 turns `block_prefetch` off.

    Raises:
        ArgumentError: Nothing says where the services are, or a proxy is no URL.
        TypeError, ValueError: `block_cache` is the SDK's; both `api_client` and
            `api_token` are given; a timeout or `num_prefetch_threads` can't be.
    """

    DEFAULT_TIMEOUT = DEFAULT_TIMEOUT
    DEFAULT_PROXY_TIMEOUT = DEFAULT_PROXY_TIMEOUT

    # The SDK nests these classes here, and its users name, patch and replace
    # them by that path. They live in modules of their own; the client makes
    # services and pools through itself, so a replacement takes effect.
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
        store: Store = LocalStore(directory, self.counters)
        if not directory:
            self._remote, self._api_client, self._insecure = connect(
                self, self.counters, api_client, proxy, api_token, session
            )
            self._remote.timeout = Timeouts.of(timeout)
            self._remote.proxy_timeout = Timeouts.of(proxy_timeout)
            store = self._remote
        super().__init__(store, block_cache, num_retries, self.counters, signs=not directory)
        # The SDK's names of them.
        self.upload_counter = self.counters.upload
        self.download_counter = self.counters.download
        self.put_counter = self.counters.puts
        self.get_counter = self.counters.gets
        self.hits_counter = self.counters.hits
        self.misses_counter = self.counters.misses

    def __repr__(self) -> str:
        return f"KeepClient({self.local_store or self._remote!r})"

    def close(self) -> None:
        """End what is under way, and close all connections. Further requests fail."""
        super().close()
        if isinstance(self._api_client, ApiClient):
            self._api_client.close()

    # --- information ------------------------------------------------------

    @property
    def api_token(self) -> str:
        """The token of requests made from now on; it may be replaced at any time."""
        return self._remote.api_token if self._remote else ""

    @api_token.setter
    def api_token(self, token: str) -> None:
        if self._remote:
            self._remote.api_token = token
            self._grants.clear()
        if isinstance(self._api_client, ApiClient):
            self._api_client.api_token = self.api_token

    def trust_signed(self, manifest: bytes) -> None:
        """Accept the names of a manifest that the API server has signed, for the disk cache."""
        if self.block_cache.disk is not None:
            self._grants.signed(manifest)

    def _token(self) -> str:
        return self.api_token

    # --- services ---------------------------------------------------------

    def _any_nondisk_services(self, service_list: Iterable[Mapping[str, Any]]) -> bool:
        """Tell whether any of these service records is not a keepstore's."""
        return any(record.get("service_type", "disk") != "disk" for record in service_list)

    def build_services_list(self, force_rebuild: bool = False) -> None:  # noqa: FBT001, FBT002 - the SDK's signature
        """See to it that the services are known. Blocks.

        Args:
            force_rebuild: Ask for them though they are.

        Raises:
            NoKeepServersError: The API server didn't say.
        """
        if self._remote:
            self._services(force=force_rebuild)

    def _service_weight(self, data_hash: str, service_uuid: str) -> str:
        """Weigh a service against a block: the heaviest is probed first."""
        return weight(data_hash, service_uuid)

    def weighted_service_roots(
        self,
        locator: KeepLocator,
        force_rebuild: bool = False,  # noqa: FBT001, FBT002 - the SDK's signature
        need_writable: bool = False,  # noqa: FBT001, FBT002 - the SDK's signature
    ) -> list[str]:
        """Return the roots to read a block from, or to store it at, in probe order. Blocks.

        To read, the places that the locator's hints name come first, as in the SDK.

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
        """Add a service to `roots_map` for each root it lacks; return the roots, in their order.

        `headers` go with the services' requests, and are not changed. Blocks.

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
            NotFoundError: No service has one of them, or it isn't a locator.
            KeepReadError: One couldn't be read.
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
        """Return True if a block is there, or the locator a service gave it. Blocks.

        Raises:
            NotFoundError: No service has it, or it isn't a locator.
            KeepReadError: They couldn't say.
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
        """Return a block if it is in the cache, else None. Never a request."""
        block = self.cached_block(KeepLocator(loc))
        return None if block is None else as_bytes(block)

    def is_cached(self, locator: str) -> bool:
        """Tell whether a block is in the cache."""
        return self.cached_block(KeepLocator(locator)) is not None

    def block_prefetch(self, locator: str) -> None:
        """Begin to fetch a block into the cache, unless that is turned off. Doesn't wait."""
        if self.num_prefetch_threads:
            self.prefetch_block(KeepLocator(locator))

    def stop_prefetch_threads(self) -> None:
        """Wait until no fetch is under way that nobody waits for. Blocks."""
        self._background.wait_until_idle(self.total_timeout)

    def refresh_signature(self, loc: str) -> str:
        """Have a remote cluster's block copied here, and return its local, signed locator. Blocks.

        A locator of this cluster is returned as it is: nothing gives it a new
        signature but storing it again, or the API server.

        Raises:
            KeepReadError: It couldn't be had.
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
            copies: Replicas to be confirmed. Under 1: nothing is stored, and
                the unsigned locator is returned.
            num_retries: Further rounds; the client's own when None.
            request_id: Goes with the requests.
            classes: Storage classes; the cluster's default when None or empty.

        Raises:
            TypeError: `data` is no block.
            KeepWriteError: Not stored as wanted.
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
        """Store a block in the local store; `put` does the same where there is one."""
        return self.put(data, max(copies, 1), num_retries, request_id, classes)

    def local_store_get(
        self, loc_s: str, num_retries: int | None = None, request_id: str | None = None
    ) -> bytes:
        """Read from the local store; `get` does the same where there is one."""
        return self.get(loc_s, num_retries, request_id)

    def local_store_head(
        self, loc_s: str, num_retries: int | None = None, request_id: str | None = None
    ) -> Literal[True] | str:
        """Ask the local store; `head` does the same where there is one."""
        return self.head(loc_s, num_retries, request_id)

    # --- inside -----------------------------------------------------------

    def _request_id(self) -> str:
        """Return the API client's request id, or make a new one."""
        given = getattr(self._api_client, "request_id", None)
        return given if isinstance(given, str) and given else super()._request_id()

    @staticmethod
    def _check_loop_result(result: tuple[object, int]) -> bool | None:
        """Judge a round, as the SDK's loops do.

        Args:
            result: What the round brought, None being nothing, and how many
                services it asked.

        Returns:
            True if it brought something, False if there was nobody to ask,
            None if another round may help.
        """
        brought, asked = result
        if brought is not None and not isinstance(brought, Exception):
            return True
        return None if asked else False
