"""KeepClient: reads and writes blocks; the SDK's class of that name, and more.

Blocking and thread-safe. Two faces over one engine: `get_block`, `put_block`
and `head_block` speak in locators, buffers and receipts, and are what the
mount uses; `get`, `put`, `head` and the rest have the SDK's names, defaults
and results.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from keepfs.keep.cache import KeepBlockCache
from keepfs.keep.errors import (
    ArgumentError,
    Cause,
    KeepReadError,
    KeepWriteError,
    NotFoundError,
)
from keepfs.keep.local import LocalStore
from keepfs.keep.locator import EMPTY_BLOCK, MAX_BLOCK_SIZE, KeepLocator, parse_list

if TYPE_CHECKING:
    import requests
    from typing_extensions import Buffer

    from keepfs.keep.receipt import Receipt

#: Seconds to connect, seconds of the interval over which the speed is
#: measured, and the least bytes a second; the SDK's figures.
DEFAULT_TIMEOUT = (2, 256, 32768)
#: The same where a service is a proxy.
DEFAULT_PROXY_TIMEOUT = (20, 256, 32768)

_NO_SERVICES = (
    "this version of keepfs speaks to a local store only:"
    " give local_store=DIRECTORY, or set KEEP_LOCAL_STORE"
)


class KeepClient:
    """Reads and writes blocks.

    Args:
        api_client: Finds the services. Not used yet.
        proxy: Keep proxies to use instead, blank-separated. Not used yet.
        timeout: Seconds to connect, seconds of the interval, bytes a second
            that a transfer must reach over it. Not used yet.
        proxy_timeout: The same for proxies. Not used yet.
        api_token: For proxies, without an API client. Not used yet.
        local_store: A directory instead of services; `$KEEP_LOCAL_STORE` when
            None; an empty string means services.
        block_cache: Shared with other clients if given; else one of 256 MiB.
        num_retries: Default for get and put.
        session: Whose adapters, TLS and proxy settings to use. Not used yet.

    Raises:
        ArgumentError: Without a local store, as this version needs one.
        ValueError: Both `api_client` and `api_token` are given.
    """

    DEFAULT_TIMEOUT = DEFAULT_TIMEOUT
    DEFAULT_PROXY_TIMEOUT = DEFAULT_PROXY_TIMEOUT

    def __init__(
        self,
        api_client: object = None,
        proxy: str | None = None,  # noqa: ARG002 - services come with the next version
        timeout: float | tuple[float, ...] = DEFAULT_TIMEOUT,  # noqa: ARG002 - ditto
        proxy_timeout: float | tuple[float, ...] = DEFAULT_PROXY_TIMEOUT,  # noqa: ARG002 - ditto
        api_token: str | None = None,
        local_store: str | os.PathLike[str] | None = None,
        block_cache: KeepBlockCache | None = None,
        num_retries: int = 0,
        session: requests.Session | None = None,  # noqa: ARG002 - ditto
    ) -> None:
        if api_client is not None and api_token is not None:
            raise ValueError("give api_client or api_token, not both")
        if local_store is None:
            local_store = os.environ.get("KEEP_LOCAL_STORE", "")
        if not local_store:
            raise ArgumentError(_NO_SERVICES)
        self.num_retries = num_retries
        self.block_cache = block_cache or KeepBlockCache()
        self.local_store = os.fspath(local_store)
        self._store = LocalStore(local_store)

    # --- what the mount uses ---------------------------------------------

    def cached_block(self, locator: KeepLocator) -> memoryview | None:
        """Return a verified block if it can be had without waiting, else None.

        A locator whose signature has expired is never answered from memory:
        whether it may still be read is the services' to say.

        Raises:
            KeepReadError: The cached block hasn't the size the locator says.
        """
        if _is_empty(locator):
            return memoryview(b"")
        if locator.permission_expired():
            return None
        block = self.block_cache.get_nowait(locator.md5sum)
        return None if block is None else _of_hinted_size(locator, block)

    def get_block(self, locator: KeepLocator) -> memoryview:
        """Return a block, verified, from the cache or the store. Blocks.

        Raises:
            NotFoundError: No service has it.
            KeepReadError: It couldn't be read; `cause` says why.
        """
        if _is_empty(locator):
            return memoryview(b"")
        if locator.permission_expired():
            return memoryview(self._store.get(locator)).toreadonly()
        block = self.block_cache.get_or_fetch(locator, lambda: self._store.get(locator))
        return _of_hinted_size(locator, block)

    def head_block(self, locator: KeepLocator) -> int:
        """Return a block's size in bytes, if a service has it. Blocks.

        Raises:
            NotFoundError: No service has it.
            KeepReadError: They couldn't say; `cause` says why.
        """
        return 0 if _is_empty(locator) else self._store.head(locator)

    def put_block(self, block: Buffer, copies: int) -> Receipt:  # noqa: ARG002 - one directory
        """Store a block; it is sent without a copy, and must not change meanwhile. Blocks.

        Args:
            block: At most 64 MiB.
            copies: Replicas to be confirmed; a local store makes one, synced.

        Raises:
            KeepWriteError: Not stored as wanted; `cause` says why.
        """
        return self._store.put(block)

    def free_space(self) -> tuple[int, int]:
        """Return the store's bytes: all, and free. Blocks."""
        return self._store.free_space()

    # --- the SDK's names --------------------------------------------------

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
        block = self._get_or_head(
            loc_s, "GET", num_retries=num_retries, request_id=request_id, headers=headers
        )
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
        num_retries: int | None = None,  # noqa: ARG002 - a directory isn't tried again
        request_id: str | None = None,  # noqa: ARG002 - services only
        headers: dict[str, str] | None = None,  # noqa: ARG002 - services only
    ) -> bytes | Literal[True] | str:
        try:
            locators = parse_list(loc_s)
        except ValueError as error:
            raise NotFoundError(str(error)) from error
        if method == "HEAD":
            for locator in locators:
                self.head_block(locator)
            return True
        blocks = [self.get_block(locator) for locator in locators]
        return _as_bytes(blocks[0]) if len(blocks) == 1 else b"".join(blocks)

    def put(
        self,
        data: Buffer | str,
        copies: int = 2,
        num_retries: int | None = None,  # noqa: ARG002 - a directory isn't tried again
        request_id: str | None = None,  # noqa: ARG002 - services only
        classes: list[str] | None = None,  # noqa: ARG002 - services only
    ) -> str:
        """Store a block and return its locator. Blocks.

        Args:
            data: At most 64 MiB; a str is encoded as UTF-8.
            copies: Replicas to be confirmed. Under 1: nothing is stored, and
                the unsigned locator is returned.
            num_retries: Further rounds; the client's own when None.
            request_id: Goes with the requests.
            classes: Storage classes; the cluster's default when None.

        Raises:
            KeepWriteError: Not stored as wanted.
        """
        block = data.encode() if isinstance(data, str) else data
        if copies < 1:
            if memoryview(block).nbytes > MAX_BLOCK_SIZE:
                raise KeepWriteError(f"a block has at most {MAX_BLOCK_SIZE} bytes")
            return str(KeepLocator.of_block(block))
        return str(self.put_block(block, copies).locator)

    def get_from_cache(self, loc: str) -> bytes | None:
        """Return a block if it is in the cache, else None. Never a request."""
        block = self.cached_block(KeepLocator(loc))
        return None if block is None else _as_bytes(block)

    def is_cached(self, locator: str) -> bool:
        """Tell whether a block is in the cache."""
        return self.cached_block(KeepLocator(locator)) is not None

    def local_store_put(
        self,
        data: Buffer | str,
        copies: int = 1,
        num_retries: int | None = None,
        request_id: str | None = None,
        classes: list[str] | None = None,
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


def _is_empty(locator: KeepLocator) -> bool:
    """Tell whether this is the empty block, which is read without asking anybody."""
    return locator.md5sum == EMPTY_BLOCK.md5sum and not locator.size


def _of_hinted_size(locator: KeepLocator, block: memoryview) -> memoryview:
    if locator.size is not None and locator.size != len(block):
        raise KeepReadError(
            f"the block {locator.md5sum} has {len(block)} bytes, the locator says {locator.size}",
            cause=Cause.CORRUPT,
        )
    return block


def _as_bytes(block: memoryview) -> bytes:
    """Return the bytes behind a view, copied only where they aren't bytes already."""
    whole = block.obj
    if isinstance(whole, bytes) and len(whole) == block.nbytes:
        return whole
    return bytes(block)
