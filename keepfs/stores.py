"""Stores: make and check the Keep client of a mount or a command, and renew its token."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from keepfs.collections.remote_collections import RemoteCollections
from keepfs.config.arvados import load_settings
from keepfs.keep.buffers import BufferPool
from keepfs.keep.caching.cache import KEPT_FOR_READER, KeepBlockCache
from keepfs.keep.caching.disk.opening import disk_cache_of
from keepfs.keep.client import KeepClient
from keepfs.keep.errors import ArgumentError, Cause, KeepRequestError
from keepfs.keep.locator import KeepLocator
from keepfs.keep.services.api import ApiClient, ApiError
from keepfs.keep.services.tokens import TokenStatistics
from keepfs.keep.survey import survey
from keepfs.messages import of_stores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typing_extensions import Buffer

    from keepfs.config.options import StoreOptions
    from keepfs.keep.caching.cache import CacheStatistics
    from keepfs.keep.counters import Counters
    from keepfs.keep.store import Receipt

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Replicas of each block if the cluster has no default.
DEFAULT_COPIES = 2
#: Seconds that a service may take to answer the check at the start.
_CHECK_TIMEOUT = 10.0
#: Seconds between two warnings about a refused token.
_COMPLAINT_INTERVAL = 60.0
#: Tokens that are remembered, in memory only, after others have replaced them.
_MOST_FORMER = 3
_REFUSALS = frozenset({401, 403})

#: The locator of a block that doesn't exist. A request for it shows which services answer.
_NOBODYS = KeepLocator("0" * 32 + "+1")


class StoreError(Exception):
    """The store can't be used; the message is one line: why, and what to do."""


def identity(options: StoreOptions) -> str:
    """Return a name for the store, to match saved data with it; empty if it isn't certain."""
    if options.local_store is not None:
        return f"local:{options.local_store.resolve()}"
    settings = load_settings()
    if options.keep_services or settings.keep_services or settings.keep_proxy:
        return ""  # a list of addresses, which may change
    return f"cluster:{settings.api_host}"


def knows_api() -> bool:
    """Tell whether Arvados's own settings name an API server."""
    return bool(load_settings().api_host)


def open_api(options: StoreOptions, token: str) -> ApiClient | None:
    """Make a client of the API server; None where the settings name none.

    Args:
        options: Where the blocks are.
        token: The user's.

    Raises:
        ArgumentError: The server's address can't be used.
    """
    settings = load_settings()
    if options.local_store is not None or not settings.api_host:
        return None
    return ApiClient.of_settings(settings, token)


def open_client(options: StoreOptions, buffers: BufferPool | None = None) -> KeepClient:
    """Make the client; sends no request.

    Args:
        options: The options of the store.
        buffers: A shared memory pool for whole blocks; None: a pool of its own.

    Raises:
        ArgumentError: The options and Arvados's settings lack the addresses of
            the services or the token.
        OSError: The token file can't be read.
    """
    cache = KeepBlockCache(
        max(1, options.cache_size),  # 0 would be the default
        allocate=(buffers or BufferPool()).allocate,
        disk=disk_cache_of(options),
    )
    if options.local_store is not None:
        return KeepClient(local_store=options.local_store, block_cache=cache)
    return KeepClient(
        proxy=options.keep_services,
        api_token=None if options.token_file is None else _token_in(options.token_file),
        local_store="",
        block_cache=cache,
        num_retries=options.retries,
    )


@contextlib.contextmanager
def open_collections(identity: str, token_file: Path | None) -> Iterator[RemoteCollections]:
    """Open the collections of a mount's cluster, for one command, without a request.

    Args:
        identity: What `identity` said of the mount's store: a cluster, or empty.
        token_file: Where the token is; None for Arvados's own settings.

    Raises:
        StoreError: The settings name another cluster than the mount's, or no API server.
        OSError: The token file can't be read.
    """
    settings = load_settings()
    wanted = f"cluster:{settings.api_host}"
    if not settings.api_host:
        raise StoreError(
            of_stores.NEEDS_API_SERVER(what="collections need an API server", otherwise="")
        )
    if identity not in {"", wanted}:
        raise StoreError(
            of_stores.OTHER_CLUSTER(
                cluster=identity.partition(":")[2],
                host=settings.api_host,
                source=settings.origin("ARVADOS_API_HOST"),
            )
        )
    api = ApiClient.of_settings(settings, None if token_file is None else _token_in(token_file))
    with contextlib.closing(api):
        yield RemoteCollections(api)


