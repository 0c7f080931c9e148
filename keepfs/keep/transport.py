"""Transports: one HTTP request sent, its answer's head returned, the body still to be read.

Blocks go through `DirectTransport`, which speaks HTTP by itself (`wire`).
Where a user gave a `requests.Session`, its adapters send instead.

Neither follows redirects, which could carry the token elsewhere, keeps
cookies, or reads `~/.netrc`, which would replace the token.
"""

from __future__ import annotations

import functools
import socket
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from keepfs.keep.pace import leave_socket, paced_connections, tries
from keepfs.keep.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from urllib3.connectionpool import HTTPConnectionPool
    from urllib3.poolmanager import PoolManager

#: Idle connections that are kept to each service.
_MOST_IDLE = 32
#: Services to which connections are kept.
_MOST_SERVICES = 64
# As the SDK: dead peers are noticed though nothing is sent.
_SOCKET_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 75),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 75),
]


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer; leaving `with` ends the exchange.

    A connection whose body has been read to its end is used again.

    Attributes:
        status: The HTTP status.
        reason: The text beside it.
        version: Of HTTP: 10 or 11.
        headers: Names in lower case.
        raw: Where the body is read from, by `read` and `readinto`.
        end: Gives up what is left of the body.
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
        """Return status and reason as they are sent."""
        version = {10: "HTTP/1.0", 11: "HTTP/1.1"}.get(self.version)
        return f"{version or 'HTTP'} {self.status} {self.reason}".strip()


class Sent(Protocol):
    """A request that is sent; leaving `with` gives it up, unless its answer was received."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def fileno(self) -> int | None:
        """Return the descriptor that the answer comes by; None where nobody can tell."""

    def receive(self) -> Answer:
        """Return the answer's head; the body is still to be read.

        Raises:
            requests.RequestException: No answer came; or one of urllib3's
                `HTTPError`, or an `OSError`.
        """


class Transport(Protocol):
    """What sends requests."""

    def send(
        self,
        method: str,
        root: str,
        path: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        timeouts: tuple[float, float],
    ) -> Sent:
        """Send one request; its answer is still to be received.

        Args:
            method: GET, HEAD or PUT.
            root: Base URL; ends in a slash.
            path: Behind it.
            headers: All there are.
            body: Sent without a copy; it must not change meanwhile.
            timeouts: Seconds to connect, and between bytes where no pace is kept.

        Raises:
            urllib3.exceptions.HTTPError: It can't be sent; or an `OSError`, or a
                `requests.RequestException`.
        """


class DirectTransport:
    """Connections of our own, shared by all threads, each in one exchange at a time.

    Args:
        verify: Path of a bundle of certificate authorities; True for the one
            of `requests`; False to check no certificate.
    """

    def __init__(self, verify: str | Literal[True, False]) -> None:
        self._tls = _tls_settings(verify)
        # The connections that nobody uses, by root; the last one used is the last.
        self._idle: OrderedDict[str, list[Wire]] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        # Of a client that nobody closed.
        weakref.finalize(self, _close_all, self._idle)

    def send(
        self,
        method: str,
        root: str,
        path: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        timeouts: tuple[float, float],
    ) -> Sent:
        """Send one request; as `Transport` has it."""
        url = _parsed(root)
        wire = self._wire(root, url, timeouts[0])
        try:
            wire.send(method, (url.path or "/") + path, headers, body)
        except ValueError as error:
            wire.close()
            raise urllib3.exceptions.HTTPError(str(error)) from error
        except BaseException:
            wire.close()
            raise
        return _SentDirectly(wire, lambda: self._take_back(root, wire))

    def has_idle(self, root: str) -> bool:
        """Tell whether there is a connection to a service that nobody uses."""
        with self._lock:
            return bool(self._idle.get(root))

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are given back."""
        with self._lock:
            self._closed = True
            idle = self._idle.copy()
            self._idle.clear()
        _close_all(idle)

    def _wire(self, root: str, url: urllib3.util.Url, timeout: float) -> Wire:
        """Take an idle connection, or make one."""
        while True:
            with self._lock:
                idle = self._idle.get(root)
                wire = idle.pop() if idle else None
            if wire is None:
                break
            if wire.is_usable():
                return wire
            wire.close()
        wire = Wire(self._connection(url), url.netloc or "")
        try:
            wire.connect(timeout)
        except BaseException:  # of TLS, perhaps, over a socket that is open
            wire.close()
            raise
        return wire

    def _take_back(self, root: str, wire: Wire) -> None:
        excess: list[Wire] = []
        with self._lock:
            idle = self._idle.setdefault(root, [])
            self._idle.move_to_end(root)
            if self._closed or len(idle) >= _MOST_IDLE:
                excess.append(wire)
            else:
                idle.append(wire)
            if len(self._idle) > _MOST_SERVICES:  # hints may name any number
                excess += self._idle.popitem(last=False)[1]
        for each in excess:
            each.close()

    def _connection(self, url: urllib3.util.Url) -> HTTPConnection:
        host = (url.host or "").strip("[]")
        if url.scheme != "https":
            return _Connection(host, url.port or 80, socket_options=_SOCKET_OPTIONS)
        return _TlsConnection(host, url.port or 443, socket_options=_SOCKET_OPTIONS, **self._tls)


