"""SessionPool: the pooled connections that all requests go through.

`requests` doesn't promise that a Session may be shared by threads, so each
thread in an exchange has one to itself, and connections are reused as
sessions are. Every session has `trust_env` off: an entry in `~/.netrc` would
replace the token. Nothing follows redirects, which could carry the token
elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

from keepfs.keep.pace import PacedSocket, pacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from urllib3.connectionpool import HTTPConnectionPool
    from urllib3.poolmanager import PoolManager

    from keepfs.keep.pace import Pace

#: Idle sessions that are kept; each may hold a connection per service.
_MOST_IDLE = 32
#: Services that one session keeps connections to.
_MOST_SERVICES = 64
# As the SDK: dead peers are noticed though nothing is sent.
_SOCKET_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 75),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 75),
]


class _Connection(Protocol):
    sock: Any

    def connect(self) -> None: ...


@functools.cache
def _paced_pool(pool_class: Any) -> type[HTTPConnectionPool]:  # noqa: ANN401 - a class; its stubs hide that it hashes
    """Derive a pool whose connections keep to the pace of the thread that uses them."""
    plain = cast("type[_Connection]", pool_class.ConnectionCls)

    def connect(self: _Connection) -> None:
        plain.connect(self)
        self.sock = PacedSocket(self.sock)

    connection_class = type(plain.__name__, (plain,), {"connect": connect})
    members = {"ConnectionCls": connection_class, "_keepfs_paced": True}
    return type(pool_class.__name__, (pool_class,), members)


def _pace_connections(manager: PoolManager) -> None:
    """Let every connection that a manager makes from now on keep a pace."""
    pools: Mapping[str, type[HTTPConnectionPool]] = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {
        scheme: pool if hasattr(pool, "_keepfs_paced") else _paced_pool(cast("Any", pool))
        for scheme, pool in pools.items()
    }


class _KeepAdapter(HTTPAdapter):
    """The transport of sessions that are all ours."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as given
        super().init_poolmanager(*args, socket_options=_SOCKET_OPTIONS, **kwargs)
        _pace_connections(self.poolmanager)


class SessionPool:
    """Sessions, each lent to one thread at a time.

    Args:
        verify: Path of a bundle of certificate authorities; True for the one
            of `requests`; False to check no certificate.
        template: A user's session, whose adapters, TLS and proxy settings
            are taken over, and nothing else of it. It stays theirs: closing
            the pool leaves it open.
    """

    def __init__(
        self,
        verify: str | Literal[True, False],
        template: requests.Session | None = None,
    ) -> None:
        self._verify = verify
        self._template = template
        self._idle: list[requests.Session] = []
        self._paces: set[Pace] = set()
        self._lock = threading.Lock()
        self._closed = False
        if template is not None:
            _adopt(template)
        if verify is False:
            # It was asked for; saying so at every request helps nobody.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    @contextlib.contextmanager
    def exchange(self, pace: Pace) -> Iterator[requests.Session]:
        """Lend a session for one request and its answer, at a pace.

        Raises:
            ConnectionError: The pool is closed.
        """
        with self._lock:
            if self._closed:
                raise ConnectionError("the client is closed")
            session = self._idle.pop() if self._idle else self._new_session()
            self._paces.add(pace)
        try:
            with pacing(pace):
                yield session
        finally:
            self._take_back(session, pace)

    def _take_back(self, session: requests.Session, pace: Pace) -> None:
        with self._lock:
            self._paces.discard(pace)
            keep = not self._closed and len(self._idle) < _MOST_IDLE
            if keep:
                self._idle.append(session)
        if not keep:
            self._end(session)

    def close(self) -> None:
        """End the exchanges under way, and close all connections. Further ones are refused."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            paces = list(self._paces)
        for pace in paces:
            pace.cancel()
        for session in idle:
            self._end(session)

    def _new_session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.verify = self._verify
        if self._template is None:
            for scheme in ("http://", "https://"):
                session.mount(scheme, _KeepAdapter(pool_connections=_MOST_SERVICES))
            return session
        session.adapters.clear()
        for prefix, adapter in self._template.adapters.items():
            session.mount(prefix, adapter)
        session.proxies = dict(self._template.proxies)
        session.cert = self._template.cert
        if self._template.verify is not True and self._template.verify is not None:
            session.verify = self._template.verify
        return session

    def _end(self, session: requests.Session) -> None:
        if self._template is None:  # closing a session closes its adapters
            session.close()


def _adopt(template: requests.Session) -> None:
    """Let a user's adapters make paced connections; outside our exchanges they act as ever."""
    for adapter in template.adapters.values():
        if isinstance(adapter, HTTPAdapter):
            _pace_connections(adapter.poolmanager)
            for proxy in filter(None, template.proxies.values()):
                _pace_connections(adapter.proxy_manager_for(proxy))


def send(
    session: requests.Session,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: memoryview | None,
    timeouts: tuple[float, float],
) -> requests.Response:
    """Send one request and return the answer's head; the body is still to be read.

    Args:
        session: From `SessionPool.exchange`.
        method: GET, HEAD or PUT.
        url: Where to.
        headers: All there are; a session's own, and its cookies, don't come in.
        body: Sent without a copy; it must not change meanwhile.
        timeouts: Seconds to connect, and between bytes where no pace is kept.

    Raises:
        requests.RequestException: No answer came.
    """
    request = requests.PreparedRequest()
    request.prepare(method=method, url=url, headers=dict(headers))
    if body is not None and body.nbytes:
        request.body = body  # type: ignore[assignment] # urllib3 takes any buffer
        request.headers["Content-Length"] = str(body.nbytes)
    # Not `session.send`: it would read the whole body of a redirect to see
    # where it leads, and keep cookies.
    return session.get_adapter(url).send(
        request,
        stream=True,
        timeout=timeouts,
        verify=True if session.verify is None else session.verify,
        cert=session.cert,
        proxies=session.proxies,
    )
