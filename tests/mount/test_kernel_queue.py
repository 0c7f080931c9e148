"""The queue of the kernel's requests, over a socket in place of /dev/fuse."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import socket
from typing import TYPE_CHECKING

import pyfuse3
import pytest
import trio
import trio.testing

from keepfs.mount.kernel_queue import POLL_TIME, KernelQueue, default_poll_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

#: A request that ends the loop, as an unmount does.
END = b"\xff"


class Kernel:
    """Requests of one byte each, and the tasks that answer them as those of pyfuse3 do.

    Args:
        queue: The queue under test.
        answer: Handles a request.
    """

    def __init__(self, queue: KernelQueue, answer: Callable[[int], Awaitable[None]]) -> None:
        self.sender, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.device.settimeout(0.0)
        self.answered: list[int] = []
        self.tasks = 0
        self._queue = queue
        self._answer = answer
        self._readers = 0
        self._is_ended = False

    def send(self, *numbers: int) -> None:
        """Send requests."""
        for each in numbers:
            self.sender.send(bytes([each]))

    async def serve(self) -> None:
        """Answer requests until one is END or `pyfuse3.terminate` is called."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._task, nursery)

    def end(self) -> None:
        """End as `pyfuse3.terminate` does."""
        self._is_ended = True
        trio.lowlevel.notify_closing(self.device.fileno())

    async def _readable(self) -> bool:
        self._readers += 1
        try:
            async with self._queue:
                if self._is_ended:
                    return False
                await self._queue.wait_readable(self.device.fileno())
        except trio.ClosedResourceError:
            return False
        finally:
            self._readers -= 1
        return True

    async def _task(self, nursery: trio.Nursery) -> None:
        self.tasks += 1
        while not self._is_ended and self._readers <= 1:
            if not await self._readable():
                break
            request = self.device.recv(1)
            if not self._readers:
                nursery.start_soon(self._task, nursery)
            if request == END:
                self._is_ended = True
                break
            await self._answer(request[0])
            self.answered.append(request[0])
        self.tasks -= 1


@contextlib.asynccontextmanager
async def serving(
    answer: Callable[[int], Awaitable[None]], poll_time: float = 50e-6
) -> AsyncIterator[Kernel]:
    queue = KernelQueue(poll_time)
    kernel = Kernel(queue, answer)
    with kernel.sender, kernel.device, queue.installed():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.serve)
            yield kernel
            await until(lambda: not kernel.tasks)


async def at_once(_: int) -> None:
    """Answer without waiting."""


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - the conditions have no events
            await trio.sleep(0.001)


async def test_requests_that_need_no_wait_are_answered_by_one_task_in_one_turn() -> None:
    turns = 0

    class Turns(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            nonlocal turns
            del timeout
            turns += 1

    async with serving(at_once) as kernel:
        await until(lambda: kernel.tasks == 1)
        await trio.testing.wait_all_tasks_blocked()
        kernel.send(*range(50))
        counting = Turns()
        trio.lowlevel.add_instrument(counting)
        await until(lambda: len(kernel.answered) == 50)
        trio.lowlevel.remove_instrument(counting)
        assert kernel.answered == [*range(50)]
        assert kernel.tasks <= 2
        assert turns < 40  # with trio's lock each request takes two
        kernel.sender.send(END)


async def test_a_request_that_waits_does_not_hold_up_the_next() -> None:
    release = trio.Event()

    async def answer(number: int) -> None:
        if number < 3:
            await release.wait()

    async with serving(answer) as kernel:
        kernel.send(0, 1, 2, 3, 4)
        await until(lambda: kernel.answered == [3, 4])
        release.set()
        await until(lambda: sorted(kernel.answered) == [0, 1, 2, 3, 4])
        kernel.sender.send(END)


@pytest.mark.parametrize("poll_time", [0.0, 50e-6])
async def test_each_request_is_answered_once_whatever_waits(poll_time: float) -> None:
    chance = random.Random(5)  # noqa: S311 - any order

    async def answer(_: int) -> None:
        for _ in range(chance.choice([0, 0, 0, 1, 2])):
            await trio.sleep(chance.choice([0, 0, 0.001]))

    async with serving(answer, poll_time) as kernel:
        for number in range(250):
            kernel.send(number)
            if chance.random() < 0.5:
                await trio.sleep(chance.choice([0, 0.0001]))
        await until(lambda: sorted(kernel.answered) == [*range(250)])
        kernel.sender.send(END)


@pytest.mark.parametrize("end", [functools.partial(Kernel.send), Kernel.end])
async def test_all_tasks_end_with_the_loop(end: Callable[[Kernel], None]) -> None:
    async with serving(at_once) as kernel:
        kernel.send(1, 2)
        await until(lambda: len(kernel.answered) == 2)
        assert kernel.tasks
        end(kernel)
        kernel.sender.send(END)


async def test_a_waiting_task_can_be_cancelled_and_the_queue_used_again() -> None:
    queue = KernelQueue()
    kernel = Kernel(queue, at_once)
    with kernel.sender, kernel.device:
        for number in (1, 2):
            with queue.installed(), trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(kernel.serve)
                    kernel.send(number)
                    await until(lambda: len(kernel.answered) == number)  # noqa: B023 - runs in the loop
                    scope.cancel()
            kernel.tasks = kernel._readers = 0  # noqa: SLF001 - the loop is started afresh
    assert kernel.answered == [1, 2]


async def test_other_tasks_run_while_requests_keep_coming() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with serving(at_once) as kernel, trio.open_nursery() as nursery:

        async def go_on(number: int) -> None:
            await at_once(number)
            if number < 255 and turns < 3:
                kernel.send(1)  # the next request is there before this one is answered

        kernel._answer = go_on  # noqa: SLF001 - needs the kernel
        nursery.start_soon(count)
        kernel.send(1)
        await until(lambda: turns >= 3)
        nursery.cancel_scope.cancel()
        kernel.sender.send(END)


async def test_few_polls_are_in_vain_if_requests_come_too_late_each_time() -> None:
    ticks = itertools.count()
    queue = KernelQueue(50e-6, clock=lambda: next(ticks) * 1e-6)  # a poll takes some 50 ticks
    kernel = Kernel(queue, at_once)
    with kernel.sender, kernel.device, queue.installed():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.serve)
            for number in range(100):
                await trio.testing.wait_all_tasks_blocked()  # after a poll, if there was one
                kernel.send(number)
            await until(lambda: len(kernel.answered) == 100)
            kernel.sender.send(END)

    assert next(ticks) < 100 * 5 + 20 * 50


def test_nothing_is_polled_for_on_one_processor() -> None:
    usable = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(usable)})
        alone = default_poll_time()
    finally:
        os.sched_setaffinity(0, usable)

    assert alone == 0.0
    assert default_poll_time() == (POLL_TIME if len(usable) > 1 else 0.0)


def test_pyfuse3_gets_its_trio_back() -> None:
    async def use() -> None:
        with KernelQueue().installed():
            assert pyfuse3.trio is not trio  # type: ignore[attr-defined]

    trio.run(use)
    assert pyfuse3.trio is trio  # type: ignore[attr-defined]
