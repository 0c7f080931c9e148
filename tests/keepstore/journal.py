"""What a server was asked: each request, and how many are under way.

Any thread may write and read. Times are `time.monotonic` seconds, which on
Linux all processes share.
"""

from __future__ import annotations

import collections
import itertools
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.keepstore.wire import Request


@dataclass(frozen=True, slots=True)
class Entry:
    """One request and what became of it.

    Attributes:
        number: Counted from 0, in the order in which requests came.
        connection: Counted from 0; requests on one connection share it.
        headers: In their order, as the client wrote them.
        began: When the headers had come, in monotonic seconds.
        body_size: Bytes of the request's body that were read; 0 until the end.
        body_md5: Of that body in hex; empty for one that was thrown away.
        status: What was answered; None while under way, and if nothing was.
        ended: When the last byte was about to be sent, or the connection was
            closed; None before.
    """

    number: int
    connection: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    began: float
    body_size: int = 0
    body_md5: str = ""
    status: int | None = None
    ended: float | None = None

    def header(self, name: str) -> str | None:
        """Return the first header of that name, in whatever case it is written."""
        wanted = name.lower()
        return next((text for key, text in self.headers if key.lower() == wanted), None)


class Journal:
    """All requests of one server."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entries: dict[int, Entry] = {}
        self._numbers = itertools.count()
        self._under_way: collections.Counter[str] = collections.Counter()
        self._most: collections.Counter[str] = collections.Counter()

    def begin(self, request: Request) -> int:
        """Write down a request whose headers have come, and return its number."""
        with self._changed:
            number = next(self._numbers)
            self._entries[number] = Entry(
                number=number,
                connection=request.connection,
                method=request.method,
                target=request.target,
                headers=tuple(request.headers),
                began=time.monotonic(),
            )
            self._under_way[request.method] += 1
            self._most[request.method] = max(
                self._most[request.method], self._under_way[request.method]
            )
            self._changed.notify_all()
            return number

    def end(self, number: int, request: Request, status: int | None) -> None:
        """Write down how a request ended; a second time changes nothing.

        Called before the last byte of the answer leaves, so that a client that
        has its answer finds it here.
        """
        size, md5sum = request.body.received, request.body.md5sum()
        with self._changed:
            entry = self._entries.get(number)
            if entry is None or entry.ended is not None:
                return
            self._entries[number] = replace(
                entry,
                body_size=size,
                body_md5=md5sum,
                status=status,
                ended=time.monotonic(),
            )
            self._under_way[request.method] -= 1
            self._changed.notify_all()

    def entries(self, method: str | None = None) -> list[Entry]:
        """List the requests so far, or those of one method."""
        with self._changed:
            return [entry for entry in self._entries.values() if method in {None, entry.method}]

    def counts(self) -> dict[str, int]:
        """Count the requests so far by method."""
        with self._changed:
            return dict(collections.Counter(entry.method for entry in self._entries.values()))

    def under_way(self, method: str) -> int:
        """Count the requests of a method that aren't answered yet."""
        with self._changed:
            return self._under_way[method]

    def most_under_way(self, method: str) -> int:
        """Return the most requests of a method that were ever under way at once."""
        with self._changed:
            return self._most[method]

    def clear(self) -> None:
        """Forget all requests that have ended, and start the maxima again."""
        with self._changed:
            left = {number: each for number, each in self._entries.items() if each.ended is None}
            self._entries = left
            self._most = collections.Counter(self._under_way)

    def wait_begun(self, requests: int, method: str | None = None, timeout: float = 10.0) -> None:
        """Block until that many requests have come.

        Raises:
            TimeoutError: They were fewer for `timeout` seconds.
        """
        self._wait(lambda: self._count(method, ended=False) >= requests, timeout)

    def wait_ended(self, requests: int, method: str | None = None, timeout: float = 10.0) -> None:
        """Block until that many requests have ended.

        Raises:
            TimeoutError: They were fewer for `timeout` seconds.
        """
        self._wait(lambda: self._count(method, ended=True) >= requests, timeout)

    def wait_under_way(self, requests: int, method: str, timeout: float = 10.0) -> None:
        """Block until that many requests of a method are under way at once.

        Raises:
            TimeoutError: They were fewer for `timeout` seconds.
        """
        self._wait(lambda: self._under_way[method] >= requests, timeout)

    def _count(self, method: str | None, *, ended: bool) -> int:
        return sum(
            method in {None, entry.method} and (not ended or entry.ended is not None)
            for entry in self._entries.values()
        )

    def _wait(self, condition: Callable[[], bool], timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise TimeoutError(
                    f"only {len(self._entries)} requests: {list(self._entries.values())[-3:]}"
                )