def check_services(client: KeepClient, options: StoreOptions) -> None:
    """Check that the token is valid and that a service answers. Blocks.

    Logs a warning if a proxy refuses reads with the token.

    Raises:
        StoreError: A check failed; the message names the settings to look at.
    """
    if options.local_store is not None:
        _check_writable(options.local_store)
        return
    where = _where_from(options)
    try:
        unanswered = _verify_token(client, options)
        if unanswered is not None:
            raise StoreError(of_stores.API_UNREACHABLE(reason=unanswered, settings=where))
        check_classes(client, options)
        client.build_services_list(force_rebuild=True)
        sightings = survey(client, _NOBODYS, _CHECK_TIMEOUT)
    except KeepRequestError as error:
        raise StoreError(of_stores.SETUP_FAILED(reason=error, settings=where)) from error
    if not sightings:
        raise StoreError(
            of_stores.SETUP_FAILED(reason="the cluster lists no Keep services", settings=where)
        )
    if not any(each.status for each in sightings):
        said = "; ".join(f"{each.root}: {each.reason}" for each in sightings)
        raise StoreError(of_stores.NO_SERVICE_ANSWERS(answers=said, settings=where))
    if all(each.is_proxy and each.status in _REFUSALS for each in sightings):
        said = "; ".join(f"{each.root}: {each.reason}" for each in sightings)
        # Not an error: it may be a token that allows uploads only.
        _log.warning("%s", of_stores.PROXY_REFUSES(answers=said, settings=where))


def check_token(client: KeepClient, options: StoreOptions) -> None:
    """Check that the API server accepts the token; skip this if none answers. Blocks.

    keepstore doesn't check the token of a PUT: with a wrong one it stores the block
    and signs a locator that can't be used.

    Raises:
        StoreError: The API server refuses the token.
    """
    if options.local_store is None:
        _verify_token(client, options)


def check_classes(client: KeepClient, options: StoreOptions) -> None:
    """Check that the cluster has the requested storage classes, if it lists any. Blocks.

    Raises:
        StoreError: A class doesn't exist.
    """
    if options.storage_classes is None or options.local_store is not None:
        return
    known = client.storage_classes()
    unknown = sorted(set(options.storage_classes) - known)
    if known and unknown:
        raise StoreError(
            of_stores.NO_STORAGE_CLASS(name=unknown[0], known=", ".join(sorted(known)))
        )


def copies_of(client: KeepClient, options: StoreOptions) -> int:
    """Return the replicas of a block to confirm: the option, else the cluster's default, else 2.

    Blocks. A local store stores one.
    """
    if options.local_store is not None:
        return 1
    return options.copies or client.default_copies() or DEFAULT_COPIES


class RenewingStore:
    """A store that reloads its token and retries once when the token is refused.

    Satisfies the file system's `BlockStore`. Any thread may use it.

    Args:
        client: The client of the store.
        options: Name the source of the token.
    """

    def __init__(self, client: KeepClient, options: StoreOptions) -> None:
        self._client = client
        self._options = options
        self._renewing = threading.Lock()
        #: The tokens before this one: signatures that were made for them hold until they end.
        self._former: list[str] = []
        self._complained = -_COMPLAINT_INTERVAL
        self._token_read = time.monotonic()
        self._token_refused: float | None = None

    def statistics(self) -> TokenStatistics | None:
        """Return the state of the token; None with a local store. For any thread."""
        if self._options.local_store is not None:
            return None
        return TokenStatistics(self._token_read, self._token_refused)

    def cache_statistics(self) -> CacheStatistics:
        """Return the state of the cache. For any thread."""
        return self._client.block_cache.statistics()

    @property
    def counters(self) -> Counters:
        """The counters of the client."""
        return self._client.counters

    def known_services(self) -> tuple[str, ...]:
        """Return the roots of the services in use, as far as they are known; doesn't block."""
        if self._options.local_store is not None:
            return (f"local:{self._options.local_store}",)
        return self._client.known_roots()

    def renew(self) -> bool:
        """Reload the token; return whether it has changed."""
        with self._renewing:
            try:
                token = _current_token(self._options)
                if not token or token == self._client.api_token:
                    return False
                self._former = [self._client.api_token, *self._former][:_MOST_FORMER]
                self._client.api_token = token
                self._token_read, self._token_refused = time.monotonic(), None
            except (OSError, ValueError, ArgumentError) as error:
                said = of_stores.TOKEN_RENEWAL_FAILED(
                    source=_where_from(self._options), reason=error
                )
                _log.warning("%s", said)
                return False
        _log.info("the token was reloaded from %s", token_source(self._options))
        return True

    @property
    def api_token(self) -> str:
        """The token at this moment."""
        return self._client.api_token

    def put_again(self, locator: KeepLocator, copies: int) -> KeepLocator:
        """Read a block and store it again, which keeps it for as long as a new one. Blocks.

        A signature that a former token of this process got is used with that token:
        keepstore checks signatures, not tokens.

        Raises:
            KeepRequestError: It couldn't be read or stored.
        """
        try:
            block = self.get_block(locator)
        except KeepRequestError as error:
            if error.cause is not Cause.DENIED or not self._former:
                raise
            block = self._get_as_before(locator, error)
        return self.put_block(block, copies, locator=KeepLocator(locator.stripped())).locator

    def _get_as_before(self, locator: KeepLocator, refusal: KeepRequestError) -> memoryview:
        roots = " ".join(self._client.weighted_service_roots(locator))
        for token in self._former:
            former = KeepClient(proxy=roots, api_token=token, local_store="", num_retries=1)
            with former, contextlib.suppress(KeepRequestError):
                return former.get_block(locator)
        raise refusal

    def close(self) -> None:
        """Cancel the requests in progress, and refuse further ones."""
        self._client.close()

    def cached_block(self, locator: KeepLocator, keep_for: float = 0.0) -> memoryview | None:
        """Return a verified block from the cache without waiting, else None."""
        return self._client.cached_block(locator, keep_for)

    def release(self, locator: KeepLocator) -> None:
        """End the effect of `keep_for` on a cached block."""
        self._client.release(locator)

    def has_disk_cache(self) -> bool:
        """Return whether parts of blocks may be on the disk. Doesn't wait."""
        return self._client.has_disk_cache()

    def get_part(self, locator: KeepLocator, begin: int, end: int, size: int) -> memoryview | None:
        """Return verified bytes of a block from the disk, or None if it isn't there."""
        return self._renewed(lambda: self._client.get_part(locator, begin, end, size))

    def has_room(self, size: int) -> bool:
        """Return whether a block of `size` bytes can be fetched without waiting for memory."""
        return self._client.has_room(size)

    def services_of(self, locator: KeepLocator) -> tuple[str, ...]:
        """Return the services known to have sent or confirmed a block, without waiting."""
        return self._client.services_of(locator)

    def get_block(self, locator: KeepLocator) -> memoryview:
        """Return a verified block."""
        return self._renewed(lambda: self._client.get_block(locator, keep_for=KEPT_FOR_READER))

    def head_block(self, locator: KeepLocator) -> int:
        """Return the size of a stored block, in bytes."""
        return self._renewed(lambda: self._client.head_block(locator))

    def lookup_wait(self, most: float) -> float:
        """Return the seconds a lookup should wait, from usual answer times; `most` at most."""
        return self._client.lookup_wait(most)

    def probe_block(self, locator: KeepLocator, wait: float) -> int | None:
        """Start to fetch a block; return its size once known, None after `wait` seconds."""
        return self._renewed(lambda: self._client.probe_block(locator, wait))

    def put_block(
        self, block: Buffer, copies: int, *, locator: KeepLocator | None = None
    ) -> Receipt:
        """Store a block."""
        classes = self._options.storage_classes
        return self._renewed(
            lambda: self._client.put_block(block, copies, classes, locator=locator)
        )

    def free_space(self) -> tuple[int, int]:
        """Return the store's capacity and free space, in bytes."""
        return self._client.free_space()

    def _renewed(self, ask: Callable[[], _T]) -> _T:
        before = self._client.api_token
        try:
            return ask()
        except KeepRequestError as error:
            if error.cause is not Cause.DENIED or self._options.local_store is not None:
                raise
            # Another thread may have reloaded it meanwhile.
            if not self.renew() and self._client.api_token == before:
                self._token_refused = time.monotonic()
                self._complain(error)
                raise
        return ask()

    def _complain(self, error: KeepRequestError) -> None:
        now = time.monotonic()
        if now - self._complained >= _COMPLAINT_INTERVAL:
            self._complained = now
            said = of_stores.TOKEN_MAYBE_REFUSED(
                reason=error.message, source=token_source(self._options)
            )
            _log.warning("%s", said)


