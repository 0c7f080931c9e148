"""A trio loop for tests that aren't tasks themselves, such as hypothesis's state machines."""

from __future__ import annotations

import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Generic, TypeVar

import trio
import trio.testing

from keepfs.fs.bridge import AsyncBlocks, BlocksStatistics, open_blocks
from tests.fakes.threads import wait_for, wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keepfs.fs.block_store import BlockStore

T = TypeVar("T")


class Task(Generic[T]):
    """Something under way in the loop, and what became of it."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self._over = threading.Event()
        self._results: list[T] = []
        self._failure: BaseException | None = None

    def is_over(self) -> bool:
        """Tell whether it has ended. Never waits."""
        return self._over.is_set()

    def wait(self) -> None:
        """Wait for its end, whatever that is."""
        wait_for(self._over)

    def result(self) -> T:
        """Return what it returned, or raise what it raised. Waits for its end."""
        wait_for(self._over)
        if self._failure is not None:
            raise self._failure
        return self._results[0]

    @property
    def was_given_up(self) -> bool:
        """Whether it was cancelled before it ended. Waits for its end."""
        wait_for(self._over)
        return not self._results and self._failure is None

    async def run(self, work: Callable[..., Awaitable[T]], *args: object) -> None:
        """Do the work, in a task of the loop."""
        try:
            with self.scope:
                self._results.append(await work(*args))
        except Exception as error:  # noqa: BLE001 - handed to the test by `result`
            self._failure = error
        finally:
            self._over.set()


class Loop:
    """A trio loop in a thread of its own, with the blocks of a store open in it.

    Args:
        store: Where the blocks are.
        max_writes: Most threads that write at once.

    Attributes:
        blocks: Of the store; to be touched in the loop alone.
    """

    blocks: AsyncBlocks

    def __init__(self, store: BlockStore, *, max_writes: int = 4) -> None:
        self._store = store
        self._max_writes = max_writes
        self._started = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=[self._main], daemon=True)
        self._thread.start()
        wait_for(self._started)

    async def _main(self) -> None:
        async with AsyncExitStack() as stack:
            self.blocks = await stack.enter_async_context(
                open_blocks(self._store, copies=2, max_writes=self._max_writes)
            )
            self._nursery = await stack.enter_async_context(trio.open_nursery())
            self._token = trio.lowlevel.current_trio_token()
            self._end = trio.Event()
            self._started.set()
            await self._end.wait()

    def call(self, work: Callable[..., T], *args: object) -> T:
        """Call something in the loop, between two of its steps."""
        return trio.from_thread.run_sync(work, *args, trio_token=self._token)

    def wait(self, work: Callable[..., Awaitable[T]], *args: object) -> T:
        """Do something in the loop, and wait for its end."""
        return trio.from_thread.run(work, *args, trio_token=self._token)

    def start(self, work: Callable[..., Awaitable[T]], *args: object) -> Task[T]:
        """Begin something in the loop; return when it, and all else, can only wait."""
        task = Task[T]()
        self.call(self._nursery.start_soon, task.run, work, *args)
        self.settle()
        return task

    def settle(self) -> None:
        """Return when everything in the loop waits, for threads perhaps."""
        self.wait(trio.testing.wait_all_tasks_blocked)

    def calm_down(self) -> None:
        """Return when no thread works for the loop any more."""
        wait_until(lambda: self.call(self.blocks.statistics) == BlocksStatistics(0, 0, 0))

    def close(self) -> None:
        """End the loop, when all that was begun in it has ended."""
        self.call(self._end.set)
        self._thread.join()
