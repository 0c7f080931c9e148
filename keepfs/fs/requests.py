"""Requests in progress: the register, deadlines, interrupts, and the counts of answered ones.

pyfuse3 doesn't support interrupts: a client that waits in a lookup or a close can't
be killed until the handler answers. So every request is registered here, and a watch
checks the waiting requests: ten times a second while they are young, later down to
once a second. A request older than the deadline is answered ETIMEDOUT; a request whose caller has
a fatal signal pending is answered EINTR. Without requests the watch sleeps.

This cancels the handler, not the work that it waits for: threads that fetch or
store run on (`keepfs.fs.bridge`).
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import trio
from pyfuse3 import FUSEError, RequestContext

from keepfs.fs.errnos import RefusedError, errno_of
from keepfs.fs.failure_text import failure_text
from keepfs.fs.processes import dies_of_a_signal, dying_threads_in_fuse
from keepfs.keep.counters import Histogram
from keepfs.keep.errors import KeepRequestError
from keepfs.keep.threads import NoThreadError
from keepfs.messages import of_commands, of_running
from keepfs.messages.message import without_ids

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from keepfs.fs.nodes import Node
    from keepfs.keep.counters import HistogramCounts

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Seconds between two checks of a young request: the longest that a killed client waits.
#: A check reads a file of /proc for each process that waits, in some 40 µs. Guessed.
WATCH_INTERVAL = 0.1
#: An older request is checked again after this fraction of its age, and at least once per
#: `_LONGEST_INTERVAL` seconds: a client killed after 10 s waits for at most 1 s more.
_AGE_FRACTION, _LONGEST_INTERVAL = 0.1, 1.0

#: Seconds within which the kernel retries a range whose read was given up.
_ASKED_AGAIN = 1.0


@dataclass(slots=True, eq=False)
class _Request:
    """One request in progress.

    Attributes:
        name: The name of its handler.
        arguments: The arguments of the handler.
        scope: The scope of the handler; the watch cancels it to give the request up.
        since: Its start time.
        pid: The caller; 0 if unknown.
        opener: The process that opened the file, if pyfuse3 doesn't report the caller. They
            may differ: descriptors are inherited and sent.
        file: Its file or directory, for the log.
        given_up: The errno with which it was given up, or 0.
        check_at: The time of its next check.
    """

    name: str
    arguments: tuple[Any, ...]
    scope: trio.CancelScope
    since: float
    pid: int
    opener: int = 0
    file: Node | None = None
    given_up: int = 0
    check_at: float = 0.0

    def postpone_check(self, now: float, deadline: float) -> None:
        """Set the time of the next check, at the latest when it is `deadline` seconds old."""
        wait = min(max(WATCH_INTERVAL, _AGE_FRACTION * (now - self.since)), _LONGEST_INTERVAL)
        self.check_at = min(now + wait, max(self.since + deadline, now + WATCH_INTERVAL))

    def noted(self) -> RequestInProgress:
        """Return what other modules may know of it."""
        return RequestInProgress(self.name, self.arguments, self.since, self.pid or self.opener)


@dataclass(frozen=True, slots=True)
class RequestInProgress:
    """A request that is not answered yet.

    Attributes:
        kind: The name of its handler.
        arguments: The arguments of the handler, from which `Operations.path_of` finds the path.
        since: Its start, on trio's clock, in seconds.
        pid: The process that waits for it, as far as it is known; else 0.
    """

    kind: str
    arguments: tuple[Any, ...]
    since: float
    pid: int


class OperationCounts(NamedTuple):
    """The answered requests of one kind.

    Attributes:
        durations: The histogram of the times from the start of each handler to its end.
        errors: Numbers of failed requests, by errno. A lookup that finds no entry is a failure,
            with ENOENT.
    """

    durations: HistogramCounts
    errors: dict[int, int]


class _OperationTally:
    """Counts the requests of one kind."""

    __slots__ = ("durations", "errors")

    def __init__(self) -> None:
        self.durations = Histogram()
        self.errors: dict[int, int] = {}


@dataclass(frozen=True, slots=True)
class RequestStatistics:
    """The numbers of requests.

    Attributes:
        under_way: Requests not answered yet.
        oldest: Age of the oldest of them, in seconds; 0.0 without any.
        answered: Requests answered since the start.
        given_up: Answered requests that the watch gave up, with ETIMEDOUT or EINTR.
    """

    under_way: int
    oldest: float
    answered: int
    given_up: int


class Requests:
    """The register of requests in progress, and the counts of answered ones.

    For the trio thread only, except `in_progress` and `deadline`.

    Args:
        deadline: Seconds after which a request is answered ETIMEDOUT.
    """

    def __init__(self, deadline: float) -> None:
        #: Seconds after which a request is answered ETIMEDOUT.
        self.deadline = deadline
        self._requests: dict[trio.lowlevel.Task, _Request] = {}
        # Set when a request arrives while the watch sleeps.
        self._has_some = trio.Event()
        self._tallies: dict[str, _OperationTally] = {}
        self._given_up = 0
        #: The request that a plain function answers now: name, arguments and start.
        self.at_once: tuple[str, tuple[Any, ...], float] | None = None

    async def answer(
        self,
        name: str,
        handling: Awaitable[_T],
        pid: int,
        arguments: tuple[Any, ...] = (),
        path_of: Callable[[RequestInProgress], str] = lambda _: "",
    ) -> _T:
        """Await a handler; convert every exception of it to `FUSEError`.

        Args:
            name: The handler's name, for the log and the counts.
            handling: The handler's coroutine.
            pid: The caller; 0 if unknown.
            arguments: The arguments of the handler, for `in_progress`.
            path_of: Returns the path of a request without a file (`about`), for the log; empty
                if it has none.
        """
        request = _Request(name, arguments, trio.CancelScope(), trio.current_time(), pid)
        try:
            with request.scope:
                return await self._entered(request, handling)
        except trio.Cancelled:
            # The mount ends, or pyfuse3's loop is restarted: without an answer the caller
            # could not even be killed. The next checkpoint raises it again.
            raise self._failed(name, errno.ENOTCONN) from None
        except Exception as error:
            raise self.failed(name, error, lambda: _described(request, path_of)) from error
        # Reached only if the watch has cancelled the scope.
        self._given_up += 1
        said = of_running.REQUEST_TIMED_OUT(
            what=_described(request, path_of),
            errno=errno.errorcode[request.given_up],
            seconds=f"{trio.current_time() - request.since:.1f}",
            pid=request.pid or request.opener,
        )
        if request.given_up == errno.EINTR:
            _log.info("%s", without_ids(said))
        else:
            _log.warning("%s", said)
        raise self._failed(name, request.given_up)

    def answered(self, name: str, seconds: float) -> None:
        """Count a request that was answered without a wait.

        Args:
            name: The handler's name.
            seconds: The time that it took.
        """
        self._tally(name).durations.add(seconds)

    def failed(self, name: str, error: Exception, describe: Callable[[], str]) -> FUSEError:
        """Log and count an exception of a handler, and return the error for the kernel.

        Args:
            name: The handler's name.
            error: The exception.
            describe: Returns the handler's name and the path of the file, for the log.
        """
        number = errno_of(error)
        if isinstance(error, RefusedError):
            pass  # the caller's mistake
        elif isinstance(error, KeepRequestError | NoThreadError | OSError):  # expected: one line
            level = logging.DEBUG if number == errno.ENOENT else logging.WARNING
            if _log.isEnabledFor(level):
                said = failure_text(error)
                _log.log(level, "%s: %s: %s", describe(), errno.errorcode[number], said)
        else:  # a bug: with its traceback
            _log.error("%s", of_commands.UNEXPECTED(what=describe()), exc_info=error)
        return self._failed(name, number)

    def _failed(self, name: str, number: int) -> FUSEError:
        """Count a failure, and return the error for the kernel."""
        self.count_error(name, number)
        return FUSEError(number)

    def count_error(self, name: str, number: int) -> None:
        """Count an error of a request; for handlers that answer one without raising it.

        Args:
            name: The handler's name.
            number: The errno.
        """
        errors = self._tally(name).errors
        errors[number] = errors.get(number, 0) + 1

    def _tally(self, name: str) -> _OperationTally:
        found = self._tallies.get(name)
        if found is None:
            found = self._tallies[name] = _OperationTally()
        return found

    async def _entered(self, request: _Request, handling: Awaitable[_T]) -> _T:
        """Await a handler while its request is registered."""
        task = trio.lowlevel.current_task()
        if not self._requests:
            self._has_some.set()
        self._requests[task] = request
        try:
            return await handling
        finally:
            del self._requests[task]
            self._tally(request.name).durations.add(trio.current_time() - request.since)

    def about(self, file: Node, opener: int = 0) -> None:
        """Set the file or directory of the current request.

        Args:
            file: The file or directory.
            opener: The process that opened it, if pyfuse3 doesn't report the caller
                (read, write, flush, fsync, fsyncdir).
        """
        request = self._requests.get(trio.lowlevel.current_task())
        if request is not None:
            request.file, request.opener = file, opener

    async def watch(self) -> None:
        """Give up overdue requests and those of killed callers; runs until cancelled."""
        while True:
            if not self._requests:
                self._has_some = trio.Event()
                await self._has_some.wait()
            await trio.sleep(WATCH_INTERVAL)
            self._check(trio.current_time())

    def _check(self, now: float) -> None:
        """Check the requests that are due, and give up those that must not wait longer."""
        due = [each for each in self._requests.values() if self._is_due(each, now)]
        pids = {each.pid for each in due if each.pid}
        dying = {pid for pid in pids if dies_of_a_signal(pid)}
        for request in due:
            if now - request.since > self.deadline:
                request.given_up = errno.ETIMEDOUT
            elif request.pid in dying:
                request.given_up = errno.EINTR
        self._interrupt_openers({each.opener for each in due if each.opener}, now)
        for request in due:
            request.postpone_check(now, self.deadline)
        for request in self._requests.values():
            if request.given_up:
                request.scope.cancel()

    @staticmethod
    def _is_due(request: _Request, now: float) -> bool:
        if request.given_up or now - request.since < WATCH_INTERVAL:
            return False
        return now >= request.check_at

    def _interrupt_openers(self, due: Collection[int], now: float) -> None:
        """Give up requests on files of a killed opener, if they can't be another process's.

        A process that waits for a request has a thread in it. If it has at least as many
        dying threads in requests as there are requests on its files, all of them are its own.

        Args:
            due: The openers with a request that is to be checked.
            now: The current time.
        """
        if not due:
            return
        callers = {each.pid for each in self._requests.values()}
        by_opener: dict[int, list[_Request]] = {}
        for each in self._requests.values():
            if each.opener in due and not each.given_up:
                by_opener.setdefault(each.opener, []).append(each)
        for opener, requests in by_opener.items():
            old = [each for each in requests if now - each.since >= WATCH_INTERVAL]
            if old and len(dying_threads_in_fuse(opener) - callers) >= len(requests):
                for each in old:
                    each.given_up = errno.EINTR

    def statistics(self) -> RequestStatistics:
        """Return the current numbers of requests."""
        now = trio.current_time()
        return RequestStatistics(
            under_way=len(self._requests),
            oldest=max((now - each.since for each in self._requests.values()), default=0.0),
            answered=sum(each.durations.number for each in self.operations().values()),
            given_up=self._given_up,
        )

    def in_progress(self) -> list[RequestInProgress]:
        """Return the requests that are not answered yet, the oldest first. For any thread.

        It copies the register in one operation, and reads of each request only attributes that
        are set once, each with an immutable value. While the event loop is stuck in the handler
        of a request, that request is among them.
        """
        # One call of C code: no other thread changes the dictionary meanwhile.
        waiting = [each.noted() for each in list(self._requests.values())]
        at_once = self.at_once
        if at_once is not None:
            name, arguments, since = at_once
            waiting.append(RequestInProgress(name, arguments, since, caller_in(arguments)))
        return sorted(waiting, key=lambda each: each.since)

    def operations(self) -> dict[str, OperationCounts]:
        """Return the counts of answered requests, by kind."""
        return {
            name: OperationCounts(each.durations.get(), each.errors.copy())
            for name, each in sorted(self._tallies.items())
        }


def caller_in(arguments: tuple[Any, ...]) -> int:
    """Return the caller's pid, or 0: if a handler gets a context, it is the last argument."""
    is_known = arguments and isinstance(arguments[-1], RequestContext)
    return cast("int", arguments[-1].pid) if is_known else 0