def _check_writable(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        next(path.iterdir(), None)
    except OSError as error:
        raise StoreError(of_stores.LOCAL_STORE_FAILED(path=path, reason=error.strerror)) from error


def _verify_token(client: KeepClient, options: StoreOptions) -> ApiError | None:
    """Check the token at the API server; return the error if it can't be reached, else None.

    Raises:
        StoreError: The API server refuses the token.
    """
    settings = load_settings()
    if options.keep_services or settings.keep_services or settings.keep_proxy:
        return None  # no API server is configured
    api = ApiClient.of_settings(settings, client.api_token)
    try:
        api.users().current().execute()
    except ApiError as error:
        if error.status_code == 403:  # noqa: PLR2004 - a scoped token may be good for Keep alone
            _log.warning("the API server doesn't return the user of the token: %s", error)
            return None
        if error.cause is Cause.DENIED:
            said = of_stores.TOKEN_REFUSED(source=token_source(options), reason=error)
            raise StoreError(said) from error
        return error
    finally:
        api.close()
    return None


def _token_in(path: Path) -> str:
    token = path.read_text(errors="replace").strip()
    if not token:
        raise ArgumentError(f"the token file {path} is empty")
    return token


def _current_token(options: StoreOptions) -> str:
    if options.token_file is not None:
        return options.token_file.read_text(errors="replace").strip()
    return load_settings().api_token


def token_source(options: StoreOptions) -> str:
    """Return the source of the token, for messages."""
    if options.token_file is not None:
        return str(options.token_file)
    return load_settings().origin("ARVADOS_API_TOKEN")


def _where_from(options: StoreOptions) -> str:
    """Return the sources of the services' addresses and of the token, for messages."""
    settings = load_settings()
    services = settings.origin("ARVADOS_API_HOST")
    if options.keep_services:
        services = f"--keep-services from {options.keep_services_from or 'the caller'}"
    elif settings.keep_services:
        services = settings.origin("ARVADOS_KEEP_SERVICES")
    elif settings.keep_proxy:
        services = settings.origin("ARVADOS_KEEP_PROXY")
    return f"{services}; token from {token_source(options)}"
