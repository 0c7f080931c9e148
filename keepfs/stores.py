"""The Keep client of a mount or a command: built from options, checked, its token kept fresh."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from keepfs.collections.local import LocalCollections
from keepfs.collections.remote import RemoteCollections
from keepfs.collections.remote_errors import CollectionError
from keepfs.config.arvados import load_settings
from keepfs.keep.buffers import BufferPool
from keepfs.keep.caching.cache import KEPT_FOR_READER, KeepBlockCache
from keepfs.keep.client import KeepClient
from keepfs.keep.errors import ArgumentError, Cause, KeepRequestError
from keepfs.keep.locator import KeepLocator
from keepfs.keep.services.api import ApiClient, ApiError
from keepfs.keep.survey import survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typing_extensions import Buffer

    from keepfs.collections.records import CollectionRecord
    from keepfs.config.options import StoreOptions
    from keepfs.keep.store import Receipt

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Copies of each block where the cluster doesn't say.
DEFAULT_COPIES = 2
#: Seconds a service may take to show that it is there.
_CHECK_TIMEOUT = 10.0
#: Rounds after the first in which the API server is asked for a collection, and seconds that all
#: may take: the program that looks it up waits.
_COLLECTION_RETRIES, _COLLECTION_TIMEOUT = 2, 60.0
#: Seconds between two complaints about a refused token.
_COMPLAINT_INTERVAL = 60.0
#: Tokens that are remembered, in memory only, after others have replaced them.
_MOST_FORMER = 3
_REFUSALS = frozenset({401, 403})

#: A block nobody has, of a digest that is hardly anyone's: asking for it shows who answers.
_NOBODYS = KeepLocator("0" * 32 + "+1")


class StoreError(Exception):
    """The blocks can't be had; one line says why, and what to do."""


