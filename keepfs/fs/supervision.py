"""Supervision: restarts the tasks of the mount after unexpected exceptions.

For the trio thread only.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import trio

from keepfs.keep.retry import Backoff
from keepfs.messages import of_running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)

#: The waits before a failed task is restarted.
RESTART_BACKOFF = Backoff(first=0.2, factor=2.0, cap=30.0)
#: Seconds without a failure after which the back-off is reset.
_STEADY = 60.0


async def supervised(
    name: str,
    work: Callable[[], Awaitable[None]],
    *,
    most: int | None = None,
    backoff: Backoff = RESTART_BACKOFF,
) -> None:
    """Run a task until it returns; log an unexpected exception and restart it after a back-off.

    Args:
        name: The task's name in the log.
        work: The task; called anew for each start.
        most: Failures in a row after which the exception is raised; None for any number.
        backoff: The waits before restarts.

    Raises:
        Exception: The last of `most` failures.
    """
    failures = 0
    while True:
        started = trio.current_time()
        try:
            await work()
        except Exception:
            failures = 1 if trio.current_time() - started > _STEADY else failures + 1
            if most is not None and failures >= most:
                _log.exception("%s", of_running.TASK_GIVEN_UP(name=name, count=failures))
                raise
            wait = backoff.wait(failures - 1, random.random())  # noqa: S311 - to spread restarts
            _log.exception("%s", of_running.TASK_RESTARTED(name=name, seconds=f"{wait:.1f}"))
        else:
            return
        await trio.sleep(wait)
