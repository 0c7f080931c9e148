"""Exchange: one request and its answer, in two halves; Exchanges: those of one client."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

from keepfs.keep.http.transport import DirectTransport, SessionTransport, adopt
from keepfs.keep.http.wire import ONE_PIECE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import requests

    from keepfs.keep.http.pace import Pace
    from keepfs.keep.http.transport import Sent, Transport


class Exchange:
    """A request that was sent, with its answer still to be received. For one thread.

    The constructor sends the request. Blocks.

    Args:
        pace: The pace of the exchange.
        steps: Sends the request, yields what was sent, and receives the answer. Raises only
            for bugs. If the seconds for the rest of the answer are sent to it, it yields
            again unless the answer has begun to arrive.
        succeeded: Returns whether the request succeeded, after the last step.
    """

    def __init__(
        self, pace: Pace, steps: Generator[Sent, float | None], succeeded: Callable[[], bool]
    ) -> None:
        self._pace = pace
        self._steps = steps
        self._succeeded = succeeded
        self._sent = next(steps, None)

    def fileno(self) -> int | None:
        """Return the descriptor to poll for the answer; None if it can't be polled."""
        return None if self._sent is None else self._sent.fileno()

    def patience(self) -> float:
        """Return the seconds to wait for the answer, at least 0."""
        return self._pace.left()

    def receive_begun(self, rest: float) -> bool:
        """Receive the answer if its first bytes have arrived; return whether that ended it.

        Call it when the descriptor can be read; after it, `fileno` may return another one.
        Blocks for the rest of the answer, or for the time of a connect, to send the request
        again after the service closed an idle connection.

        Args:
            rest: Seconds for the rest; the time until now doesn't count as silence.
        """
        try:
            self._sent = self._steps.send(rest)
        except StopIteration:
            return True
        return False

    def finish(self) -> bool:
        """Receive the answer, or its rest; return whether the request succeeded. Blocks."""
        next(self._steps, None)
        return self._succeeded()


class Exchanges:
    """The exchanges of a client that are in progress. Any thread may use it.

    Threads share connections. `requests` doesn't guarantee that threads can share a
    Session, so with a user's session each exchange has its own transport.

    Args:
        verify: Path of a bundle of certificate authorities; True for the one
            of `requests`; False to disable certificate checks.
        template: A user's session, of which only adapters, TLS and proxy
            settings are used. `close` leaves it open.
    """

    def __init__(
        self,
        verify: str | Literal[True, False],
        template: requests.Session | None = None,
    ) -> None:
        self._verify = verify
        self._template = template
        self._direct = DirectTransport(verify)
        self._paces: set[Pace] = set()
        self._lock = threading.Lock()
        self._closed = False
        if template is not None:
            adopt(template)

    def begin(self, pace: Pace) -> Transport:
        """Provide a transport for one request and its answer; `close` cancels the pace.

        The caller calls `end` after it.

        Raises:
            ConnectionError: `close` was called.
        """
        with self._lock:
            if self._closed:
                raise ConnectionError("the client is closed")
            self._paces.add(pace)
        if self._template is None:
            return self._direct
        return SessionTransport(self._template, self._verify)

    def end(self, pace: Pace) -> None:
        """End the request that began with this pace, if it has begun: it isn't cancelled later."""
        pace.detach()
        with self._lock:
            self._paces.discard(pace)

    def sends_at_once(self, root: str, size: int) -> bool:
        """Return whether a body of `size` bytes is sent without blocking.

        That is, in one piece, over an idle connection.
        """
        return self._template is None and size <= ONE_PIECE and self._direct.has_idle(root)

    def close(self) -> None:
        """Cancel the exchanges in progress, close all connections, refuse further exchanges."""
        with self._lock:
            self._closed = True
            paces = list(self._paces)
        for pace in paces:
            pace.cancel()
        self._direct.close()
