"""Memory: given back once after each busy time."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import trio
import trio.testing

from keepfs.keep.buffers import BufferPool
from keepfs.mount.memory import IDLE_SECONDS, trim_when_idle

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
_CHILD = """
import re
from keepfs.mount.memory import _trim, limit_arenas
limit_arenas()
def rss():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
before = rss()
blocks = [bytearray(100 * 1024) for _ in range(2000)]
for each in blocks:
    each[:] = b"x" * len(each)
last = bytearray(b"x" * 1000)  # keeps the heap from shrinking by itself
del blocks
_trim(lambda: None)
print(rss() - before)
"""


class Idle:
    """A mount that answers requests at times, and counts how often memory is given back."""

    def __init__(self) -> None:
        self.answered = self.given_back = 0
        self.has_given_back = threading.Event()  # in a thread, for which no clock waits

    def give_back(self) -> None:
        """Count it."""
        self.given_back += 1
        self.has_given_back.set()

    async def run(self, *, then: Callable[[], None], periods: int) -> None:
        """Let idle periods pass, call `then`, let as many pass again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                functools.partial(trim_when_idle, lambda: self.answered, self.give_back)
            )
            for _ in range(2):
                for _ in range(periods):
                    await trio.sleep(IDLE_SECONDS)
                then()
            nursery.cancel_scope.cancel()


async def test_memory_is_released_once_after_a_busy_time(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    idle = Idle()

    def answer() -> None:
        idle.answered += 5

    await idle.run(then=answer, periods=5)

    await trio.to_thread.run_sync(idle.has_given_back.wait, 20)
    assert idle.given_back == 1


async def test_a_mount_that_was_never_busy_releases_nothing(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    idle = Idle()

    await idle.run(then=lambda: None, periods=5)

    assert idle.given_back == 0


def test_idle_buffers_are_released() -> None:
    pool = BufferPool(MIB)
    pool.lend(MIB).release()
    assert pool.idle() == 1

    pool.release_idle()

    assert pool.idle() == 0


def test_freed_pages_go_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, check=True)

    assert int(done.stdout) < 100  # MiB, of 195 that were freed
