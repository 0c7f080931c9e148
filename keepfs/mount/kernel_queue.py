"""The order in which pyfuse3's tasks read requests of the kernel, with few turns of the loop.

pyfuse3 has two idle tasks. One holds a lock and waits until /dev/fuse is readable; then it
releases the lock, reads a request and answers it, while the other waits for the next. With trio's
lock and trio's `wait_readable` each request takes two turns of the event loop, and the processor
sleeps between a reply and the caller's next request. `KernelQueue` replaces both: a task that
answers without waiting keeps its place, and the next request is polled for some microseconds.

pyfuse3 lets its `trio` be replaced: `pyfuse3.asyncio` does that too.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pyfuse3
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

#: Seconds for which the next request is polled after a reply. A process that gets a reply sends
#: its next request 5 to 30 µs later; waking a sleeping thread takes 20 to 40 µs (measured on a
#: virtual machine).
POLL_TIME = 50e-6
#: Seconds after which the event loop gets a turn although more requests wait.
_BURST = 0.5e-3
#: Most waits for a request without a poll, after polls in vain.
_LONGEST_PAUSE = 15


def default_poll_time() -> float:
    """Return `POLL_TIME`, or 0.0 if this thread has one processor only.

    There a poll takes the processor from the caller whose request it waits for, and from the
    threads of the mount: with a writer beside it, a request took 15 % more time of it.
    """
    return POLL_TIME if len(os.sched_getaffinity(0)) > 1 else 0.0


class KernelQueue(trio.abc.Instrument):
    """The lock of pyfuse3's tasks, and their wait for /dev/fuse. For one trio thread.

    Invariant: a task waits for the lock only while another one holds it, or answers a request
    and has not waited yet.

    Args:
        poll_time: Seconds for which a task polls before it sleeps; 0.0 for never. None:
            `default_poll_time`.
        clock: Replaces `time.perf_counter`, in seconds.
    """

    def __init__(
        self, poll_time: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._poll_time = default_poll_time() if poll_time is None else poll_time
        self._is_held = False
        self._waiting: deque[trio.lowlevel.Task] = deque()
        # The task that has read a request, or is about to, and has not waited since.
        self._answering: trio.lowlevel.Task | None = None
        self._poll: select.poll | None = None
        self._polled = -1
        # The end of the last wait in the event loop, and whether polling is worthwhile: the
        # last request came soon.
        self._woken_at = 0.0
        self._comes_soon = False
        # The number of waits without a poll after the last polls in vain, and those of them
        # that are still to come.
        self._pause = self._pause_left = 0

    async def __aenter__(self) -> None:
        """Wait until no other task holds the lock."""
        while self._is_held:
            await self._wait_for_lock()
        self._is_held = True
        self._answering = None

    async def _wait_for_lock(self) -> None:
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Release the lock. The next task gets it when this one waits or ends."""
        self._is_held = False
        self._answering = trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Pass the lock on when the task that has read a request waits, or has ended."""
        if task is not self._answering:
            return
        self._answering = None
        # It may wait for a thread, which polling would keep from the interpreter's lock.
        self._comes_soon = False
        if not self._is_held and self._waiting:
            trio.lowlevel.reschedule(self._waiting.popleft())

    async def wait_readable(self, descriptor: int) -> None:
        """Wait until the descriptor is readable: at once, by polling, or in the event loop.

        Args:
            descriptor: The descriptor of /dev/fuse.

        Raises:
            trio.ClosedResourceError: `pyfuse3.terminate` was called.
        """
        if self._poll is None or self._polled != descriptor:
            self._poll, self._polled = select.poll(), descriptor
            self._poll.register(descriptor, select.POLLIN)
        began = self._clock()
        self._pause_left -= self._pause_left > 0
        if began - self._woken_at < _BURST:
            if self._poll.poll(0):
                self._comes_soon = True
                return
            end = began + self._poll_time
            if self._comes_soon and not self._pause_left and self._found_until(end, self._poll):
                return
        await trio.lowlevel.wait_readable(descriptor)
        self._woken_at = self._clock()
        self._comes_soon = self._woken_at - began < 2 * self._poll_time

    def _found_until(self, end: float, poll: select.poll) -> bool:
        """Poll until the descriptor is readable; return False if it isn't until a time."""
        while self._clock() < end:
            if poll.poll(0):
                self._pause = 0
                return True
        # Each request of a caller that takes a little longer would cost a poll in vain.
        self._pause = min(2 * self._pause + 1, _LONGEST_PAUSE)
        self._pause_left = self._pause + 1
        return False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Have pyfuse3 use this queue; call it in the trio thread, around `pyfuse3.main`."""
        lowlevel = SimpleNamespace(
            current_task=trio.lowlevel.current_task,
            current_trio_token=trio.lowlevel.current_trio_token,
            notify_closing=trio.lowlevel.notify_closing,
            wait_readable=self.wait_readable,
        )
        before = pyfuse3.trio  # type: ignore[attr-defined] # see the module's docstring
        pyfuse3.trio = SimpleNamespace(  # type: ignore[attr-defined]
            ClosedResourceError=trio.ClosedResourceError,
            Lock=lambda: self,
            lowlevel=lowlevel,
            open_nursery=trio.open_nursery,
        )
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(self)
            pyfuse3.trio = before  # type: ignore[attr-defined]
