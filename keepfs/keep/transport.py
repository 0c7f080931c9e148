"""Transports: one HTTP request sent, its answer's head returned, the body still to be read.

Blocks go through `DirectTransport`, which uses urllib3's connections without
the layer of `requests` above them: that alone took 240 µs of a small block's
470. Where a user gave a `requests.Session`, its adapters send instead.

Neither follows redirects, which could carry the token elsewhere, keeps
cookies, or reads `~/.netrc`, which would replace the token.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

from keepfs.keep.pace import paced_connections

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
    ) -> Answer:
        """Send one request and return the answer's head; the body is still to be read.

        Args:
            method: GET, HEAD or PUT.
            root: Base URL; ends in a slash.
            path: Behind it.
            headers: All there are.
            body: Sent without a copy; it must not change meanwhile.
            timeouts: Seconds to connect, and between bytes where no pace is kept.

        Raises:
            requests.RequestException: No answer came; or one of urllib3's
                `HTTPError`, or an `OSError`.
        """


class DirectTransport:
    """Connections of urllib3, shared by all threads.

    Args:
        verify: Path of a bundle of certificate authorities; True for the one
            of `requests`; False to check no certificate.
    """

    def __init__(self, verify: str | Literal[True, False]) -> None:
        self._manager = urllib3.PoolManager(
            _MOST_SERVICES,
            maxsize=_MOST_IDLE,
            socket_options=_SOCKET_OPTIONS,
            **_tls_settings(verify),
        )
        _pace_connections(self._manager)
        self._pools: dict[str, tuple[HTTPConnectionPool, str]] = {}
        self._lock = threading.Lock()

    def send(
        self,
        method: str,
        root: str,
        path: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        timeouts: tuple[float, float],
    ) -> Answer:
        """Send one request; as `Transport` has it."""
        pool, prefix = self._pools.get(root) or self._pool_of(root)
        try:
            raw = pool.urlopen(
                method,
                prefix + path,
                body=cast("Any", body) if body is not None and body.nbytes else None,
                headers=_with_length(headers, body),
                retries=False,
                redirect=False,
                assert_same_host=False,
                timeout=urllib3.Timeout(*timeouts),
                preload_content=False,
                decode_content=False,
            )
        except ValueError as error:  # of http.client: a header that can't be sent
            raise urllib3.exceptions.HTTPError(str(error)) from error

        def end() -> None:
            raw.close()
            raw.release_conn()

        return Answer(raw.status, raw.reason or "", raw.version, _lower(raw.headers), raw, end)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            self._pools.clear()
        self._manager.clear()

    def _pool_of(self, root: str) -> tuple[HTTPConnectionPool, str]:
        with self._lock:
            if len(self._pools) >= _MOST_SERVICES:  # hints may name any number
                self._pools.clear()
            prefix = urllib3.util.parse_url(root).path or "/"
            pool = self._manager.connection_from_url(root)
            found = self._pools[root] = (pool, prefix)
            return found


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
    ) -> Answer:
        """Send one request; as `Transport` has it."""
        request = requests.PreparedRequest()
        request.prepare(method=method, url=root + path, headers=dict(headers))
        if body is not None and body.nbytes:
            request.body = body  # type: ignore[assignment] # urllib3 takes any buffer
            request.headers["Content-Length"] = str(body.nbytes)
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


def adopt(template: requests.Session) -> None:
    """Let a user's adapters make paced connections; outside our exchanges they act as ever."""
    for adapter in template.adapters.values():
        if isinstance(adapter, HTTPAdapter):
            _pace_connections(adapter.poolmanager)
            for proxy in filter(None, template.proxies.values()):
                _pace_connections(adapter.proxy_manager_for(proxy))


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _with_length(headers: Mapping[str, str], body: memoryview | None) -> Mapping[str, str]:
    return headers if body is None else {**headers, "Content-Length": str(body.nbytes)}


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
