"""Exchange: one request and its answer, in two halves; Exchanges: those of a client under way."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Literal

from keepfs.keep.http.transport import DirectTransport, SessionTransport, adopt
from keepfs.keep.http.wire import ONE_PIECE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import requests

    from keepfs.keep.http.pace import Pace
    from keepfs.keep.http.transport import Transport


class Exchange:
    """A request that is sent; its answer is still to be received. For one thread.

    Making it sends the request. Blocks.

    Args:
        pace: To keep.
        steps: Sends, yields the descriptor that the answer comes by, and
            receives it. It raises nothing, but for bugs.
        succeeded: Tells what came of it in the end.
    """

    def __init__(
        self, pace: Pace, steps: Iterator[int | None], succeeded: Callable[[], bool]
    ) -> None:
        self._pace = pace
        self._steps = steps
        self._succeeded = succeeded
        self._descriptor = next(steps, None)

    def fileno(self) -> int | None:
        """Return the descriptor that the answer comes by; None where there is no wait for it."""
        return self._descriptor

    def patience(self) -> float:
        """Return the seconds to wait for the answer, at least 0."""
        return self._pace.left()

    def finish(self, *, is_answered: bool = False) -> bool:
        """Receive the answer, and tell whether the request succeeded. Blocks.

        `is_answered`: it has begun to come, be it that nobody looked for long.
        """
        if is_answered:
            self._pace.resume()
        next(self._steps, None)
        return self._succeeded()


class Exchanges:
    """The exchanges of a client that are under way. Any thread may use it.

    Threads may share connections, but `requests` does not promise that they may
    share a Session: with a user's session each exchange has a transport of its own.

    Args:
        verify: Path of a bundle of certificate authorities; True for the one
            of `requests`; False to check no certificate.
        template: A user's session, whose adapters, TLS and proxy settings
            are used, and nothing else of it. `close` leaves it open.
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

    @contextlib.contextmanager
    def begin(self, pace: Pace) -> Iterator[Transport]:
        """Provide a transport for one request and its answer; `close` cancels the pace.

        Raises:
            ConnectionError: `close` was called.
        """
        with self._lock:
            if self._closed:
                raise ConnectionError("the client is closed")
            self._paces.add(pace)
        try:
            yield self._transport()
        finally:
            pace.detach()
            with self._lock:
                self._paces.discard(pace)

    def sends_at_once(self, root: str, size: int) -> bool:
        """Tell whether a body of so many bytes is sent to a service without a wait.

        That is, in one piece, over a connection that is there.
        """
        return self._template is None and size <= ONE_PIECE and self._direct.has_idle(root)

    def close(self) -> None:
        """End the exchanges under way, and close all connections. Further ones are refused."""
        with self._lock:
            self._closed = True
            paces = list(self._paces)
        for pace in paces:
            pace.cancel()
        self._direct.close()

    def _transport(self) -> Transport:
        if self._template is None:
            return self._direct
        return SessionTransport(self._template, self._verify)
