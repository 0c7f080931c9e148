"""The event loop of a process: runs trio so that signals can arrive at any time."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


def run_loop(main: Callable[..., Awaitable[T]], *args: object) -> T:
    """Run an async function to its end, and return its result. Main thread only; blocks.

    As `trio.run`, but no signal wakes the loop after `main` has ended. trio closes the socket
    that signals write to before it tells the interpreter. A signal in between prints an error
    to standard error, or writes a byte to a file of another thread that got the same number.
    """

    async def until_signals_end() -> T:
        try:
            return await main(*args)
        finally:
            signal.set_wakeup_fd(-1)

    return trio.run(until_signals_end)
