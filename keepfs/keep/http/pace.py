"""Pace: a transfer that stalls, crawls or outlives its call is ended.

`requests` limits the wait for each read of a socket, which a server that
sends a byte now and then never exceeds, and gives sending the time limit of
connecting. So each exchange has a `Pace` that its socket asks before it waits:
whether bytes come or go, or an answer is awaited, one rule holds.

The rule: over any interval of `read` seconds the average is `bandwidth` bytes
a second, or the exchange ends; and it ends at its deadline.
"""

from __future__ import annotations

import contextlib
import functools
import io
import socket
import threading
import time
from collections import deque
from collections.abc import Callable  # noqa: TC003 - NamedTuple looks at it
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer
    from urllib3.connectionpool import HTTPConnectionPool

    from keepfs.keep.http.timeouts import Timeouts

#: Marks that an interval is cut into: the rule is exact to a 32nd of it.
_MARKS = 32
#: Bytes handed to the socket at a time. Each time costs turns at the interpreter: a
#: mount that wrote at full speed made 10,000 futex calls a block with a quarter of it.
_STEP = 1024 * 1024
#: Part of `Watch.silence` after which a slow body is reported again. Guessed: a hedge that
#: was refused is granted within a second.
_AGAIN = 0.25
#: Seconds; shorter waits could round to "don't wait at all".
_SHORTEST = 0.001


class TooSlowError(TimeoutError):
    """The exchange broke its pace, or its deadline."""


class CancelledError(ConnectionError):
    """Somebody else ended the exchange: what it was for is done, or given up."""


class Watch(NamedTuple):
    """What an exchange tells while it lasts; in the thread that is in it.

    Attributes:
        silence: Seconds without a byte after which `on_silence` is called, again and again.
        on_silence: Must not take long.
        on_block: Called when a block begins to come, before there is memory for it.
            It may wait, and ends the request by an `OSError`.
        on_slow: Called when the rest of a body would take more than `silence` seconds at
            the rate of the last `silence` seconds, again and again. Must not take long.
        probe: Bytes of a block that are received before `on_block` is called.
    """

    silence: float
    on_silence: Callable[[], None]
    on_block: Callable[[], None]
    on_slow: Callable[[], None] = lambda: None
    probe: int = 0


