"""Pace: ends a transfer that stalls, is too slow or exceeds its deadline.

`requests` limits the wait for each read of a socket, which a server that sends a
byte now and then never exceeds; for sending it uses the connect timeout. So each
exchange has a `Pace`, which limits every wait of its socket. One rule applies to
sending, receiving, and waiting for an answer.

The rule: an exchange ends if its average over any interval of `read` seconds is
below `bandwidth` bytes per second. It also ends at its deadline.
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable  # noqa: TC003 - NamedTuple looks at it
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from keepfs.keep.http.timeouts import Timeouts

#: Marks per interval: the rule is exact to a 32nd of it.
_MARKS = 32
#: Bytes per `send` of a socket. Each call releases and takes the interpreter's lock: with
#: a quarter of this a mount that wrote at full speed made 10,000 futex calls per block.
_STEP = 1024 * 1024
#: Fraction of `Watch.silence` after which a slow body is reported again. Guessed: a hedge
#: that was refused is allowed within a second.
_AGAIN = 0.25
#: The message of the error at a deadline.
_TIME_IS_UP = "the call's time is up"
#: The shortest wait, in seconds; shorter ones could be rounded to no wait.
_SHORTEST = 0.001


class TooSlowError(TimeoutError):
    """The exchange exceeded its pace or its deadline."""


class CancelledError(ConnectionError):
    """Another thread cancelled the exchange: its block was received elsewhere, or given up."""


class Watch(NamedTuple):
    """Callbacks of an exchange in progress, called in the thread of the exchange.

    Attributes:
        silence: Seconds without a byte after which `on_silence` is called, repeatedly.
        on_silence: Must return quickly.
        on_block: Called when the first bytes of a block arrive, before its memory is
            allocated. It may block; an `OSError` that it raises ends the request.
        on_slow: Called when the rest of a body would take more than `silence` seconds at
            the rate of the last `silence` seconds, repeatedly. Must return quickly.
        probe: Bytes of a block that are received before `on_block` is called.
    """

    silence: float
    on_silence: Callable[[], None]
    on_block: Callable[[], None]
    on_slow: Callable[[], None] = lambda: None
    probe: int = 0


class Pace:
    """The time limits of one exchange.

    For the thread of the exchange. Any thread may call `cancel`, `silent_for`, `time_left`
    and `rate`.

    Args:
        timeouts: The interval and the least rate.
        deadline: The end, on the monotonic clock, in seconds.
        clock: Replaces `time.monotonic`.
    """

    def __init__(
        self, timeouts: Timeouts, deadline: float, clock: Callable[[], float] | None = None
    ) -> None:
        self._interval = timeouts.read
        # At least one byte per interval, so that silence always ends the exchange.
        self._needed = max(1.0, timeouts.bandwidth * timeouts.read)
        self._deadline, self._late = deadline, _TIME_IS_UP
        self._clock = clock or time.monotonic
        self._total = 0
        self._moved_at = self._clock()
        self._marks = deque([(self._moved_at, 0)])
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._watch: Watch | None = None
        self._called_at = self._moved_at
        # For a body: the total when it is complete, the start of the measured interval, the
        # rate of the last complete interval, and the time of the next check.
        self._complete: int | None = None
        self._window = self._marks[0]
        self._rate: float | None = None
        self._look_at = self._moved_at
        #: The reason of an early end, or None.
        self.failure: OSError | None = None

    def remaining(self) -> float:
        """Return the seconds until the deadline, at least 0."""
        return max(0.0, self._deadline - self._clock())

    def hurry(self, seconds: float, failure: str = _TIME_IS_UP) -> None:
        """Move the deadline to `seconds` from now, if that is earlier.

        Args:
            seconds: The time left.
            failure: The message of the error at the new deadline.
        """
        end = self._clock() + seconds
        if end < self._deadline:
            self._deadline, self._late = end, failure

    def extend(self, seconds: float) -> None:
        """Move the deadline later by `seconds`: the transfer is longer than was known."""
        self._deadline += seconds

    def watch(self, watch: Watch) -> None:
        """Set the callbacks, which are called in `patience`."""
        self._watch = watch

    def silent_for(self) -> float:
        """Return the seconds since the last byte was sent or received. For any thread."""
        return self._clock() - self._moved_at

    def expect(self, size: int) -> None:
        """Start to measure the rate of a body of `size` bytes.

        Bytes that arrived together with the head aren't subtracted: a few KiB at most.
        """
        self._complete = self._total + size
        self._measure_anew()

    def time_left(self) -> float:
        """Return the seconds that the rest of the body takes at its current rate.

        The rate is that of the last `Watch.silence` seconds, or of the time since the
        body began if that is shorter. For any thread.

        Returns:
            0 if no body is expected; infinity if no byte of it has arrived.
        """
        if self._complete is None:
            return 0.0
        rate = self.rate()
        return (self._complete - self._total) / rate if rate else float("inf")

    def rate(self) -> float:
        """Return the rate that `time_left` uses, in bytes per second. For any thread."""
        rate, (since, total) = self._rate, self._window
        if rate is None:
            rate = (self._total - total) / max(_SHORTEST, self._clock() - since)
        return rate

    def patience(self) -> float:
        """Return the seconds to wait for the next byte, above 0.

        Calls the callbacks of the `Watch` that are due; the wait is at most the time until
        the next one.

        Raises:
            TooSlowError: No time is left.
            CancelledError: The exchange was cancelled; or the `OSError` given to `cancel`.
        """
        now = self.check()
        end = self._end(now)
        if now >= end:
            moved = self._total - self._marks[0][1]
            raise self._fail(
                TooSlowError(f"only {moved} bytes in {now - self._marks[0][0]:.1f} seconds")
            )
        end = min(end, self._deadline)
        if self._watch is not None:
            end = min(end, self._next_call(now, self._watch))
        return max(_SHORTEST, end - now)

    def check(self) -> float:
        """Return the current time of the clock, in seconds, if the exchange may go on.

        Raises:
            TooSlowError: The deadline has passed.
            CancelledError: The exchange was cancelled; or the `OSError` given to `cancel`.
        """
        if self.failure is not None:
            raise self.failure
        now = self._clock()
        if now >= self._deadline:
            raise self._fail(TooSlowError(self._late))
        return now

    def _next_call(self, now: float, watch: Watch) -> float:
        """Call the watch's callbacks if they are due; return the time of the next call."""
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
        """Call `on_slow` if a body is received too slowly. No wait is shortened for it."""
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
        """Return the seconds that silence may last, at least 0; raises nothing."""
        if self.failure is not None:
            return 0.0
        now = self._clock()
        return max(0.0, min(self._end(now), self._deadline) - now)

    def advance(self, count: int) -> None:
        """Count bytes that were sent or received."""
        now = self._moved_at = self._clock()
        self._total += count
        if now - self._marks[-1][0] >= self._interval / _MARKS:
            self._marks.append((now, self._total))

    def resume(self) -> None:
        """Restart the interval after a pause of this thread, not of the service.

        The deadline isn't changed.
        """
        self._moved_at = self._clock()
        self._marks = deque([(self._moved_at, self._total)])
        self._measure_anew()

    def cancel(self, reason: OSError | None = None) -> None:
        """End the exchange from another thread, now or as soon as it starts.

        Args:
            reason: The exception for its thread; None: a `CancelledError`.
        """
        with self._lock:
            if self.failure is None:
                self.failure = reason or CancelledError("given up")
            if self._socket is not None:
                _wake(self._socket)

    def attach(self, connected: socket.socket) -> None:
        """Set the socket that `cancel` shuts down.

        Raises:
            CancelledError: The exchange was cancelled.
        """
        with self._lock:
            if isinstance(self.failure, CancelledError):
                raise self.failure
            self._socket = connected

    def detach(self, connected: socket.socket | None = None) -> None:
        """Forget the socket: another exchange may use it.

        Args:
            connected: Forget it only if it is this one; None: any.
        """
        with self._lock:
            if connected is None or self._socket is connected:
                self._socket = None

    def _end(self, now: float) -> float:
        """Return the time at which the rule is violated if no further byte moves."""
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


