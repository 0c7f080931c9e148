"""Requests that a test server makes itself, to other test servers."""

from __future__ import annotations

import http.client
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from tests.keepstore.wire import Content

# Seconds; a test server that is asked answers at once or is told not to.
_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer of another server.

    Attributes:
        headers: By lower-case name.
        body: What came of it; less than `length` if it was cut.
        length: Announced length of the body, or None.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    length: int | None


def fetch(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: Content | None = None,
    context: ssl.SSLContext | None = None,
) -> Fetched:
    """Make a request and read the whole answer, as far as it comes.

    Raises:
        OSError: The server can't be reached, or closed without an answer.
    """
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request(method, target, body, dict(headers))
        answer = connection.getresponse()
        try:
            content = answer.read()
        except http.client.IncompleteRead as cut:
            content = cut.partial
        announced = answer.getheader("Content-Length")
        return Fetched(
            answer.status,
            {name.lower(): text for name, text in answer.getheaders()},
            content,
            None if announced is None else int(announced),
        )
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()