class _Connection(HTTPConnection):
    """A connection whose TCP handshake is tried again where silence is watched meanwhile."""

    def _new_conn(self) -> socket.socket:
        limit = self.timeout
        if not isinstance(limit, int | float):
            return super()._new_conn()
        failure = urllib3.exceptions.ConnectTimeoutError(self, "no time is left to connect")
        try:
            for seconds in tries(limit):
                self.timeout = seconds
                try:
                    connected = super()._new_conn()
                except urllib3.exceptions.NewConnectionError:  # of the same class: refused
                    raise
                except urllib3.exceptions.ConnectTimeoutError as error:
                    failure = error
                else:
                    connected.settimeout(limit)  # of the TLS handshake, which can't be cut
                    return connected
        finally:
            self.timeout = limit
        raise failure


class _TlsConnection(_Connection, HTTPSConnection):
    """The same, over TLS."""


def _close_all(idle: Mapping[str, list[Wire]]) -> None:
    for wires in idle.values():
        for wire in wires:
            wire.close()


class _SentDirectly:
    """A request on a connection of our own.

    Args:
        wire: It was sent by this.
        give_back: Lets others use the connection.
    """

    def __init__(self, wire: Wire, give_back: Callable[[], None]) -> None:
        self._wire = wire
        self._give_back = give_back
        self._is_received = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_received:
            self._wire.close()

    def fileno(self) -> int:
        return self._wire.fileno()

    def receive(self) -> Answer:
        head = self._wire.receive()
        self._is_received = True
        body = head.body

        def end() -> None:
            if body.is_complete() and body.can_go_on:
                leave_socket()  # before others have it
                self._give_back()
            else:
                self._wire.close()

        return Answer(head.status, head.reason, head.version, head.headers, body, end)


@functools.lru_cache(maxsize=_MOST_SERVICES)
def _parsed(root: str) -> urllib3.util.Url:
    return urllib3.util.parse_url(root)


class SessionTransport:
    """The adapters, TLS and proxy settings of a user's session, and nothing else of it.

    For one thread at a time, as sessions are.

    Args:
        template: The user's session. It stays theirs.
        verify: As of `DirectTransport`, where the session doesn't say.
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
    ) -> Sent:
        """Prepare a request, which is sent when its answer is received; as `Transport` has it."""
        request = requests.PreparedRequest()
        request.prepare(method=method, url=root + path, headers=dict(headers))
        if body is not None and body.nbytes:
            request.body = body  # type: ignore[assignment] # urllib3 takes any buffer
            request.headers["Content-Length"] = str(body.nbytes)
        return _Prepared(functools.partial(self._receive, root, request, timeouts))

    def _receive(
        self, root: str, request: requests.PreparedRequest, timeouts: tuple[float, float]
    ) -> Answer:
        # Not `session.send`: it would read the whole body of a redirect to see
        # where it leads, and keep cookies.
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
        """Leave the user's session as it is."""


class _Prepared:
    """A request that an adapter sends in one with receiving its answer."""

    def __init__(self, receive: Callable[[], Answer]) -> None:
        self.receive = receive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is sent yet, or the answer was received."""

    def fileno(self) -> None:
        return None


def adopt(template: requests.Session) -> None:
    """Let a user's adapters make paced connections; outside our exchanges they act as ever."""
    for adapter in template.adapters.values():
        if isinstance(adapter, HTTPAdapter):
            _pace_connections(adapter.poolmanager)
            for proxy in filter(None, template.proxies.values()):
                _pace_connections(adapter.proxy_manager_for(proxy))


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _tls_settings(verify: str | Literal[True, False]) -> dict[str, Any]:
    """Put into urllib3's words what certificates are checked against."""
    if verify is False:
        # It was asked for; saying so at every request helps nobody.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        return {"cert_reqs": "CERT_NONE", "assert_hostname": False}
    bundle = requests.utils.DEFAULT_CA_BUNDLE_PATH if verify is True else verify
    kind = "ca_cert_dir" if Path(bundle).is_dir() else "ca_certs"
    return {"cert_reqs": "CERT_REQUIRED", kind: bundle}


def _pace_connections(manager: PoolManager) -> None:
    """Let every connection that a manager makes from now on keep a pace."""
    pools: Mapping[str, type[HTTPConnectionPool]] = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {
        scheme: paced_connections(cast("Any", pool)) for scheme, pool in pools.items()
    }
