"""Transports: send one HTTP request and return the answer's head; the caller reads the body.

`DirectTransport` is keepfs's own HTTP client (`wire`). If the user passed a
`requests.Session`, its adapters are used instead.

Neither follows redirects: they could leak the token. Neither stores cookies. Neither
reads `~/.netrc`: it would replace the token.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

import requests
import urllib3
from requests.adapters import HTTPAdapter

from keepfs.keep.http.connections import Connections, parse_root
from keepfs.keep.http.pace import CancelledError
from keepfs.keep.http.session_sockets import paced_connections, pacing
from keepfs.keep.http.wire import BROKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from urllib3.connectionpool import HTTPConnectionPool
    from urllib3.poolmanager import PoolManager

    from keepfs.keep.http.pace import Pace
    from keepfs.keep.http.wire import Wire


#: Methods of requests that may be sent twice.
_REPEATABLE = frozenset({"GET", "HEAD", "PUT"})


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer; leaving `with` ends the exchange.

    A connection whose body was read to its end is reused.

    Attributes:
        status: The HTTP status.
        reason: The reason phrase.
        version: The HTTP version: 10 or 11.
        headers: The headers; names in lower case.
        raw: The body, with `read` and `readinto`.
        end: Ends the exchange; an unread rest of the body is dropped.
    """

    status: int
    reason: str
    version: int
    headers: Mapping[str, str]
    raw: Any
    end: Callable[[], None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def status_line(self) -> str:
        """Return the status line."""
        version = {10: "HTTP/1.0", 11: "HTTP/1.1"}.get(self.version)
        return f"{version or 'HTTP'} {self.status} {self.reason}".strip()


class Sent(Protocol):
    """A request that was sent; leaving `with` abandons it unless its answer was received."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def fileno(self) -> int | None:
        """Return the descriptor to poll for the answer; None if it can't be polled."""

    def has_begun(self) -> bool:
        """Return whether a byte of the answer has arrived. Doesn't wait for it.

        Call it when the descriptor can be read. It may send the request again, on another
        descriptor; that blocks for the time of a connect. Raises as `receive`.
        """

    def receive(self) -> Answer:
        """Return the answer's head; the caller reads the body. Blocks.

        Raises:
            requests.RequestException: No valid answer came; or urllib3's `HTTPError`, an
                `http.client.HTTPException`, or an `OSError`.
        """


class Transport(Protocol):
    """Sends requests."""

    def send(
        self,
        method: str,
        root: str,
        path: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        timeouts: tuple[float, float],
        pace: Pace | None,
    ) -> Sent:
        """Send one request; the caller receives the answer. Blocks.

        Args:
            method: GET, HEAD, PUT, POST, PATCH or DELETE.
            root: Base URL; ends in a slash.
            path: The rest of the URL.
            headers: All headers.
            body: Sent without a copy; it must not change meanwhile.
            timeouts: Seconds to connect; and, for a user's session without a pace, the
                longest silence in seconds.
            pace: The pace of the whole exchange; None: only the timeouts limit it.

        Raises:
            urllib3.exceptions.HTTPError: It couldn't be sent; or an `OSError`, or a
                `requests.RequestException`.
        """


class DirectTransport:
    """The transport over `Connections`. Any thread may use it.

    Args:
        verify: Path of a bundle of certificate authorities; True for the one
            of `requests`; False to disable certificate checks.
    """

    def __init__(self, verify: str | Literal[True, False]) -> None:
        self._connections = Connections(verify)

    def send(
        self,
        method: str,
        root: str,
        path: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        timeouts: tuple[float, float],
        pace: Pace | None,
    ) -> Sent:
        """Send one request; see `Transport.send`."""
        target = (parse_root(root).path or "/") + path

        def send(wire: Wire) -> Wire:
            try:
                wire.send(method, target, headers, body, pace)
            except ValueError as error:
                wire.close()
                raise urllib3.exceptions.HTTPError(str(error)) from error
            except BaseException:
                wire.close()
                raise
            return wire

        def send_again() -> Wire:
            return send(self._connections.connect(root, timeouts[0], pace))

        wire = self._connections.take(root, timeouts[0], pace)
        was_used = wire.was_used
        return _SentDirectly(
            send(wire),
            lambda wire: self._connections.give_back(root, wire),
            send_again if was_used and method in _REPEATABLE else None,
            pace,
        )

    def has_idle(self, root: str) -> bool:
        """Return whether there is an idle connection to a service."""
        return self._connections.has_idle(root)

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are returned."""
        self._connections.close()


class _SentDirectly:
    """A request on a connection of `Connections`.

    The service may have closed an idle connection. If no byte of an answer arrives, the
    request is sent once more, on a new connection. Requests that must not be made twice
    (POST, PATCH) are not repeated.

    Args:
        wire: The connection that it was sent on.
        give_back: Returns the connection for reuse.
        send_again: Sends it on a new connection; None: don't repeat it.
        pace: The pace of the exchange.
    """

    def __init__(
        self,
        wire: Wire,
        give_back: Callable[[Wire], None],
        send_again: Callable[[], Wire] | None,
        pace: Pace | None,
    ) -> None:
        # None once the answer was received: the answer owns the connection then.
        self._wire: Wire | None = wire
        self._give_back = give_back
        self._send_again = send_again
        self._pace = pace

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._wire is not None:
            self._wire.close()

    def fileno(self) -> int:
        return self._waiting().fileno()

    def has_begun(self) -> bool:
        wire = self._waiting()
        try:
            if self._pace is not None:
                self._pace.check()
            return wire.receive_nowait(self._pace)
        except BROKEN as error:
            if not self._may_repeat(wire, error):
                raise
            self._repeat(wire)
            return False

    def receive(self) -> Answer:
        wire = self._waiting()
        try:
            head = wire.receive(self._pace)
        except BROKEN as error:
            if not self._may_repeat(wire, error):
                raise
            wire = self._repeat(wire)
            head = wire.receive(self._pace)
        self._wire = None

        def end() -> None:
            if wire.end_exchange():
                self._give_back(wire)

        return Answer(head.status, head.reason, head.version, head.headers, head.body, end)

    def _waiting(self) -> Wire:
        if self._wire is None:
            raise RuntimeError("the answer was received already")
        return self._wire

    def _may_repeat(self, wire: Wire, error: Exception) -> bool:
        is_cancelled = isinstance(error, CancelledError)
        return not is_cancelled and self._send_again is not None and not wire.has_answered()

    def _repeat(self, wire: Wire) -> Wire:
        """Send the request on a new connection."""
        wire.close()
        send_again, self._send_again = self._send_again, None
        self._wire = wire if send_again is None else send_again()
        return self._wire


class SessionTransport:
    """The transport over the adapters, TLS and proxy settings of a user's session.

    For one thread at a time, as sessions are.

    Args:
        template: The user's session; it isn't changed or closed.
        verify: As for `DirectTransport`, if the session doesn't set it.
    """

    def __init__(self, template: requests.Session, verify: str | Literal[True, False]) -> None:
        self._template = template
        self._verify = verify
        if template.verify is not True and template.verify is not None:
            self._verify = cast("str", template.verify)

    def send(
        self,
        method: str,
        root: str,
        path: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        timeouts: tuple[float, float],
        pace: Pace | None,
    ) -> Sent:
        """Prepare a request; `Sent.receive` sends it. See `Transport.send`."""
        request = requests.PreparedRequest()
        request.prepare(method=method, url=root + path, headers=dict(headers))
        if body is not None and body.nbytes:
            request.body = body  # type: ignore[assignment] # urllib3 takes any buffer
            request.headers["Content-Length"] = str(body.nbytes)
        return _Prepared(functools.partial(self._receive, root, request, timeouts), pace)

    def _receive(
        self, root: str, request: requests.PreparedRequest, timeouts: tuple[float, float]
    ) -> Answer:
        # Not `session.send`: it would read the whole body of a redirect, and store
        # cookies.
        response = self._template.get_adapter(root).send(
            request,
            stream=True,
            timeout=timeouts,
            verify=self._verify,
            cert=self._template.cert,
            proxies=dict(self._template.proxies),
        )
        return Answer(
            response.status_code,
            response.reason or "",
            getattr(response.raw, "version", 11),
            _lower(response.headers),
            response.raw,
            response.close,
        )

    def close(self) -> None:
        """Do nothing: the user's session stays open."""


class _Prepared:
    """A request that an adapter sends in the same call that receives the answer.

    From `receive` until `with` is left, the pace applies to the sockets of the thread.
    """

    def __init__(self, receive: Callable[[], Answer], pace: Pace | None) -> None:
        self._receive = receive
        self._pace = pace
        self._paced = contextlib.ExitStack()

    def receive(self) -> Answer:
        self._paced.enter_context(pacing(self._pace))
        return self._receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop pacing: nothing was sent, or the answer was received."""
        self._paced.close()

    def fileno(self) -> None:
        return None

    def has_begun(self) -> bool:
        return True


def adopt(template: requests.Session) -> None:
    """Make a user's adapters use paced connections; outside `pacing` nothing changes."""
    for adapter in template.adapters.values():
        if isinstance(adapter, HTTPAdapter):
            _pace_connections(adapter.poolmanager)
            for proxy in filter(None, template.proxies.values()):
                _pace_connections(adapter.proxy_manager_for(proxy))


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _pace_connections(manager: PoolManager) -> None:
    """Make a pool manager create paced connections from now on."""
    pools: Mapping[str, type[HTTPConnectionPool]] = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {
        scheme: paced_connections(cast("Any", pool)) for scheme, pool in pools.items()
    }
