"""Work in trio's threads, with and without threads that can be started."""

from __future__ import annotations

import contextlib
import threading

import pytest
import trio
import trio.testing

from keepfs.fs.errnos import errno_of
from keepfs.fs.worker_threads import run_in_thread
from keepfs.keep.threads import NoThreadError
from tests.keep.test_no_threads import no_threads

#: More than the idle threads that trio keeps from other tests.
_MANY = 200


async def test_results_and_errors_of_the_work_are_the_callers() -> None:
    def fail() -> None:
        raise RuntimeError("can't start new thread, says the work")

    assert await run_in_thread(lambda: 5) == 5
    with pytest.raises(RuntimeError, match="says the work") as caught:
        await run_in_thread(fail)
    assert not isinstance(caught.value, NoThreadError)


@pytest.mark.parametrize("reason", [RuntimeError("can't start new thread"), MemoryError()])
async def test_work_that_gets_no_thread_was_not_begun(reason: Exception) -> None:
    release, begun = threading.Event(), list[int]()
    limiter = trio.CapacityLimiter(_MANY + 1)

    async def occupy() -> None:
        with contextlib.suppress(NoThreadError):
            await run_in_thread(release.wait, limiter)

    with no_threads(reason):
        async with trio.open_nursery() as nursery:
            for _ in range(_MANY):
                nursery.start_soon(occupy)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(NoThreadError, match="no thread can be started") as caught:
                await run_in_thread(lambda: begun.append(1), limiter)
            release.set()

    assert begun == []
    assert errno_of(caught.value) == errno_of(MemoryError())
