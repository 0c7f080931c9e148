"""Connections to services: those that nobody uses, kept for a while, and new ones.

urllib3 connects and checks certificates. A connection is lent to one exchange at a
time, and never to one in another process.
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

#: Idle connections that are kept to each service.
_MOST_IDLE = 32
#: Services to which connections are kept.
_MOST_SERVICES = 64
#: Seconds for which an idle connection is kept: less than the 60 s after which load
#: balancers drop one (AWS's default), and the 75 s of nginx, which Arvados has before
#: its services. A keepstore itself keeps them for ever.
IDLE_SECONDS = 55.0
# As the SDK: dead peers are noticed though nothing is sent.
_SOCKET_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 75),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 75),
]


class _Idle(NamedTuple):
    """A connection that nobody uses, and since when."""

    wire: Wire
    since: float


class Connections:
    """Connections shared by all threads of a process, each in one exchange at a time.

    Args:
        verify: Path of a bundle of certificate authorities; True for the one
            of `requests`; False to check no certificate.
        clock: Seconds, instead of `time.monotonic`.
    """

    def __init__(
        self,
        verify: str | Literal[True, False],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verify = verify
        self._clock = clock
        # By root; the last one used is the last.
        self._idle: OrderedDict[str, list[_Idle]] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        if verify is False:
            # It was asked for; saying so at every request helps nobody.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        # Of a client that nobody closed.
        weakref.finalize(self, _close_all, self._idle)
        _all.add(self)

    def take(self, root: str, timeout: float, pace: Pace | None = None) -> Wire:
        """Take an idle connection, or make one.

        Args:
            root: Base URL.
            timeout: Seconds to connect to each address.
            pace: Of the exchange; it notices silence while a connection is made.

        Raises:
            urllib3.exceptions.HTTPError: It can't be made; or an `OSError`.
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
        """Make a connection; as `take`."""
        url = parse_root(root)
        connection = self._connection(url)
        connection.pace = pace
        wire = Wire(connection, url.netloc or "")
        try:
            wire.connect(timeout)
        except BaseException:  # of TLS, perhaps, over a socket that is open
            wire.close()
            raise
        finally:
            connection.pace = None  # the connection outlives the exchange
        return wire

    def give_back(self, root: str, wire: Wire) -> None:
        """Let others have a connection, after an exchange that left nothing behind."""
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
        """Tell whether there is a connection to a service that nobody uses."""
        with self._lock:
            idle = self._idle.get(root, [])
            return bool(idle) and idle[-1].since > self._clock() - IDLE_SECONDS

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are given back."""
        with self._lock:
            self._closed = True
            idle = self._idle.copy()
            self._idle.clear()
        _close_all(idle)

    def forget_after_fork(self) -> None:
        """Drop what the parent process uses too; it isn't closed there."""
        self._lock = threading.Lock()  # another thread of the parent may have held it
        _close_all(self._idle)
        self._idle.clear()

    def _expired(self, idle: list[_Idle]) -> list[Wire]:
        """Take out what has been idle for too long; the last one given back is the last."""
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


#: All there are, to be told of a fork.
_all = weakref.WeakSet[Connections]()


def _forget_after_fork() -> None:
    for each in list(_all):
        each.forget_after_fork()


os.register_at_fork(after_in_child=_forget_after_fork)


class _RetryingConnection(HTTPConnection):
    """A connection whose TCP handshake is tried again where silence is watched meanwhile."""

    #: Of the exchange that the connection is made for.
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


class _TlsConnection(_RetryingConnection, HTTPSConnection):
    """The same, over TLS."""


@functools.lru_cache(maxsize=_MOST_SERVICES)
def parse_root(root: str) -> urllib3.util.Url:
    """Take a base URL apart."""
    return urllib3.util.parse_url(root)


def _close_all(idle: Mapping[str, list[_Idle]]) -> None:
    for connections in idle.values():
        for each in connections:
            each.wire.close()


# --- TLS ---

_making_context = threading.Lock()


def _tls_context(verify: str | Literal[True, False]) -> ssl.SSLContext:
    """Return the context for all connections that are checked so.

    To read the usual bundle takes 25 ms. It is read again when it was replaced.

    Raises:
        OSError: There is no such bundle, or none that can be read.
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
