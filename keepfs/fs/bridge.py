"""The bridge: the one place where trio tasks hand work to threads.

A `BlockStore` blocks; the file system may not. What can be answered from
memory is answered in the trio thread; the rest runs in worker threads, and
whoever needs it waits for an event. So a handler can always be given up,
while the thread runs on: a fetch fills the cache, a store is never abandoned.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar, cast

import trio

from keepfs.fs.future import Future
from keepfs.fs.limits import YieldingLimiter
from keepfs.keep.locator import MAX_BLOCK_SIZE, KeepLocator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from typing_extensions import Buffer

    from keepfs.keep.store import Receipt

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Limiter: TypeAlias = trio.CapacityLimiter | YieldingLimiter

#: Seconds for which who reads a block in order is believed to be still there.
#: Guessed: longer than a program stops for between two reads.
PATIENCE = 1.0
#: Most threads that read at once; each may hold a block of up to 64 MiB.
DEFAULT_MAX_READS = 16
#: How many times as many, where some are stalled. A stalled read costs a thread; the memory of
#: its block counts against the cache's budget.
_STALLED_READS = 8
#: Most threads that write at once; each holds a block of up to 64 MiB.
DEFAULT_MAX_WRITES = 4
#: How many times as many, where some are stalled, and the seconds after which a store counts
#: so. A stalled store costs a thread; its bytes count against the staging area. Guessed: a
#: block takes some 2 s over 1 Gbit/s, with the service's disk.
_STALLED_WRITES, _WRITE_PATIENCE = 8, 5.0
#: Most threads that ask for collections at once and parse manifests, which takes the
#: interpreter's lock; and how many times as many, where some are stalled.
_MAX_QUESTIONS, _STALLED_QUESTIONS = 4, 4
#: Most threads that sync the catalog or note state on this machine's disk.
_MAX_DISK_TASKS = 2
#: Most threads that spill unstored files: a disk syncs several files at once.
_MAX_SPILLS = 8


class BlockStore(Protocol):
    """What the file system needs from Keep. Calls may block; any thread may make them."""

    def cached_block(self, locator: KeepLocator, keep_for: float = 0.0) -> memoryview | None:
        """Return a verified block if it can be had without waiting, else None.

        `keep_for`: seconds in which the caller will read on in it.
        """

    def has_room(self, size: int) -> bool:
        """Tell whether a block could be fetched without waiting for others."""

    def get_block(self, locator: KeepLocator) -> memoryview:
        """Return a block, verified."""

    def services_of(self, locator: KeepLocator) -> tuple[str, ...]:
        """Return who sent or confirmed a block, as far as that is known, without waiting."""

    def head_block(self, locator: KeepLocator) -> int:
        """Return the size of a block the store has, in bytes."""

    def lookup_wait(self, most: float) -> float:
        """Return the seconds for which a lookup should wait, `most` at most, without waiting."""

    def probe_block(self, locator: KeepLocator, wait: float) -> int | None:
        """Begin to fetch a block; return its size once it is known to be there.

        None where nobody has said yet after `wait` seconds.
        """

    def put_block(
        self, block: Buffer, copies: int, *, locator: KeepLocator | None = None
    ) -> Receipt:
        """Store a block, which doesn't change meanwhile; `locator` is its own, if it is known."""

    def free_space(self) -> tuple[int, int]:
        """Return the store's bytes: all, and free."""


@dataclass(frozen=True, slots=True)
class BlocksStatistics:
    """What threads are doing for the file system.

    Attributes:
        reads: Reads under way, or waiting for a thread.
        lookups: Lookups, likewise.
        writes: Writes, likewise.
    """

    reads: int
    lookups: int
    writes: int


