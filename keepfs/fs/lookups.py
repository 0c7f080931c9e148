"""Lookups: check within a bounded time whether a block exists.

libfuse 3.14 does not negotiate parallel lookups: the kernel sends the lookups of a
directory one after the other, and a client that waits in one can't be killed. So
a lookup waits for a short time only, and a temporary failure does not fail it.
A name with a size is then trusted for some seconds; the read, which retries,
reports the failure.

For the trio thread only.
"""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from keepfs.keep.errors import Cause, KeepReadError, KeepRequestError

if TYPE_CHECKING:
    from keepfs.fs.bridge import AsyncBlocks
    from keepfs.fs.future import Future
    from keepfs.keep.locator import KeepLocator

_log = logging.getLogger(__name__)

#: Most seconds that a lookup waits.
DEFAULT_LOOKUP_WAIT = 2.0
#: Seconds for which a late answer is kept for the next lookup of the name.
_LATE_ANSWER = 30.0


class Lookup(enum.Enum):
    """How a lookup checks that a block exists."""

    FETCH = "fetch"  # start to fetch it: a read usually follows
    HEAD = "head"  # send HEAD only: for slow links and local stores
    TRUST = "trust"  # send nothing: trust the name


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a lookup.

    Attributes:
        size: The size of the block, in bytes.
        is_seen: Whether the store confirmed the block; False if the name was trusted.
    """

    size: int
    is_seen: bool


@dataclass(slots=True, eq=False)
class _Question:
    """A HEAD in progress, or one whose answer no lookup has received yet."""

    future: Future[int]
    waiting: int = 0
    ended: float | None = None


class Lookups:
    """Looks blocks up.

    Args:
        blocks: The block store.
        how: How to check that a block exists.
        wait: Seconds that a lookup may take. A name with a size waits less if the
            services usually answer sooner.
    """

    def __init__(
        self,
        blocks: AsyncBlocks,
        how: Lookup = Lookup.HEAD,
        wait: float = DEFAULT_LOOKUP_WAIT,
    ) -> None:
        self._blocks = blocks
        self._how = how
        self._wait = wait
        self._questions: dict[KeepLocator, _Question] = {}

    async def find(self, locator: KeepLocator) -> Finding:
        """Find a block, within the time that a lookup may take.

        Raises:
            KeepReadError: The store reports a permanent failure. For a name without a
                size, any failure is raised, and a missing answer is one (cause TIMED_OUT):
                the request continues, and a later call gets the answer.
        """
        if locator.size is None:
            return await self._find_size(locator)
        if self._how is Lookup.TRUST:
            return Finding(locator.size, is_seen=False)
        wait = self._blocks.lookup_wait(self._wait)
        size = None
        try:
            with trio.move_on_after(wait):
                if self._how is Lookup.FETCH:
                    size = await self._blocks.probe(locator, wait).wait()
                else:
                    size = await self._head(locator)
        except KeepRequestError as error:
            if _is_definite(error):
                raise
            _log.info("a lookup trusts the name for now: %s", error)
        return Finding(locator.size if size is None else size, is_seen=size is not None)

    async def _find_size(self, locator: KeepLocator) -> Finding:
        with trio.move_on_after(self._wait):
            return Finding(await self._head(locator), is_seen=True)
        raise KeepReadError(
            f"no service sent the size of {locator.stripped()} within {self._wait} s;"
            " the request goes on",
            cause=Cause.TIMED_OUT,
        )

    async def _head(self, locator: KeepLocator) -> int:
        """Request a block's size, or join such a request. Cancellation leaves it running."""
        self._forget_old()
        question = self._questions.get(locator)
        if question is None:
            question = self._questions[locator] = _Question(
                self._blocks.head(locator, lambda _: self._note_end(locator))
            )
        elif question.ended is not None:
            del self._questions[locator]
        question.waiting += 1
        try:
            return await question.future.wait()
        finally:
            question.waiting -= 1

    def _note_end(self, locator: KeepLocator) -> None:
        question = self._questions[locator]
        if question.waiting:
            del self._questions[locator]
        else:
            question.ended = trio.current_time()

    def _forget_old(self) -> None:
        now = trio.current_time()
        for locator, question in list(self._questions.items()):
            if question.ended is not None and now - question.ended > _LATE_ANSWER:
                del self._questions[locator]


def _is_definite(error: KeepRequestError) -> bool:
    """Return whether the failure is permanent, so that a retry can't help."""
    if error.cause in {Cause.NOT_FOUND, Cause.DENIED}:
        return True
    # Another copy may be intact. Without a service's answer the locator itself is invalid.
    return error.cause is Cause.CORRUPT and not error.request_errors()
