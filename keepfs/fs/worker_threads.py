"""Runs blocking work in trio's worker threads, with one error if no thread can be started."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

from keepfs.keep.threads import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


async def run_in_thread(work: Callable[[], _T], limiter: trio.CapacityLimiter | None = None) -> _T:
    """Run blocking work in a worker thread and return its result.

    Cancellation abandons the wait, not the work.

    Args:
        work: The function to run.
        limiter: Bounds the threads; None for trio's default.

    Raises:
        NoThreadError: The system can't start a thread; the work was not begun.
        Exception: The exception of the work.
    """
    has_begun = False

    def run() -> _T:
        nonlocal has_begun
        has_begun = True
        return work()

    try:
        return await trio.to_thread.run_sync(run, limiter=limiter, abandon_on_cancel=True)
    except (RuntimeError, MemoryError) as error:
        if has_begun or isinstance(error, trio.RunFinishedError):
            raise
        raise NoThreadError(error) from error