def identity(options: StoreOptions) -> str:
    """Name where the blocks are, for what belongs to it; empty where nothing is sure."""
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
    """Make the client; nothing is asked of anybody yet.

    Args:
        options: Where the blocks are.
        buffers: Memory for whole blocks, shared with others; its own when None.

    Raises:
        ArgumentError: The options, or Arvados's settings, don't say where the
            services are, or for whom.
        OSError: The token file can't be read.
    """
    cache = KeepBlockCache(
        max(1, options.cache_size),  # 0 would be the default
        allocate=(buffers or BufferPool()).allocate,
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


def check_usable(client: KeepClient, options: StoreOptions) -> None:
    """See that the token is good and a service answers, before anyone relies on it. Blocks.

    Logs a warning where a proxy refuses to read with the token.

    Raises:
        StoreError: They don't; the message names what to look at.
    """
    if options.local_store is not None:
        _check_writable(options.local_store)
        return
    where = _where_from(options)
    try:
        unanswered = _verify_token(client, options)
        if unanswered is not None:
            raise StoreError(f"the API server doesn't answer: {unanswered} (settings: {where})")
        check_classes(client, options)
        client.build_services_list(force_rebuild=True)
        sightings = survey(client, _NOBODYS, _CHECK_TIMEOUT)
    except KeepRequestError as error:
        raise StoreError(f"{error} (settings: {where})") from error
    if not sightings:
        raise StoreError(f"the cluster has no Keep services for us (settings: {where})")
    if not any(each.status for each in sightings):
        said = "; ".join(f"{each.root}: {each.reason}" for each in sightings)
        raise StoreError(f"no Keep service answers: {said} (settings: {where})")
    if all(each.is_proxy and each.status in _REFUSALS for each in sightings):
        said = "; ".join(f"{each.root}: {each.reason}" for each in sightings)
        # Not an error: it may be a token that allows uploads only.
        _log.warning("the Keep proxy refuses the token: %s (settings: %s)", said, where)


def check_token(client: KeepClient, options: StoreOptions) -> None:
    """See that the API server, where there is one that answers, knows the token. Blocks.

    keepstore doesn't look at the token of a PUT: with a wrong one it stores the
    block, and signs a locator that nobody can use.

    Raises:
        StoreError: It doesn't know it.
    """
    if options.local_store is None:
        _verify_token(client, options)


def check_classes(client: KeepClient, options: StoreOptions) -> None:
    """See that the cluster has the storage classes that are wanted, where it says. Blocks.

    Raises:
        StoreError: It hasn't.
    """
    if options.storage_classes is None or options.local_store is not None:
        return
    known = client.storage_classes()
    unknown = sorted(set(options.storage_classes) - known)
    if known and unknown:
        raise StoreError(
            f"the cluster has no storage class {unknown[0]!r};"
            f" there are: {', '.join(sorted(known))}"
        )


def copies_of(client: KeepClient, options: StoreOptions) -> int:
    """Return how many copies to have confirmed: as told, else the cluster's default, else 2.

    Blocks. A local store makes one.
    """
    if options.local_store is not None:
        return 1
    return options.copies or client.default_copies() or DEFAULT_COPIES


class RenewingStore:
    """A store whose token is read again when it is refused.

    Satisfies the file system's `BlockStore`. Any thread may use it.

    Args:
        client: Where the blocks are.
        options: Where the token comes from.
    """

    def __init__(self, client: KeepClient, options: StoreOptions) -> None:
        self._client = client
        self._options = options
        self._renewing = threading.Lock()
        #: The tokens before this one: signatures that were made for them hold until they end.
        self._former: list[str] = []
        self._complained = -_COMPLAINT_INTERVAL

    def renew(self) -> bool:
        """Read the token again; tell whether it is another now."""
        with self._renewing:
            try:
                token = _current_token(self._options)
                if not token or token == self._client.api_token:
                    return False
                self._former = [self._client.api_token, *self._former][:_MOST_FORMER]
                self._client.api_token = token
            except (OSError, ValueError, ArgumentError) as error:
                _log.warning(
                    "the token from %s can't be used, the old one stays: %s",
                    _where_from(self._options),
                    error,
                )
                return False
        _log.info("the token has been read again, from %s", _token_from(self._options))
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
        """End the requests under way, and refuse further ones."""
        self._client.close()

    def cached_block(self, locator: KeepLocator, keep_for: float = 0.0) -> memoryview | None:
        """Return a verified block if it can be had without waiting, else None."""
        return self._client.cached_block(locator, keep_for)

    def has_room(self, size: int) -> bool:
        """Tell whether a block could be fetched without waiting for others."""
        return self._client.has_room(size)

    def services_of(self, locator: KeepLocator) -> tuple[str, ...]:
        """Return who sent or confirmed a block, as far as that is known, without waiting."""
        return self._client.services_of(locator)

    def get_block(self, locator: KeepLocator) -> memoryview:
        """Return a block, verified."""
        return self._renewed(lambda: self._client.get_block(locator, keep_for=KEPT_FOR_READER))

    def head_block(self, locator: KeepLocator) -> int:
        """Return the size of a block the store has, in bytes."""
        return self._renewed(lambda: self._client.head_block(locator))

    def lookup_wait(self, most: float) -> float:
        """Return the seconds for which a lookup should wait: by the usual time to an answer."""
        return self._client.lookup_wait(most)

    def probe_block(self, locator: KeepLocator, wait: float) -> int | None:
        """Begin to fetch a block; return its size once it is known to be there, None if later."""
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
        """Return the store's bytes: all, and free."""
        return self._client.free_space()

    def _renewed(self, ask: Callable[[], _T]) -> _T:
        before = self._client.api_token
        try:
            return ask()
        except KeepRequestError as error:
            if error.cause is not Cause.DENIED or self._options.local_store is not None:
                raise
            # Another thread may have read it while this one was being refused.
            if not self.renew() and self._client.api_token == before:
                self._complain(error)
                raise
        return ask()

    def _complain(self, error: KeepRequestError) -> None:
        now = time.monotonic()
        if now - self._complained >= _COMPLAINT_INTERVAL:
            self._complained = now
            _log.warning(
                "%s; if it is the token, a new one is taken from %s",
                error.message,
                _token_from(self._options),
            )


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
            return self._remote.get(name, with_manifest=with_manifest)
        except CollectionError as error:
            if error.cause is not Cause.DENIED:
                raise
            if not self._store.renew() and self._client.api_token == token:
                raise
        self._api.api_token = self._client.api_token
        return self._remote.get(name, with_manifest=with_manifest)

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
        client: Whose token is used.
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


def _check_writable(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        next(path.iterdir(), None)
    except OSError as error:
        raise StoreError(f"can't use the local store {path}: {error.strerror}") from error


def _verify_token(client: KeepClient, options: StoreOptions) -> ApiError | None:
    """See that the API server knows the token; return why it can't be asked, if so.

    Raises:
        StoreError: It doesn't know it.
    """
    settings = load_settings()
    if options.keep_services or settings.keep_services or settings.keep_proxy:
        return None  # nobody knows tokens but the services themselves
    api = ApiClient.of_settings(settings, client.api_token)
    try:
        api.users().current().execute()
    except ApiError as error:
        if error.status_code == 403:  # noqa: PLR2004 - a scoped token may be good for Keep alone
            _log.warning("the API server doesn't say whose the token is: %s", error)
            return None
        if error.cause is Cause.DENIED:
            token = _token_from(options)
            raise StoreError(f"the API server refuses the token from {token}: {error}") from error
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


def _token_from(options: StoreOptions) -> str:
    """Say where the token comes from."""
    if options.token_file is not None:
        return str(options.token_file)
    return load_settings().origin("ARVADOS_API_TOKEN")


def _where_from(options: StoreOptions) -> str:
    """Say where the services, and the token, come from."""
    settings = load_settings()
    services = settings.origin("ARVADOS_API_HOST")
    if options.keep_services:
        services = f"--keep-services from {options.keep_services_from or 'the caller'}"
    elif settings.keep_services:
        services = settings.origin("ARVADOS_KEEP_SERVICES")
    elif settings.keep_proxy:
        services = settings.origin("ARVADOS_KEEP_PROXY")
    return f"{services}; token from {_token_from(options)}"
