"""BlockClient: reads and writes blocks by their locators, through the cache.

It works over any `Store`; the mount uses it. Every call blocks unless its docstring says
otherwise, ends within `total_timeout` seconds, and may be made from any thread.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Self

from keepfs.keep.background import Background
from keepfs.keep.caching.cache import KeepBlockCache, given_or_new
from keepfs.keep.caching.disk.accepted_names import record_of
from keepfs.keep.caching.disk.through_disk import fetch_through
from keepfs.keep.caching.grants import Grants
from keepfs.keep.counters import Counters
from keepfs.keep.disk_parts import DiskParts
from keepfs.keep.errors import ArgumentError, Cause, KeepReadError, KeepWriteError
from keepfs.keep.fetching import FetchObserver, SourceObserver, Sources
from keepfs.keep.http.timeouts import DEFAULT_TOTAL_TIMEOUT
from keepfs.keep.locator import EMPTY_BLOCK, MAX_BLOCK_SIZE, KeepLocator
from keepfs.keep.request_ids import new_request_id, without_request_id
from keepfs.keep.retry import Backoff
from keepfs.keep.services.answer_times import AnswerTimes
from keepfs.keep.store import CallOptions, Wanted
from keepfs.keep.threads import BusyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Buffer

    from keepfs.keep.buffers import Allocation, BufferPool
    from keepfs.keep.caching.in_flight import Fetch
    from keepfs.keep.store import Receipt, Store

#: Most concurrent fetches in the background; the cache's budget includes their memory.
_MOST_BACKGROUND = 32
#: Most concurrent lookups that send HEAD, and the seconds that each may take.
_MOST_ASKING, _ASKING = 32, 30.0
#: The effort of a fetch that a lookup starts: less than a read's, so that a read which
#: joins the fetch does not share its failure.
_LOOKUP_EFFORT = -1
#: Bytes of the cache for each recorded locator; the records take 2 % of it at most.
_CACHE_PER_NAME = 16 * 1024
_LEAST_NAMES = 10_000
#: Seconds that `close` waits for background threads; their exchanges were cancelled.
_CLOSING = 5.0
#: Most copies of a block that a caller can request: more is a mistake.
_MOST_COPIES = 1000


class BlockClient:
    """Reads and writes blocks of one store.

    Args:
        store: The store of the blocks. The client closes it.
        block_cache: Shared with other clients; None: a new one of 256 MiB.
        num_retries: Rounds after the first, the default of all calls.
        counters: The counters of the calls; None: new ones.
        signs: Whether the store may check signatures; see `keepfs.keep.caching.grants`.

    Raises:
        TypeError: `block_cache` is another kind of cache.

    Attributes:
        total_timeout: Seconds after which a call fails at the latest.
        backoff: The waits between rounds.
        disk_parts: Reads parts of blocks from the disk cache; None without one.
    """

    def __init__(
        self,
        store: Store,
        block_cache: KeepBlockCache | None = None,
        num_retries: int = 0,
        counters: Counters | None = None,
        *,
        signs: bool = True,
    ) -> None:
        self.num_retries = num_retries
        self.block_cache = given_or_new(block_cache)
        self.total_timeout = DEFAULT_TOTAL_TIMEOUT
        self.backoff = Backoff()
        self.counters = counters or Counters()
        self._store = store
        self._background = Background(_MOST_BACKGROUND)
        self._asking = Background(_MOST_ASKING)
        names = max(_LEAST_NAMES, self.block_cache.cache_max // _CACHE_PER_NAME)
        self._grants = Grants(names, are_needed=signs, on_refusal=self._forget)
        self._signs = signs
        self._answer_times = AnswerTimes()
        self._sources = Sources()
        self.disk_parts = None
        if self.block_cache.disk is not None:
            self.disk_parts = DiskParts(
                self.block_cache.disk,
                self._grants,
                self.counters,
                lambda locator: self._ensure_granted(locator, self._call()),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the calls in progress, and close all connections. Further requests fail.

        Blocks until background threads have ended, for 20 s at most.
        """
        self._background.close()
        self._asking.close()
        self._store.close()
        self._background.wait_until_idle(_CLOSING)
        self._asking.wait_until_idle(_CLOSING)
        if self.block_cache.disk is not None:
            self.block_cache.disk.flush(_CLOSING)

    # --- reading ----------------------------------------------------------

    def cached_block(
        self, locator: KeepLocator, keep_for: float | None = 0.0
    ) -> memoryview | None:
        """Return a verified block if it is in memory, else None. Doesn't block.

        Returns None too if the services might refuse the locator: its signature has
        expired, or they have not accepted it yet (`keepfs.keep.caching.grants`).

        Args:
            locator: The block's locator.
            keep_for: Seconds for which a sequential reader expects to go on reading the
                block; other blocks are evicted before it until then. None: the caller only
                checks for the block, which doesn't count as a read.

        Raises:
            KeepReadError: The cached block has another size than the locator.
        """
        if _is_empty(locator):
            return memoryview(b"")
        if not self._grants.allows(locator):
            return None
        block = self.block_cache.get_nowait(locator.md5sum, keep_for)
        return None if block is None else _of_hinted_size(locator, block)

    def release(self, locator: KeepLocator) -> None:
        """End the effect of `keep_for` on a cached block: its reader has finished it."""
        self.block_cache.release(locator.md5sum)

    def has_room(self, size: int) -> bool:
        """Return whether a block of `size` bytes could be fetched without waiting for others."""
        return self.block_cache.has_room(size)

    def get_block(
        self,
        locator: KeepLocator,
        num_retries: int | None = None,
        request_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        keep_for: float = 0.0,
        pool: BufferPool | None = None,
    ) -> memoryview:
        """Return a block, verified, from the cache or the store. Blocks.

        Args:
            locator: The block's locator.
            num_retries: Rounds after the first; None: the client's default.
            request_id: Sent with the requests; None: a new one.
            headers: Further headers of the requests.
            timeout: Seconds that the call may take; None: `total_timeout`.
            keep_for: As for `cached_block`.
            pool: Provides the buffer that a block is fetched into; None: the cache does. It
                isn't used if the block is cached or another call is fetching it.

        Raises:
            NotFoundError: No service has it.
            KeepReadError: It couldn't be read; `cause` has the reason.
        """
        if _is_empty(locator):
            return memoryview(b"")
        self.counters.gets.add(1)
        call = self._call(num_retries, request_id, headers, timeout)
        if locator.permission_expired():
            self.counters.misses.add(1)
            call = call.observed_by(SourceObserver(locator, self._sources))
            try:
                return memoryview(self._store.read(locator, call)).toreadonly()
            except KeepReadError as error:
                self._grants.failed(locator, error)
                raise
        fetched: list[bool] = []

        def fetch() -> bytes | memoryview:
            fetched.append(True)
            return self._fetch(locator, call, pool)

        try:
            block = self.block_cache.get_or_fetch(
                locator, fetch, call.retries, call.remaining(), keep_for, claims=True
            )
        finally:
            (self.counters.misses if fetched else self.counters.hits).add(1)
        if not fetched:
            self._ensure_granted(locator, call)  # it may have been read by another locator
        return _of_hinted_size(locator, block)

    def services_of(self, locator: KeepLocator) -> tuple[str, ...]:
        """Return the services that last sent or confirmed a block; empty if none has yet.

        They are root URLs, or the local store's name. Only the last 10,000 blocks are
        recorded. Doesn't block.
        """
        return self._sources.of(locator)

    def lookup_wait(self, most: float) -> float:
        """Return the seconds, at most `most`, for which a lookup should wait for an answer.

        For services it depends on their usual time; see `AnswerTimes.wait`.
        """
        return self._answer_times.wait(most) if self._signs else most

    def probe_block(self, locator: KeepLocator, wait: float) -> int | None:
        """Find out whether a block exists: start to fetch it, and return its size in bytes.

        The fetch makes one round in a thread of the client and goes on after the return; a
        read of the block joins it. If no thread is free, or the block was read by another
        locator, the services get a HEAD instead.

        Args:
            locator: The block's locator.
            wait: Seconds to wait for the first success; 0: return at once.

        Returns:
            The size as soon as a service begins to send the block; None if it isn't known
            after `wait` seconds.

        Raises:
            NotFoundError: No service has it.
            KeepReadError: No service sent it; `cause` has the reason.
        """
        if _is_empty(locator):
            return 0
        deadline = time.monotonic() + wait
        while not locator.permission_expired():
            try:
                begun = self._begin(locator)
            except BusyError:
                break
            is_mine = not isinstance(begun, memoryview) and begun.locator == locator
            if not is_mine and not self._grants.allows(locator):
                break
            if isinstance(begun, memoryview):
                return len(_of_hinted_size(locator, begun))
            try:
                size = begun.wait_for_size(deadline - time.monotonic())
            except Exception:
                if is_mine or time.monotonic() >= deadline:
                    raise
                continue  # the hints of its locator may be the reason
            if size is not None and locator.size not in {None, size}:
                raise _wrong_size(locator, size)
            return size
        call = self._call(num_retries=0, timeout=_ASKING)
        return self._asking.call(lambda: self._find(locator, call), deadline)

    def prefetch_block(self, locator: KeepLocator) -> None:
        """Start to fetch a block into the cache, if a thread is free. Doesn't block."""
        if not (_is_empty(locator) or locator.permission_expired()):
            with contextlib.suppress(BusyError):
                self._begin(locator)

    def head_block(self, locator: KeepLocator, timeout: float | None = None) -> int:
        """Return a block's size in bytes, if a service has it. Blocks.

        Raises:
            NotFoundError: No service has it.
            KeepReadError: No service could answer; `cause` has the reason.
        """
        if _is_empty(locator):
            return 0
        return self._find(locator, self._call(timeout=timeout))

    # --- writing ----------------------------------------------------------

    def put_block(
        self,
        block: Buffer,
        copies: int,
        classes: Iterable[str] | None = None,
        num_retries: int | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        locator: KeepLocator | None = None,
    ) -> Receipt:
        """Store a block; it is sent without a copy, and must not change meanwhile. Blocks.

        Args:
            block: At most 64 MiB.
            copies: Replicas to be confirmed, at most 1,000; a local store makes one, synced.
            classes: Storage classes, each of which gets all the copies; None: the
                cluster's defaults.
            num_retries: Rounds after the first; None: the client's default.
            request_id: Sent with the requests; None: a new one.
            timeout: Seconds that the call may take; None: `total_timeout`.
            locator: The block's unsigned locator, if it was computed already. The services
                refuse a wrong one.

        Raises:
            ArgumentError: `copies` is too large.
            KeepWriteError: The block is too large, or too few copies are confirmed;
                `cause` has the reason.
        """
        view = memoryview(block).cast("B")
        if view.nbytes > MAX_BLOCK_SIZE:
            raise KeepWriteError(
                f"a block has at most {MAX_BLOCK_SIZE} bytes, this one has {view.nbytes}"
            )
        if copies > _MOST_COPIES:
            raise ArgumentError(f"{copies} copies of a block: no more than {_MOST_COPIES}")
        self.counters.puts.add(1)
        call = self._call(num_retries, request_id, timeout=timeout)
        name = KeepLocator.of_block(view) if locator is None else locator
        wanted = Wanted(max(1, copies), None if classes is None else tuple(classes))
        receipt = self._store.write(view, name, wanted, call)
        self._sources.note(name, *receipt.services)
        self._grants.received(receipt.locator)
        return receipt

    def free_space(self) -> tuple[int, int]:
        """Return capacity and free space of the store, in bytes; nominal for services."""
        return self._store.free_space()

    # --- inside -----------------------------------------------------------

    def _call(
        self,
        num_retries: int | None = None,
        request_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> CallOptions:
        named, others = without_request_id(headers) if headers else ("", {})
        return CallOptions(
            time.monotonic() + (self.total_timeout if timeout is None else timeout),
            self.num_retries if num_retries is None else num_retries,
            request_id or named or self._request_id(),
            others,
            self.backoff,
        )

    def _request_id(self) -> str:
        """Return the id for a call without a given one."""
        return new_request_id()

    def _begin(self, locator: KeepLocator) -> memoryview | Fetch:
        call = self._call(num_retries=0)
        spawn = self._background.spawn
        return self.block_cache.begin(
            locator, lambda: self._fetch(locator, call), spawn, _LOOKUP_EFFORT, claims=True
        )

    def _fetch(
        self, locator: KeepLocator, call: CallOptions, pool: BufferPool | None = None
    ) -> bytes | memoryview:
        """Read a block for the memory cache: from the disk, else from the store onto the disk."""
        disk = self.block_cache.disk
        if disk is None:
            return self._receive(locator, call, pool)
        return fetch_through(
            disk,
            locator.md5sum,
            record_of(locator, self._token()),
            call.remaining(),
            lambda: self._ensure_granted(locator, call),
            lambda size: self._allocate(locator, size, pool),
            lambda: self._receive(locator, call, pool),
        )

    def _ensure_granted(self, locator: KeepLocator, call: CallOptions) -> None:
        """Send a HEAD unless the services accepted the locator before, in any process."""
        if not self._grants.allows(locator):
            disk, record = self.block_cache.disk, record_of(locator, self._token())
            if disk is not None and disk.accepts(locator.md5sum, record):
                self._grants.received(locator)
                return
            self._find(locator, call)
            if disk is not None:
                disk.note_accepted(locator.md5sum, record)

    def _forget(self, refused: KeepLocator) -> None:
        if self.block_cache.disk is not None:
            record = record_of(refused, self._token())
            self.block_cache.disk.note_refused(refused.md5sum, record)

    def _token(self) -> str:
        """Return the token that signatures are valid for; empty if there is none."""
        return ""

    def _allocate(self, locator: KeepLocator, size: int, pool: BufferPool | None) -> Allocation:
        self.block_cache.announce(locator, size)
        return self.block_cache.allocate_for(
            locator, size, None if pool is None else pool.allocate
        )

    def _receive(
        self, locator: KeepLocator, call: CallOptions, pool: BufferPool | None
    ) -> bytes | memoryview:
        """Read a block from the store; notify waiting lookups once its size is known."""
        observer = FetchObserver(
            locator, self._sources, self.block_cache, self._grants, self._answer_times, pool
        )
        try:
            block = self._store.read(locator, call.observed_by(observer))
        except KeepReadError as error:
            self._note_failure(locator, observer.begun_at, error)
            raise
        if not observer.has_begun:  # its size wasn't known before
            self._grants.answered(locator)
        return block

    def _find(self, locator: KeepLocator, call: CallOptions) -> int:
        """Return a block's size, found with HEAD."""
        begun = time.monotonic()
        try:
            size = self._store.find(locator, call).size
        except KeepReadError as error:
            self._note_failure(locator, begun, error)
            raise
        self._answer_times.answered(begun)
        self._grants.answered(locator)
        return size

    def _note_failure(self, locator: KeepLocator, begun: float, error: KeepReadError) -> None:
        self._answer_times.failed(begun, error)
        self._grants.failed(locator, error)


def _is_empty(locator: KeepLocator) -> bool:
    """Return whether this is the empty block, which is read without a request."""
    return locator.md5sum == EMPTY_BLOCK.md5sum and not locator.size


def _of_hinted_size(locator: KeepLocator, block: memoryview) -> memoryview:
    if locator.size is not None and locator.size != len(block):
        raise _wrong_size(locator, len(block))
    return block


def _wrong_size(locator: KeepLocator, size: int) -> KeepReadError:
    return KeepReadError(
        f"the block {locator.md5sum} has {size} bytes, the locator says {locator.size}",
        cause=Cause.CORRUPT,
    )
