"""Connections: new connections to services, and idle ones, which are kept for 55 s.

urllib3 connects and checks certificates. A connection serves one exchange at a
time, and is never used after a fork.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
import threading
import time
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import requests
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from keepfs.keep.http.pace import tries
from keepfs.keep.http.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keepfs.keep.http.pace import Pace

#: Most idle connections kept to each service.
_MOST_IDLE = 32
#: Most services to which connections are kept.
_MOST_SERVICES = 64
#: Seconds for which an idle connection is kept: less than the 60 s after which load
#: balancers drop one (AWS's default), and the 75 s of nginx, which Arvados runs in front
#: of its services. A keepstore itself never closes them.
IDLE_SECONDS = 55.0
# As in the SDK: TCP keep-alive detects dead peers while nothing is sent.
_SOCKET_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 75),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 75),
]


class _Idle(NamedTuple):
    """An idle connection, and the time since which it is idle."""

    wire: Wire
    since: float


class Connections:
    """Connections shared by all threads of a client, each in one exchange at a time.

    Args:
        verify: Path of a bundle of certificate authorities; True for the one
            of `requests`; False to disable certificate checks.
        clock: Replaces `time.monotonic`, in seconds.
    """

    def __init__(
        self,
        verify: str | Literal[True, False],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verify = verify
        self._clock = clock
        # By root; the most recently used is the last.
        self._idle: OrderedDict[str, list[_Idle]] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        if verify is False:
            # The user disabled the checks; a warning at every request is useless.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        # For a client that was never closed.
        weakref.finalize(self, _close_all, self._idle)
        _all.add(self)

    def take(self, root: str, timeout: float, pace: Pace | None = None) -> Wire:
        """Take an idle connection, or make one. Blocks.

        Args:
            root: Base URL.
            timeout: Seconds to connect to each address.
            pace: The pace of the exchange; it reports silence while connecting.

        Raises:
            urllib3.exceptions.HTTPError: No connection could be made; or an `OSError`.
        """
        while True:
            with self._lock:
                idle = self._idle.get(root)
                expired = self._expired(idle) if idle else ()
                wire = idle.pop().wire if idle else None
            for each in expired:
                each.close()
            if wire is None:
                return self.connect(root, timeout, pace)
            if wire.is_usable():
                return wire
            wire.close()

    def connect(self, root: str, timeout: float, pace: Pace | None = None) -> Wire:
        """Make a connection; see `take`."""
        url = parse_root(root)
        connection = self._connection(url)
        connection.pace = pace
        wire = Wire(connection, url.netloc or "")
        try:
            wire.connect(timeout)
        except BaseException:  # a TLS handshake that fails leaves the socket open
            wire.close()
            raise
        finally:
            connection.pace = None  # the connection outlives the exchange
        return wire

    def give_back(self, root: str, wire: Wire) -> None:
        """Return a connection for reuse, after a complete exchange."""
        with self._lock:
            idle = self._idle.setdefault(root, [])
            self._idle.move_to_end(root)
            excess = self._expired(idle) if idle else []
            if self._closed or len(idle) >= _MOST_IDLE:
                excess.append(wire)
            else:
                idle.append(_Idle(wire, self._clock()))
            if len(self._idle) > _MOST_SERVICES:  # hints may name any number
                excess += [each.wire for each in self._idle.popitem(last=False)[1]]
        for each in excess:
            each.close()

    def has_idle(self, root: str) -> bool:
        """Return whether there is an idle connection to a service."""
        with self._lock:
            idle = self._idle.get(root, [])
            return bool(idle) and idle[-1].since > self._clock() - IDLE_SECONDS

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are returned."""
        with self._lock:
            self._closed = True
            idle = self._idle.copy()
            self._idle.clear()
        _close_all(idle)

    def forget_after_fork(self) -> None:
        """Drop the connections that the parent process uses too; the parent's stay open."""
        self._lock = threading.Lock()  # another thread of the parent may have held it
        _close_all(self._idle)
        self._idle.clear()

    def _expired(self, idle: list[_Idle]) -> list[Wire]:
        """Remove and return the connections idle for too long; `idle` is sorted by age."""
        oldest = self._clock() - IDLE_SECONDS
        if idle[0].since > oldest:
            return []
        kept = [each for each in idle if each.since > oldest]
        expired = [each.wire for each in idle[: len(idle) - len(kept)]]
        idle[:] = kept
        return expired

    def _connection(self, url: urllib3.util.Url) -> _RetryingConnection:
        host = (url.host or "").strip("[]")
        options: dict[str, Any] = {"socket_options": _SOCKET_OPTIONS}
        if url.scheme != "https":
            return _RetryingConnection(host, url.port or 80, **options)
        if self._verify is False:
            options["assert_hostname"] = False
        options["ssl_context"] = _tls_context(self._verify)
        return _TlsConnection(host, url.port or 443, **options)


#: All instances, for `forget_after_fork`.
_all = weakref.WeakSet[Connections]()


def _forget_after_fork() -> None:
    for each in list(_all):
        each.forget_after_fork()


os.register_at_fork(after_in_child=_forget_after_fork)


class _RetryingConnection(HTTPConnection):
    """A connection that splits its TCP handshake into several tries, to report silence."""

    #: The pace of the exchange that the connection is made for.
    pace: Pace | None = None

    def _new_conn(self) -> socket.socket:
        limit = self.timeout
        if not isinstance(limit, int | float):
            return super()._new_conn()
        failure = urllib3.exceptions.ConnectTimeoutError(self, "no time is left to connect")
        try:
            for seconds in tries(limit, self.pace):
                self.timeout = seconds
                try:
                    connected = super()._new_conn()
                except urllib3.exceptions.NewConnectionError:  # a subclass: it was refused
                    raise
                except urllib3.exceptions.ConnectTimeoutError as error:
                    failure = error
                else:
                    connected.settimeout(limit)  # for the TLS handshake, which can't be split
                    return connected
        finally:
            self.timeout = limit
        raise failure


class _TlsConnection(_RetryingConnection, HTTPSConnection):
    """The same, over TLS."""


@functools.lru_cache(maxsize=_MOST_SERVICES)
def parse_root(root: str) -> urllib3.util.Url:
    """Parse a base URL."""
    return urllib3.util.parse_url(root)


def _close_all(idle: Mapping[str, list[_Idle]]) -> None:
    for connections in idle.values():
        for each in connections:
            each.wire.close()


# --- TLS ---

_making_context = threading.Lock()


def _tls_context(verify: str | Literal[True, False]) -> ssl.SSLContext:
    """Return the shared TLS context for a setting of `verify`.

    Reading the usual bundle takes 25 ms. It is read again after it was replaced.

    Raises:
        OSError: The bundle doesn't exist or can't be read.
    """
    if verify is False:
        bundle, stamp = None, None
    else:
        bundle = requests.utils.DEFAULT_CA_BUNDLE_PATH if verify is True else verify
        status = Path(bundle).stat()
        stamp = status.st_ino, status.st_size, status.st_mtime_ns
    with _making_context:
        return _made_context(bundle, stamp)


@functools.lru_cache(maxsize=4)
def _made_context(bundle: str | None, _stamp: object) -> ssl.SSLContext:
    reqs = ssl.CERT_NONE if bundle is None else ssl.CERT_REQUIRED
    context = urllib3.util.ssl_.create_urllib3_context(cert_reqs=reqs)
    if bundle is not None and Path(bundle).is_dir():
        context.load_verify_locations(capath=bundle)
    elif bundle is not None:
        context.load_verify_locations(cafile=bundle)
    return context