class AsyncBlocks:
    """A `BlockStore` for trio tasks.

    Reads and writes have threads of their own, so that a flood of reads can't
    hold up the `close` of a file being written. Tasks that want one block
    wait for one thread.

    A read or lookup that takes longer than two seconds, or a write longer than
    five, gives its place to another, so that a stalled service holds up only
    those who need it.

    Cancelling a call doesn't end its thread: a write, once begun, is awaited
    at the end of `open_blocks`, since the data may be nowhere else; unless
    `abandon_writes` says that it is safe.

    Args:
        store: Where the blocks are.
        nursery: Where the threads are waited for.
        copies: Replicas to be confirmed of each block.
        max_reads: Most threads that read at once, without stalled ones.
        max_writes: Most threads that write at once.
    """

    def __init__(
        self,
        store: BlockStore,
        nursery: trio.Nursery,
        *,
        copies: int,
        max_reads: int = DEFAULT_MAX_READS,
        max_writes: int = DEFAULT_MAX_WRITES,
    ) -> None:
        self.copies = copies
        self._store = store
        self._nursery = nursery
        self._reads = YieldingLimiter(max_reads, _STALLED_READS * max_reads)
        self._lookups = YieldingLimiter(max_reads, _STALLED_READS * max_reads)
        self._asking_for_space = trio.CapacityLimiter(1)
        self._writes = YieldingLimiter(max_writes, _STALLED_WRITES * max_writes, _WRITE_PATIENCE)
        self._hashes = trio.CapacityLimiter(os.cpu_count() or 1)
        # Work on this machine's disk never queues behind a stalled service.
        self._disk = trio.CapacityLimiter(_MAX_DISK_TASKS)
        self._spills = trio.CapacityLimiter(_MAX_SPILLS)
        self._questions = YieldingLimiter(_MAX_QUESTIONS, _STALLED_QUESTIONS * _MAX_QUESTIONS)
        # The waits for work that is awaited at the end, until `abandon_writes`.
        self._awaited: set[trio.CancelScope] = set()
        self._abandons_writes = False
        self._gets: dict[KeepLocator, Future[memoryview]] = {}
        self._under_way = collections.Counter[_Limiter]()

    async def get(self, locator: KeepLocator, keep_for: float = 0.0) -> memoryview:
        """Return a block, verified, from memory or from the store.

        Args:
            locator: The block's name.
            keep_for: Seconds in which the caller will read on in the block,
                going through it in order: so long it is kept before others.

        Raises:
            KeepReadError: It couldn't be read.
        """
        block = self._store.cached_block(locator, keep_for)
        if block is None:
            block = await self._get(locator).wait()
            self._store.cached_block(locator, keep_for)  # it is read from now on
        return block

    def services_of(self, locator: KeepLocator) -> tuple[str, ...]:
        """Return who sent or confirmed a block the last time; empty if nobody did yet."""
        return self._store.services_of(locator)

    def fetch_ahead(self, locator: KeepLocator) -> bool:
        """Have a block fetched that will be wanted; a failure shows when it is.

        Returns:
            Whether it is here or on its way: False where it would have to
            wait for the room that others need.
        """
        if locator in self._gets or self._store.cached_block(locator, PATIENCE) is not None:
            return True
        if not self._store.has_room(MAX_BLOCK_SIZE if locator.size is None else locator.size):
            return False
        self._get(locator)
        return True

    def lookup_wait(self, most: float) -> float:
        """Return the seconds for which a lookup should wait: by the usual time to an answer."""
        return self._store.lookup_wait(most)

    def probe(self, locator: KeepLocator, wait: float) -> Future[int | None]:
        """Begin to fetch a block; the result is its size, or None if unknown after `wait` s."""
        future = Future[int | None]()
        self._start(lambda: self._store.probe_block(locator, wait), self._lookups, future)
        return future

    def head(
        self, locator: KeepLocator, then: Callable[[Future[int]], None] = lambda _: None
    ) -> Future[int]:
        """Ask for a block's size."""
        future = Future(then)
        self._start(lambda: self._store.head_block(locator), self._lookups, future)
        return future

    def put(
        self,
        block: Buffer,
        size: int,
        then: Callable[[Future[Receipt]], None] = lambda _: None,
        digest: Callable[[], str] | None = None,
    ) -> Future[Receipt]:
        """Begin to store a block, which may not change until that is done.

        Args:
            block: At most 64 MiB.
            size: Bytes to store, at least the block's: zeros go behind it.
                They take memory only while a thread sends them.
            then: Called when it is stored, or has failed.
            digest: Called in a thread: returns the MD5 of what is stored,
                where most of it is computed already.
        """

        def store() -> Receipt:
            locator = None if digest is None else KeepLocator(f"{digest()}+{size}")
            return self._store.put_block(_padded(block, size), self.copies, locator=locator)

        future = Future(then)
        self._start(store, self._writes, future)
        return future

    def start(
        self,
        task: Callable[..., Awaitable[None]],
        *arguments: object,
        is_awaited: bool = False,
    ) -> None:
        """Start a task of the mount, which outlives the request that starts it.

        An exception of the task is logged.

        Args:
            task: What to run.
            arguments: What it is called with.
            is_awaited: Wait for it at the end of `open_blocks`, as for stores, until
                `abandon_writes`; else it is cancelled then.
        """
        self._nursery.start_soon(self._run_task, task, is_awaited, *arguments)

    async def _run_task(
        self,
        task: Callable[..., Awaitable[None]],
        is_awaited: bool,  # noqa: FBT001 - a task's arguments have no names
        *arguments: object,
    ) -> None:
        with trio.CancelScope(shield=is_awaited and not self._abandons_writes) as scope:
            if is_awaited:
                self._awaited.add(scope)
            try:
                await task(*arguments)
            except Exception:  # noqa: BLE001 - it would end the nursery, and so the mount
                _log.exception("a task of the mount failed")
            finally:
                self._awaited.discard(scope)

    def abandon_writes(self) -> None:
        """Let stores and disk work be abandoned when the mount ends: all bytes are safe."""
        self._abandons_writes = True
        for scope in list(self._awaited):
            scope.shield = False

    def hash(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Run work that only computes in a thread of its own kind; `then` is called after it."""
        self._start(work, self._hashes, Future[None](lambda _: then()))

    def ask(
        self, work: Callable[[], _T], then: Callable[[Future[_T]], None] = lambda _: None
    ) -> Future[_T]:
        """Begin to ask for a collection, in threads that neither reads nor writes wait for.

        Args:
            work: Asks, and may block; abandoned when the mount ends.
            then: Called in the trio thread when it has ended.
        """
        future = Future(then)
        self._start(work, self._questions, future)
        return future

    async def run(self, work: Callable[[], _T]) -> _T:
        """Run work on this machine's disk in a thread, and return its result.

        Cancellation abandons the wait, not the work.
        """
        future = Future[_T]()
        self._start(work, self._disk, future)
        return await future.wait()

    async def run_alone(self, work: Callable[[], _T]) -> _T:
        """Run work in a thread of its own, which waits for no other, and return its result.

        Cancellation abandons the wait, not the work.
        """
        future = Future[_T]()
        self._start(work, trio.CapacityLimiter(1), future)
        return await future.wait()

    async def spill(self, work: Callable[[], _T]) -> _T:
        """Run work that writes unstored bytes to this machine's disk, and return its result.

        It has threads of its own: it waits neither for stores nor for syncs. Where no
        thread can be started it runs in the trio thread: bytes come before latency.
        Cancellation abandons the wait, not the work.
        """
        future = Future[_T]()
        self._start(work, self._spills, future)
        try:
            return await future.wait()
        except RuntimeError as error:
            if "thread" not in str(error):
                raise
            return work()

    async def free_space(self) -> tuple[int, int]:
        """Return the store's bytes: all, and free."""
        future = Future[tuple[int, int]]()
        self._start(self._store.free_space, self._asking_for_space, future)
        return await future.wait()

    def statistics(self) -> BlocksStatistics:
        """Return what is under way at this moment."""
        limiters = (self._reads, self._lookups, self._writes)
        return BlocksStatistics(*(self._under_way[limiter] for limiter in limiters))

    def _get(self, locator: KeepLocator) -> Future[memoryview]:
        running = self._gets.get(locator)
        if running is None:

            def ended(_: Future[memoryview]) -> None:
                del self._gets[locator]

            running = self._gets[locator] = Future(ended)
            self._start(lambda: self._store.get_block(locator), self._reads, running)
        return running

    def _start(self, work: Callable[[], _T], limiter: _Limiter, future: Future[_T]) -> None:
        self._under_way[limiter] += 1
        self._nursery.start_soon(self._run, work, limiter, future)

    async def _run(self, work: Callable[[], _T], limiter: _Limiter, future: Future[_T]) -> None:
        # Reads are abandoned when the mount ends; what stores or spills bytes is awaited.
        awaited = limiter in (self._writes, self._disk, self._spills)
        shield = awaited and not self._abandons_writes
        try:
            with trio.CancelScope(shield=shield) as scope:
                if awaited:
                    self._awaited.add(scope)
                try:
                    result = await trio.to_thread.run_sync(
                        work,
                        limiter=cast("trio.CapacityLimiter", limiter),  # or what acts like one
                        abandon_on_cancel=True,
                    )
                finally:
                    self._awaited.discard(scope)
        except Exception as error:  # noqa: BLE001 - whoever waits for the future gets it
            self._under_way[limiter] -= 1
            future.fail(error)
        else:
            self._under_way[limiter] -= 1
            future.finish(result)


@contextlib.asynccontextmanager
async def open_blocks(
    store: BlockStore,
    *,
    copies: int,
    max_reads: int = DEFAULT_MAX_READS,
    max_writes: int = DEFAULT_MAX_WRITES,
) -> AsyncIterator[AsyncBlocks]:
    """Make an `AsyncBlocks`; on leaving, reads are dropped and writes waited for."""
    async with trio.open_nursery() as nursery:
        yield AsyncBlocks(
            store,
            nursery,
            copies=copies,
            max_reads=max_reads,
            max_writes=max_writes,
        )
        nursery.cancel_scope.cancel()


def _padded(block: Buffer, size: int) -> Buffer:
    view = memoryview(block)
    if view.nbytes == size:
        return block
    padded = bytearray(size)
    padded[: view.nbytes] = view
    return padded
