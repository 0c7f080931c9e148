"""Memory: returns the unused memory of an idle mount to the system; limits malloc's arenas."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING

import trio

from keepfs.fs.worker_threads import run_in_thread
from keepfs.keep.threads import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds without an answered request after which memory is given back. Guessed: longer than
#: the pauses of a job, since the next block then needs new pages, about 32 ms for 64 MiB.
IDLE_SECONDS = 20.0
#: Most arenas of glibc's malloc. By default it makes up to eight for each processor core and
#: keeps the freed pages of each. Measured after 1 GiB written and read by four programs: 465 MiB
#: with eight arenas, 250 MiB with two. Python's own small objects do not use them.
_ARENAS = 2
_M_ARENA_MAX = -8  # malloc.h
_libc = ctypes.CDLL(None)


def limit_arenas() -> None:
    """Limit glibc's malloc to two arenas; without effect on another libc. Call before threads."""
    if (mallopt := getattr(_libc, "mallopt", None)) is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


async def trim_when_idle(
    answered: Callable[[], int], give_back: Callable[[], None], idle: float = IDLE_SECONDS
) -> None:
    """Return memory to the system once after each busy time; runs until cancelled.

    Args:
        answered: Returns the number of requests answered since the start.
        give_back: Releases unused buffers. Called in a worker thread, which then returns the
            free pages of malloc to the kernel.
        idle: Seconds without an answered request.
    """
    seen, is_trimmed = answered(), True
    while True:
        await trio.sleep(idle)
        now = answered()
        if now != seen:
            seen, is_trimmed = now, False
        elif not is_trimmed:
            with contextlib.suppress(NoThreadError):
                await run_in_thread(lambda: _trim(give_back))
                is_trimmed = True


def _trim(give_back: Callable[[], None]) -> None:
    give_back()
    # Takes milliseconds, in this thread; without effect on another libc.
    if (malloc_trim := getattr(_libc, "malloc_trim", None)) is not None:
        malloc_trim(0)
