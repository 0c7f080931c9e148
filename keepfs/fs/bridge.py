"""Bridge: the only module in which trio tasks hand work to threads.

A `BlockStore` blocks; the file system may not. Requests that memory can answer are
answered in the trio thread. The rest runs in worker threads, and tasks wait for an
event. So any handler can be cancelled while its thread continues: a fetch fills the
cache, a store is completed.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

import trio

from keepfs.fs.disk_reads import DiskReads
from keepfs.fs.future import Future
from keepfs.fs.limits import YieldingLimiter
from keepfs.fs.worker_threads import run_in_thread
from keepfs.keep.errors import KeepReadError
from keepfs.keep.locator import MAX_BLOCK_SIZE, KeepLocator
from keepfs.keep.threads import NoThreadError
from keepfs.messages import of_commands

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from typing_extensions import Buffer

    from keepfs.fs.block_store import BlockStore
    from keepfs.keep.store import Receipt

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Limiter: TypeAlias = trio.CapacityLimiter | YieldingLimiter

#: Seconds after its last read for which a sequential reader of a block counts as active.
#: Guessed: longer than a program pauses between two reads.
PATIENCE = 1.0
#: Most threads that read concurrently; each may hold a block of up to 64 MiB.
DEFAULT_MAX_READS = 16
#: The factor by which that limit grows with stalled reads. A stalled read costs a thread; the
#: memory of its block counts against the cache's budget.
_STALLED_READS = 8
#: Most threads that write concurrently; each holds a block of up to 64 MiB.
DEFAULT_MAX_WRITES = 4
#: The factor for stalled writes, and the seconds after which a write counts as stalled. A
#: stalled write costs a thread; its bytes count against the staging area. Guessed: a block
#: takes about 2 s over 1 Gbit/s, with the service's disk.
_STALLED_WRITES, _WRITE_PATIENCE = 8, 5.0
#: Most threads that fetch collections and parse manifests concurrently: parsing holds the
#: interpreter's lock. The second is the factor by which the limit grows with stalled calls.
_MAX_QUESTIONS, _STALLED_QUESTIONS = 4, 4
#: Most threads that sync the catalog or write other state to this machine's disk.
_MAX_DISK_TASKS = 2
#: Most threads that spill unstored files: a disk syncs several files concurrently.
_MAX_SPILLS = 8


@dataclass(frozen=True, slots=True)
class BlocksStatistics:
    """Calls in progress or waiting for a thread.

    Attributes:
        reads: Reads of blocks.
        lookups: Lookups of blocks.
        writes: Writes of blocks.
    """

    reads: int
    lookups: int
    writes: int


class AsyncBlocks:
    """A `BlockStore` for trio tasks.

    Reads and writes have separate threads, so that many reads can't delay the
    `close` of a written file. Tasks that need the same block share one fetch.

    A read or lookup longer than two seconds, or a write longer than five, no
    longer counts against the limit of threads, so that a stalled service delays
    only its own requests.

    Cancelling a call doesn't end its thread. `open_blocks` waits for writes in
    progress at its end, since the data may exist nowhere else, unless
    `abandon_writes` was called.

    Args:
        store: The block store.
        nursery: Runs the tasks that wait for the threads.
        copies: Replicas of each block that the services must confirm.
        max_reads: Most threads that read concurrently, without stalled ones.
        max_writes: Most threads that write concurrently, without stalled ones.
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
        # Reads of the disk cache don't queue behind the services.
        self._parts = YieldingLimiter(max_reads, _STALLED_READS * max_reads)
        self._on_disk = DiskReads(cast("trio.CapacityLimiter", self._parts))
        self._asking_for_space = trio.CapacityLimiter(1)
        self._writes = YieldingLimiter(max_writes, _STALLED_WRITES * max_writes, _WRITE_PATIENCE)
        self._hashes = trio.CapacityLimiter(os.cpu_count() or 1)
        # Work on the local disk never queues behind a stalled service.
        self._disk = trio.CapacityLimiter(_MAX_DISK_TASKS)
        self._spills = trio.CapacityLimiter(_MAX_SPILLS)
        self._questions = YieldingLimiter(_MAX_QUESTIONS, _STALLED_QUESTIONS * _MAX_QUESTIONS)
        # The scopes of work that is awaited at the end, until `abandon_writes`.
        self._awaited: set[trio.CancelScope] = set()
        self._abandons_writes = False
        self._gets: dict[KeepLocator, Future[memoryview]] = {}
        self._under_way = collections.Counter[_Limiter]()

    async def get(self, locator: KeepLocator, keep_for: float = 0.0) -> memoryview:
        """Return a verified block, from memory or from the store.

        Args:
            locator: The block's locator.
            keep_for: Seconds for which a sequential reader expects to continue reading
                the block. Until then it is evicted after other blocks.

        Raises:
            KeepReadError: It couldn't be read.
        """
        block = self._store.cached_block(locator, keep_for)
        if block is None:
            block = await self._get(locator).wait()
            self._store.cached_block(locator, keep_for)  # `keep_for` counts from now
        return block

    def part_nowait(
        self, locator: KeepLocator, begin: int, end: int, size: int
    ) -> memoryview | None:
        """Return verified bytes of a block if they are in memory; else None.

        Arguments as those of `get_part`. Call `note_read` after, if they are returned.
        """
        try:
            block = self._store.cached_block(locator, None)
        except KeepReadError:  # the block has another size; `get` raises it again
            return None
        if block is not None:
            return block[begin:end] if len(block) == size else None
        parts = self._store.disk_parts
        if parts is None or locator in self._gets:
            return None
        return self._on_disk.part_nowait(parts, locator, begin, end, size)

    def note_read(self, locator: KeepLocator, keep_for: float) -> None:
        """Record one read of a cached block, for which `get` wasn't called (see there)."""
        self._store.cached_block(locator, keep_for)

    def read_on(self, locator: KeepLocator, begin: int) -> None:
        """Have the disk read ahead in a block, from this byte on, unless it is in memory."""
        parts = self._store.disk_parts
        if parts is None or locator in self._gets:
            return
        if self._store.cached_block(locator, None) is None:
            self._start(lambda: parts.read_on(locator, begin), self._on_disk.ahead, Future[bool]())

    async def get_part(
        self,
        locator: KeepLocator,
        begin: int,
        end: int,
        size: int,
        keep_for: float = 0.0,
    ) -> memoryview | None:
        """Return verified bytes of a block of `size` bytes from memory or the disk.

        Call `part_nowait` before: this reads the disk, though its pages are in memory.

        Args:
            locator: The block's locator.
            begin: The first byte.
            end: The end of the range.
            size: The size that the block should have, in bytes.
            keep_for: See `get`.

        Returns:
            None if the block is in neither, or is being fetched: use `get`. None too without a
            disk cache.

        Raises:
            KeepReadError: The services refuse the locator.
        """
        parts = self._store.disk_parts
        if locator in self._gets or parts is None:
            return None
        block = self._store.cached_block(locator, keep_for)
        if block is not None:
            return block[begin:end] if len(block) == size else None
        return await self._on_disk.get_part(parts, locator, begin, end, size)

    def services_of(self, locator: KeepLocator) -> tuple[str, ...]:
        """Return the services that last sent or confirmed a block; empty if unknown."""
        return self._store.services_of(locator)

    def fetch_ahead(self, locator: KeepLocator, *, streams: bool = False) -> bool:
        """Start to fetch a block that will be read; a failure is raised by the read.

        Args:
            locator: The block's locator.
            streams: Whether the disk should read ahead, if the block is on it.

        Returns:
            Whether it is cached or being fetched; False if there is no free
            memory for it.
        """
        if locator in self._gets or self._store.cached_block(locator, PATIENCE) is not None:
            return True
        if not self._store.has_room(MAX_BLOCK_SIZE if locator.size is None else locator.size):
            return False
        parts = self._store.disk_parts
        if parts is None:
            self._get(locator)
        if parts is None or (not streams and parts.is_open(locator)):  # so it is on the disk
            return True

        def looked(found: Future[bool]) -> None:
            if not found.result:  # of a block on the disk only parts are read
                self._get(locator)

        begin = 0 if streams else MAX_BLOCK_SIZE
        self._start(lambda: parts.read_on(locator, begin), self._on_disk.ahead, Future(looked))
        return True

    def release(self, locator: KeepLocator) -> None:
        """End the effect of `keep_for` on a block, when its reader has left it."""
        self._store.release(locator)

    def lookup_wait(self, most: float) -> float:
        """Return the seconds that a lookup should wait, by usual answer times; `most` at most."""
        return self._store.lookup_wait(most)

    def probe(self, locator: KeepLocator, wait: float) -> Future[int | None]:
        """Start to fetch a block; the result is its size, or None if unknown after `wait` s."""
        future = Future[int | None]()
        self._start(lambda: self._store.probe_block(locator, wait), self._lookups, future)
        return future

    def head(
        self, locator: KeepLocator, then: Callable[[Future[int]], None] = lambda _: None
    ) -> Future[int]:
        """Start to request a block's size; `then` is called when the request has ended."""
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
        """Start to store a block, which must not change until the result is known.

        Args:
            block: At most 64 MiB.
            size: Bytes to store, at least the block's: it is padded with zeros.
                The padding takes memory only while a thread sends it.
            then: Called when it is stored or has failed.
            digest: Called in a thread; returns the MD5 of the padded block. Set it
                if most of the MD5 is computed already.
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
            task: The task's function.
            arguments: Its arguments.
            is_awaited: At the end of `open_blocks` wait for it, as for stores, unless
                `abandon_writes` was called; else cancel it.
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
                _log.exception("%s", of_commands.UNEXPECTED(what="a task of the mount"))
            finally:
                self._awaited.discard(scope)

    def abandon_writes(self) -> None:
        """Let `open_blocks` end without waiting for stores and disk work.

        Call it when no data depends on them any more.
        """
        self._abandons_writes = True
        for scope in list(self._awaited):
            scope.shield = False

    def hash(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Run a computation in one of as many threads as there are CPUs; then call `then`."""
        self._start(work, self._hashes, Future[None](lambda _: then()))

    def ask(
        self, work: Callable[[], _T], then: Callable[[Future[_T]], None] = lambda _: None
    ) -> Future[_T]:
        """Begin to fetch a collection, in threads that do not delay reads and writes.

        Args:
            work: Sends the requests; may block. It is abandoned when the mount ends.
            then: Called in the trio thread when the work has ended.
        """
        future = Future(then)
        self._start(work, self._questions, future)
        return future

    async def run(self, work: Callable[[], _T]) -> _T:
        """Run work on the local disk in a thread, and return its result.

        Cancellation abandons the wait, not the work.
        """
        future = Future[_T]()
        self._start(work, self._disk, future)
        return await future.wait()

    async def run_alone(self, work: Callable[[], _T]) -> _T:
        """Run work in a thread outside all limits, and return its result.

        Cancellation abandons the wait, not the work.
        """
        future = Future[_T]()
        self._start(work, trio.CapacityLimiter(1), future)
        return await future.wait()

    async def spill(self, work: Callable[[], _T]) -> _T:
        """Run work that spills unstored bytes to the local disk, and return its result.

        Separate threads keep it from waiting for stores and syncs. If no thread can be started,
        the work blocks the trio thread: safe data matters more than latency.
        Cancellation abandons the wait, not the work.
        """
        future = Future[_T]()
        self._start(work, self._spills, future)
        try:
            return await future.wait()
        except NoThreadError:
            return work()

    async def free_space(self) -> tuple[int, int]:
        """Return the store's capacity and free space, in bytes."""
        future = Future[tuple[int, int]]()
        self._start(self._store.free_space, self._asking_for_space, future)
        return await future.wait()

    def statistics(self) -> BlocksStatistics:
        """Return the numbers of calls in progress."""
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
        # At the end of the mount reads are abandoned; stores, spills and disk work are awaited.
        awaited = limiter in (self._writes, self._disk, self._spills)
        shield = awaited and not self._abandons_writes
        try:
            with trio.CancelScope(shield=shield) as scope:
                if awaited:
                    self._awaited.add(scope)
                try:
                    result = await run_in_thread(
                        work,
                        cast("trio.CapacityLimiter", limiter),  # has its methods
                    )
                finally:
                    self._awaited.discard(scope)
        except Exception as error:  # noqa: BLE001 - the future raises it
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
    """Make an `AsyncBlocks`; on exit, abandon reads and wait for writes."""
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
