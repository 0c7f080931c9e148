"""SessionPool: the exchanges under way, and the transports that they are lent.

Connections may be shared by threads, `requests` doesn't promise it of a
Session: where a user gave one, each thread in an exchange has a transport to
itself.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Literal

from keepfs.keep.http.transport import DirectTransport, SessionTransport, adopt
from keepfs.keep.http.wire import ONE_PIECE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import requests

    from keepfs.keep.http.pace import Pace
    from keepfs.keep.http.transport import Transport


class SessionPool:
    """Lends transports. Any thread may use it.

    Args:
        verify: Path of a bundle of certificate authorities; True for the one
            of `requests`; False to check no certificate.
        template: A user's session, whose adapters, TLS and proxy settings
            are used, and nothing else of it. It stays theirs: closing
            the pool leaves it open.
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
    def exchange(self, pace: Pace) -> Iterator[Transport]:
        """Lend a transport for one request and its answer; closing the pool cancels the pace.

        Whoever uses it does so within `pacing`.

        Raises:
            ConnectionError: The pool is closed.
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
