"""Future: the result or failure of work in a task or thread.

For the trio thread only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import trio

from keepfs.keep.errors import fresh_copy
from keepfs.messages import of_commands

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Future(Generic[_T]):
    """The result of work in progress.

    Args:
        then: Called in the trio thread when the work has ended, before the
            waiting tasks continue.

    Attributes:
        result: The result of the work; None while it runs, or if it failed.
        failure: The exception that it raised, or None.
    """

    def __init__(self, then: Callable[[Future[_T]], None] = lambda _: None) -> None:
        self._then = then
        self._done = trio.Event()
        self.result: _T | None = None
        self.failure: Exception | None = None

    def finish(self, result: _T) -> None:
        """Set the result and wake all waiting tasks."""
        self.result = result
        self._end()

    def fail(self, failure: Exception) -> None:
        """Set the failure and wake all waiting tasks."""
        try:
            self.failure = fresh_copy(failure)
        except Exception:  # noqa: BLE001 - no memory for a copy, perhaps
            self.failure = failure
        self._end()

    def _end(self) -> None:
        try:
            self._then(self)
        except Exception as error:  # noqa: BLE001 - it would end the nursery, and so the mount
            _log.exception("%s", of_commands.UNEXPECTED(what="the callback of a future"))
            self.failure = fresh_copy(error)
        finally:
            self._done.set()

    async def wait(self) -> _T:
        """Wait for the result. Cancellation leaves the work running.

        Raises:
            Exception: The work failed; each caller gets its own copy of the exception.
        """
        await self._done.wait()
        if self.failure is not None:
            raise fresh_copy(self.failure)
        return cast("_T", self.result)
