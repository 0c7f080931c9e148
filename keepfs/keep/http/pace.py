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
import io
import socket
import threading
import time
from collections import deque
from collections.abc import Callable  # noqa: TC003 - NamedTuple looks at it
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

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


def tries(limit: float, pace: Pace | None) -> Iterator[float]:
    """Cut a wait that can't be interrupted into several, so that silence is noticed in it.

    Args:
        limit: Seconds that they may take together.
        pace: Of the exchange; None leaves the wait whole.

    Yields:
        Seconds that the next try may take.

    Raises:
        TooSlowError: The exchange's time is up.
        CancelledError: It was cancelled.
    """
    end = time.monotonic() + limit
    while (left := end - time.monotonic()) > 0:
        yield left if pace is None else min(left, pace.patience())


def send_all(connected: socket.socket, data: Buffer, pace: Pace | None, flags: int = 0) -> None:
    """Send everything at a pace, without a copy. Blocks.

    Raises:
        TooSlowError: The exchange broke its pace; or another `OSError`.
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
    """The receiving half of a socket, at a pace. Closing it leaves the socket open.

    Args:
        connected: The socket; it must stay open while this is read.
        pace: Of the exchange; None for no limit but the socket's own.
    """

    def __init__(self, connected: socket.socket, pace: Pace | None) -> None:
        super().__init__()
        self._socket = connected
        self._pace = pace
        #: Whether a byte has come.
        self.has_received = False
        if pace is not None:
            pace.attach(connected)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer) -> int | None:
        """Receive up to the buffer's bytes; 0 at the end. Blocks."""
        pace = self._pace
        if pace is None:
            return self._socket.recv_into(buffer)
        while True:
            _set_timeout(self._socket, pace.patience())
            try:
                count = self._socket.recv_into(buffer)
            except TimeoutError:
                continue  # the pace says whether that was too long
            pace.advance(count)
            self.has_received = self.has_received or count > 0
            return count

    def close(self) -> None:
        """Let another exchange have the socket: a cancel does not reach it any more."""
        if self._pace is not None:
            self._pace.detach(self._socket)
        super().close()


def _set_timeout(connected: socket.socket, patience: float) -> None:
    """Let a socket wait for so many seconds, or somewhat less.

    Mostly nothing is done: setting it is a system call. A long wait is set a little
    shorter, so that the next, which may be shorter by microseconds, needs no call.
    """
    now = connected.gettimeout()
    if now is None or not now <= patience <= 2 * now:
        connected.settimeout(patience if patience < 1 else patience * 0.9)
