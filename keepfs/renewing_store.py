"""RenewingStore: the client of a mount or command, whose token is reloaded when it is refused."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from keepfs.config.arvados import load_settings
from keepfs.keep.caching.cache import KEPT_FOR_READER
from keepfs.keep.client import KeepClient
from keepfs.keep.errors import ArgumentError, Cause, KeepRequestError
from keepfs.keep.locator import KeepLocator
from keepfs.messages import of_stores
from keepfs.token_state import TokenState

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from keepfs.config.options import StoreOptions
    from keepfs.keep.caching.cache import KeepBlockCache
    from keepfs.keep.counters import Counters
    from keepfs.keep.services.tokens import TokenStatistics
    from keepfs.keep.store import Receipt

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Seconds between two warnings about a refused token.
_COMPLAINT_INTERVAL = 60.0
#: Most former tokens that are kept, in memory only.
_MOST_FORMER = 3


class RenewingStore:
    """A store that reloads its token and retries once when the token is refused.

    Satisfies the file system's `BlockStore`. Any thread may use it. The methods that read or
    store blocks wait for the services, and raise KeepRequestError.

    Args:
        client: The client of the store.
        options: The options of the store, with the source of the token.
    """

    def __init__(self, client: KeepClient, options: StoreOptions) -> None:
        self._client = client
        self._options = options
        self._renewing = threading.Lock()
        #: The tokens before this one: signatures made for them are valid until they expire.
        self._former: list[str] = []
        self._complained = -_COMPLAINT_INTERVAL
        self._token_state = TokenState(client.counters)
        parts = client.disk_parts
        self.disk_parts = None if parts is None else parts.with_check(self._renewed_for)

    def statistics(self) -> TokenStatistics | None:
        """Return the state of the token; None with a local store. For any thread."""
        if self._options.local_store is not None:
            return None
        return self._token_state.statistics()

    @property
    def block_cache(self) -> KeepBlockCache:
        """The cache of the client, with its disk tier. For any thread."""
        return self._client.block_cache

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
                self._token_state.replaced()
            except (OSError, ValueError, ArgumentError) as error:
                said = of_stores.TOKEN_RENEWAL_FAILED(
                    source=where_from(self._options), reason=error
                )
                _log.warning("%s", said)
                return False
        _log.info("the token was reloaded from %s", token_source(self._options))
        return True

    @property
    def api_token(self) -> str:
        """The token at this moment."""
        return self._client.api_token

    def note_accepted(self, token: str) -> None:
        """Record that the API server has accepted a token. For any thread."""
        if token == self._client.api_token:
            self._token_state.accepted()

    def put_again(self, locator: KeepLocator, copies: int) -> KeepLocator:
        """Read a block and store it again, so that Keep retains it like a new one. Blocks.

        A locator that was signed for a former token of this process is read with that token:
        keepstore checks the signature, and not whether the token is still valid.

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

    def cached_block(
        self, locator: KeepLocator, keep_for: float | None = 0.0
    ) -> memoryview | None:
        """Return a verified block from the cache without waiting, else None."""
        return self._client.cached_block(locator, keep_for)

    def release(self, locator: KeepLocator) -> None:
        """End the effect of `keep_for` on a cached block."""
        self._client.release(locator)

    def close_idle(self) -> None:
        """Close the open files of the disk cache, and free their buffers."""
        if self._client.block_cache.disk is not None:
            self._client.block_cache.disk.close_idle()

    def has_room(self, size: int) -> bool:
        """Return whether a block of `size` bytes can be fetched without waiting for memory."""
        return self._client.has_room(size)

    def services_of(self, locator: KeepLocator) -> tuple[str, ...]:
        """Return the services known to have sent or confirmed a block, without waiting."""
        return self._client.services_of(locator)

    def get_block(self, locator: KeepLocator) -> memoryview:
        """Return a verified block."""
        return self._renewed_for(
            locator, lambda: self._client.get_block(locator, keep_for=KEPT_FOR_READER)
        )

    def head_block(self, locator: KeepLocator) -> int:
        """Return the size of a stored block, in bytes."""
        return self._renewed_for(locator, lambda: self._client.head_block(locator))

    def lookup_wait(self, most: float) -> float:
        """Return the seconds that a lookup should wait, by usual answer times; `most` at most."""
        return self._client.lookup_wait(most)

    def probe_block(self, locator: KeepLocator, wait: float) -> int | None:
        """Start to fetch a block; return its size once known, None after `wait` seconds."""
        return self._renewed_for(locator, lambda: self._client.probe_block(locator, wait))

    def put_block(
        self, block: Buffer, copies: int, *, locator: KeepLocator | None = None
    ) -> Receipt:
        """Store a block."""
        classes = self._options.storage_classes
        return self._renewed_for(
            None, lambda: self._client.put_block(block, copies, classes, locator=locator)
        )

    def free_space(self) -> tuple[int, int]:
        """Return the store's capacity and free space, in bytes."""
        return self._client.free_space()

    def _renewed_for(self, read: KeepLocator | None, ask: Callable[[], _T]) -> _T:
        """Make a request; after a refusal read the token again, and repeat the request once.

        Args:
            read: The locator of the block to be read; None for a store.
            ask: Makes the request.
        """
        before = self._client.api_token
        try:
            return ask()
        except KeepRequestError as error:
            if error.cause is not Cause.DENIED or self._options.local_store is not None:
                raise
            # Another thread may have reloaded it meanwhile.
            if not self.renew() and self._client.api_token == before:
                if self._token_state.refused(before, read):
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


def _current_token(options: StoreOptions) -> str:
    if options.token_file is not None:
        return options.token_file.read_text(errors="replace").strip()
    return load_settings().api_token


def token_source(options: StoreOptions) -> str:
    """Return the source of the token, for messages."""
    if options.token_file is not None:
        return str(options.token_file)
    return load_settings().origin("ARVADOS_API_TOKEN")


def where_from(options: StoreOptions) -> str:
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