def _described(request: _Request, path_of: Callable[[RequestInProgress], str]) -> str:
    """Return `described` of a request."""
    path = path_of(request.noted()) if request.file is None else request.file.mount_path
    return described(request.name, path)


def described(name: str, path: str) -> str:
    """Return the name of a handler and the path from the mount's root, for the log."""
    return f"{name} of {path}" if path else name


class Overdue:
    """The reads of one open file that were given up at their deadline.

    The kernel retries a failed read-ahead at once. Without this a reader would
    wait for two deadlines.
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, float]] = []

    async def read(self, read: Callable[[int, int], Awaitable[_T]], offset: int, size: int) -> _T:
        """Read, but do not wait for a range that was given up less than a second ago.

        Args:
            read: Reads `size` bytes from `offset` on.
            offset: The first byte.
            size: The number of bytes.

        Raises:
            RefusedError: ETIMEDOUT, a read of the range was given up less than a
                second ago and the bytes are not cached.
        """
        now = trio.current_time()
        self._ranges = [it for it in self._ranges if it[2] > now]
        if any(begin < offset + size and offset < end for begin, end, _ in self._ranges):
            with trio.move_on_after(0):  # cached bytes need no wait
                return await read(offset, size)
            raise RefusedError(errno.ETIMEDOUT)
        try:
            return await read(offset, size)
        except trio.Cancelled:
            self._ranges.append((offset, offset + size, trio.current_time() + _ASKED_AGAIN))
            raise