class Pace:
    """How much longer one exchange may go on.

    Used by one thread, but for `cancel`, which any other may call.

    Args:
        timeouts: The interval and the least speed.
        deadline: The end, on the monotonic clock.
        clock: Instead of `time.monotonic`.
    """

    def __init__(
        self, timeouts: Timeouts, deadline: float, clock: Callable[[], float] | None = None
    ) -> None:
        self._interval = timeouts.read
        # At least a byte an interval: silence always ends.
        self._needed = max(1.0, timeouts.bandwidth * timeouts.read)
        self._deadline = deadline
        self._clock = clock or time.monotonic
        self._total = 0
        self._moved_at = self._clock()
        self._marks = deque([(self._moved_at, 0)])
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._watch: Watch | None = None
        self._called_at = self._moved_at
        # Of a body: the total when it is complete, where the measured interval began, the
        # rate of the last whole one, and when to look at it again.
        self._complete: int | None = None
        self._window = self._marks[0]
        self._rate: float | None = None
        self._look_at = self._moved_at
        #: Why it ended early, once it did.
        self.failure: OSError | None = None

    def remaining(self) -> float:
        """Return the seconds until the deadline, none left being 0."""
        return max(0.0, self._deadline - self._clock())

    def hurry(self, seconds: float) -> None:
        """Bring the deadline nearer: what is left isn't worth more time."""
        self._deadline = min(self._deadline, self._clock() + seconds)

    def extend(self, seconds: float) -> None:
        """Put the deadline off: more is to come than was known."""
        self._deadline += seconds

    def watch(self, watch: Watch) -> None:
        """Have silence noticed, by the thread that waits in `patience`."""
        self._watch = watch

    def silent_for(self) -> float:
        """Return the seconds since the last byte moved. Any thread may ask."""
        return self._clock() - self._moved_at

    def expect(self, size: int) -> None:
        """Note that a body of `size` bytes begins to come; its rate is measured from now.

        What came together with the head isn't subtracted: some KiB at most.
        """
        self._complete = self._total + size
        self._measure_anew()

    def time_left(self) -> float:
        """Return the seconds that the rest of the body takes at its present rate.

        The rate is that of the last `Watch.silence` seconds, or of the time since the
        body began if that is shorter. Any thread may ask.

        Returns:
            0 if no body is expected; infinity if nothing of it has come.
        """
        if self._complete is None:
            return 0.0
        rate = self.rate()
        return (self._complete - self._total) / rate if rate else float("inf")

    def rate(self) -> float:
        """Return the bytes a second that `time_left` assumes. Any thread may ask."""
        rate, (since, total) = self._rate, self._window
        if rate is None:
            rate = (self._total - total) / max(_SHORTEST, self._clock() - since)
        return rate

    def patience(self) -> float:
        """Return the seconds to wait for the next byte, above 0.

        Shorter than the pace allows where silence is watched.

        Raises:
            TooSlowError: None are left.
            CancelledError: It was cancelled.
        """
        if self.failure is not None:
            raise self.failure
        now = self._clock()
        end = self._end(now)
        if now >= self._deadline:
            raise self._fail(TooSlowError("the call's time is up"))
        if now >= end:
            moved = self._total - self._marks[0][1]
            raise self._fail(
                TooSlowError(f"only {moved} bytes in {now - self._marks[0][0]:.1f} seconds")
            )
        end = min(end, self._deadline)
        if self._watch is not None:
            end = min(end, self._next_call(now, self._watch))
        return max(_SHORTEST, end - now)

    def _next_call(self, now: float, watch: Watch) -> float:
        """Call whoever watches if it is time; tell when it will be again."""
        if self._complete is not None and now >= self._look_at:
            self._look(now, watch)
        due = self._moved_at + watch.silence
        if now < due:
            return due
        if now >= self._called_at + watch.silence:
            self._called_at = now
            watch.on_silence()
        return self._called_at + watch.silence

    def _look(self, now: float, watch: Watch) -> None:
        """Call whoever watches if a body comes too slowly. No wait ends for that."""
        since, total = self._window
        if now >= since + watch.silence:
            self._rate = (self._total - total) / (now - since)
            self._window = (now, self._total)
        self._look_at = self._window[0] + watch.silence
        if self._rate is not None and self.time_left() > watch.silence:
            self._look_at = min(self._look_at, now + watch.silence * _AGAIN)
            watch.on_slow()

    def _measure_anew(self) -> None:
        self._rate = None
        self._window = (self._clock(), self._total)
        self._look_at = self._window[0]

    def left(self) -> float:
        """Return the seconds that silence may last, at least 0; nothing ends by asking."""
        if self.failure is not None:
            return 0.0
        now = self._clock()
        return max(0.0, min(self._end(now), self._deadline) - now)

    def advance(self, count: int) -> None:
        """Note that bytes were sent or received."""
        now = self._moved_at = self._clock()
        self._total += count
        if now - self._marks[-1][0] >= self._interval / _MARKS:
            self._marks.append((now, self._total))

    def resume(self) -> None:
        """Begin the interval anew: this thread was busy elsewhere, it was no silence.

        The deadline stays.
        """
        self._moved_at = self._clock()
        self._marks = deque([(self._moved_at, self._total)])
        self._measure_anew()

    def cancel(self, reason: OSError | None = None) -> None:
        """End the exchange from another thread, now or as soon as it starts.

        Args:
            reason: What its thread is to raise; a `CancelledError` when None.
        """
        with self._lock:
            if self.failure is None:
                self.failure = reason or CancelledError("given up")
            if self._socket is not None:
                # It wakes the thread that waits in it.
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def attach(self, connected: socket.socket) -> None:
        """Name the socket that `cancel` is to shut down."""
        with self._lock:
            if isinstance(self.failure, CancelledError):
                raise self.failure
            self._socket = connected

    def detach(self, connected: socket.socket | None = None) -> None:
        """Leave the socket alone from now on: others may use it.

        Args:
            connected: Only if it is this one; any when None.
        """
        with self._lock:
            if connected is None or self._socket is connected:
                self._socket = None

    def _end(self, now: float) -> float:
        """Tell when the rule is broken if no byte moves any more."""
        while len(self._marks) > 1 and self._marks[1][0] <= now - self._interval:
            self._marks.popleft()
        for since, total in self._marks:
            if self._total - total < self._needed:
                return since + self._interval
        # The last mark is older than the last bytes, by less than the marks' distance.
        return self._moved_at + self._interval

    def _fail(self, error: OSError) -> OSError:
        with self._lock:
            if self.failure is None:
                self.failure = error
            return self.failure


# The pace of the exchange that this thread is in. Connections are made deep
# inside urllib3, which has no place to hand it through.
_current = threading.local()


