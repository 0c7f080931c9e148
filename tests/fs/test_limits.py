"""A limit that stalled calls don't count against for ever."""

from __future__ import annotations

import trio
import trio.testing

from keepfs.fs.limits import YieldingLimiter


async def begun(
    limiter: YieldingLimiter, count: int, order: list[int], nursery: trio.Nursery
) -> None:
    """Let many want a place, in order."""

    async def want(number: int) -> None:
        await limiter.acquire_on_behalf_of(number)
        order.append(number)

    for number in range(count):
        nursery.start_soon(want, number)
        await trio.testing.wait_all_tasks_blocked()


async def test_the_limit_bounds_concurrent_calls_in_order_of_arrival() -> None:
    limiter, order = YieldingLimiter(2, 100, patience=1000.0), list[int]()
    async with trio.open_nursery() as nursery:
        await begun(limiter, 4, order, nursery)
        at_first = list(order)
        limiter.release_on_behalf_of(1)
        await trio.testing.wait_all_tasks_blocked()
        later = list(order)
        nursery.cancel_scope.cancel()

    assert (at_first, later) == ([0, 1], [0, 1, 2])


async def test_an_old_call_frees_its_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limiter, order = YieldingLimiter(2, 5, patience=2.0), list[int]()
    seen = []
    async with trio.open_nursery() as nursery:
        await begun(limiter, 8, order, nursery)
        for _ in range(4):
            seen.append(len(order))
            await trio.sleep(2.1)
        limiter.release_on_behalf_of(0)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert seen == [2, 4, 5, 5]  # no more than five, of whatever age
    assert order == [0, 1, 2, 3, 4, 5]
    del autojump_clock


async def test_a_cancelled_waiter_leaves_its_place_to_others() -> None:
    limiter = YieldingLimiter(1, 10, patience=1000.0)
    await limiter.acquire_on_behalf_of("first")
    with trio.move_on_after(0) as scope:
        await limiter.acquire_on_behalf_of("second")
    limiter.release_on_behalf_of("first")

    await limiter.acquire_on_behalf_of("third")
    assert scope.cancelled_caught