def tries(limit: float, pace: Pace | None) -> Iterator[float]:
    """Split a wait that can't be interrupted into several, so that silence is reported in time.

    Args:
        limit: Total seconds.
        pace: The pace of the exchange; None: don't split.

    Yields:
        Seconds for the next try.

    Raises:
        TooSlowError: The exchange's time is up.
        CancelledError: The exchange was cancelled.
    """
    end = time.monotonic() + limit
    while (left := end - time.monotonic()) > 0:
        yield left if pace is None else min(left, pace.patience())


def send_all(connected: socket.socket, data: Buffer, pace: Pace | None, flags: int = 0) -> None:
    """Send all bytes within a pace, without a copy. Blocks.

    Raises:
        TooSlowError: The exchange exceeded its pace; or another `OSError`.
    """
    if pace is None:
        return connected.sendall(data, flags)
    pace.attach(connected)
    with memoryview(data).cast("B") as view:
        sent = 0
        while sent < view.nbytes:
            _set_timeout(connected, pace.patience())
            try:
                count = connected.send(view[sent : sent + _STEP], flags)
            except TimeoutError:
                continue  # the pace says whether that was too long
            pace.advance(count)
            sent += count
    return None


class PacedReader(io.RawIOBase):
    """The receiving half of a socket, limited by a pace. Closing it leaves the socket open.

    Args:
        connected: The socket; it must stay open while this is read.
        pace: The pace of the exchange; None for no limit but the socket's own.
    """

    def __init__(self, connected: socket.socket, pace: Pace | None) -> None:
        super().__init__()
        self._socket = connected
        self._pace = pace
        self._early = b""  # received, and not read yet
        #: Whether a byte has arrived.
        self.has_received = False
        if pace is not None:
            pace.attach(connected)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer) -> int | None:
        """Receive bytes into a buffer; return their number, 0 at the end. Blocks.

        Raises:
            TooSlowError: The exchange exceeded its pace; or another `OSError`.
        """
        pace = self._pace
        if self._early:
            with memoryview(buffer).cast("B") as view:
                count = min(len(self._early), view.nbytes)
                view[:count] = self._early[:count]
            self._early = self._early[count:]
            return count
        if pace is None:
            return self._socket.recv_into(buffer)
        while True:
            _set_timeout(self._socket, pace.patience())
            try:
                count = self._socket.recv_into(buffer)
            except TimeoutError:
                continue  # the pace says whether that was too long
            self._note(count)
            return count

    def receive_nowait(self) -> int | None:
        """Receive bytes for the next `readinto`s; don't wait for them. Call it when none are left.

        A connection over TLS may have bytes to receive that belong to no answer.

        Returns:
            The number of the bytes, 0 at the end of the connection; None if none have arrived.

        Raises:
            OSError: The connection broke.
        """
        limit = self._socket.gettimeout()
        self._socket.settimeout(0)
        try:
            self._early = self._socket.recv(io.DEFAULT_BUFFER_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        finally:
            self._socket.settimeout(limit)
        self._note(len(self._early))
        return len(self._early)

    def _note(self, count: int) -> None:
        if self._pace is not None:
            self._pace.advance(count)
        self.has_received = self.has_received or count > 0

    def close(self) -> None:
        """Release the socket for another exchange: a later cancel doesn't affect it."""
        if self._pace is not None:
            self._pace.detach(self._socket)
        super().close()


def _wake(connected: socket.socket) -> None:
    """Shut down a connection, which wakes the thread that waits for it."""
    # Not `SSLSocket.shutdown`: before the connection is down it ends the encryption, and the
    # other thread could send a part of its block without.
    # urllib3's `SSLTransport`, TLS through a proxy over TLS, isn't a socket but has one.
    raw: Any = connected
    if not isinstance(raw, socket.socket):
        raw = getattr(raw, "socket", None)
    with contextlib.suppress(OSError):
        if raw is not None:
            socket.socket.shutdown(raw, socket.SHUT_RDWR)


def _set_timeout(connected: socket.socket, patience: float) -> None:
    """Set a socket's timeout to a value between half of `patience` and `patience`, in seconds.

    Setting it is a system call, so a timeout that already fits is kept. A long timeout is
    set a little shorter than `patience`, so that it fits the next, slightly shorter, one too.
    """
    now = connected.gettimeout()
    if now is None or not now <= patience <= 2 * now:
        connected.settimeout(patience if patience < 1 else patience * 0.9)