@contextlib.contextmanager
def pacing(pace: Pace, *, goes_on: bool = False) -> Iterator[None]:
    """Let the sockets that this thread uses inside keep to a pace.

    `goes_on`: the exchange isn't over with this, and can be cancelled after it.
    """
    _current.pace = pace
    try:
        yield
    finally:
        _current.pace = None
        if not goes_on:
            pace.detach()


def tries(limit: float) -> Iterator[float]:
    """Cut a wait that can't be interrupted into several, so that silence is noticed in it.

    Args:
        limit: Seconds that they may take together.

    Yields:
        Seconds that the next try may take.

    Raises:
        TooSlowError: The exchange's time is up.
        CancelledError: It was cancelled.
    """
    pace = _pace()
    end = time.monotonic() + limit
    while (left := end - time.monotonic()) > 0:
        yield left if pace is None else min(left, pace.patience())


def leave_socket() -> None:
    """Let nobody shut down the socket that this thread has used, since others may use it now."""
    pace = _pace()
    if pace is not None:
        pace.detach()


def _pace() -> Pace | None:
    pace: Pace | None = getattr(_current, "pace", None)
    return pace


class PacedSocket:
    """A connected socket that keeps to the pace of the thread that uses it.

    Outside `pacing` it is the socket it wraps.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the socket has
        return getattr(self._socket, name)

    def fileno(self) -> int:
        """Return the descriptor; what `select` and `poll` ask for."""
        return self._socket.fileno()

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """Send everything, without a copy."""
        pace = _pace()
        if pace is None:
            return self._socket.sendall(data, flags)
        pace.attach(self._socket)
        with memoryview(data).cast("B") as view:
            sent = 0
            while sent < view.nbytes:
                _set_timeout(self._socket, pace.patience())
                try:
                    count = self._socket.send(view[sent : sent + _STEP], flags)
                except TimeoutError:
                    continue  # the pace says whether that was too long
                pace.advance(count)
                sent += count
        return None

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        """Return what http.client reads the answer from."""
        # It holds the socket open until the answer is read, though the connection may
        # have been closed.
        held = self._socket.makefile("rb", buffering=0)
        return io.BufferedReader(_PacedReader(self._socket, held))

    def reader(self) -> io.BufferedReader:
        """Return what an answer is read from while the socket stays open; it costs less."""
        return io.BufferedReader(_PacedReader(self._socket, None))


class _PacedReader(io.RawIOBase):
    """The receiving half, at a pace."""

    def __init__(self, connected: socket.socket, held: io.RawIOBase | None) -> None:
        super().__init__()
        self._socket = connected
        self._held = held
        #: Whether a byte has come.
        self.has_received = False
        pace = _pace()
        if pace is not None:
            pace.attach(connected)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int | None:
        pace = _pace()
        if pace is None:
            return self._socket.recv_into(buffer)
        while True:
            _set_timeout(self._socket, pace.patience())
            try:
                # Not by `_held`, which can't be read any more after a timeout.
                count = self._socket.recv_into(buffer)
            except TimeoutError:
                continue  # the pace says whether that was too long
            pace.advance(count)
            self.has_received = self.has_received or count > 0
            return count

    def close(self) -> None:
        # urllib3 gives a connection to others as soon as its answer is closed.
        pace = _pace()
        if pace is not None:
            pace.detach(self._socket)
        if self._held is not None:
            self._held.close()
        super().close()


def _set_timeout(connected: socket.socket, patience: float) -> None:
    """Let a socket wait for so many seconds, or somewhat less.

    Mostly nothing is done: setting it is a system call. A long wait is set a little
    shorter, so that the next, which may be shorter by microseconds, needs no call.
    """
    now = connected.gettimeout()
    if now is None or not now <= patience <= 2 * now:
        connected.settimeout(patience if patience < 1 else patience * 0.9)


class _Connectable(Protocol):
    sock: Any

    def connect(self) -> None: ...


@functools.cache
def paced_connections(pool_class: Any) -> type[HTTPConnectionPool]:  # noqa: ANN401 - a class; its stubs hide that it hashes
    """Derive a pool of urllib3 whose connections keep to the pace of the thread that uses them."""
    if hasattr(pool_class, "_keepfs_paced"):
        return cast("type[HTTPConnectionPool]", pool_class)
    plain = cast("type[_Connectable]", pool_class.ConnectionCls)

    def connect(self: _Connectable) -> None:
        plain.connect(self)
        self.sock = PacedSocket(self.sock)

    connection_class = type(plain.__name__, (plain,), {"connect": connect})
    members = {"ConnectionCls": connection_class, "_keepfs_paced": True}
    return type(pool_class.__name__, (pool_class,), members)
