"""Wire: one kept-alive HTTP/1.1 connection, as lean as a small block deserves.

urllib3 connects, TLS and its checks included; what is said then is said here:
a request in one piece, an answer's head read line by line. A block of 4 KiB
took a client 618 µs of processor time through the layers of `requests`,
urllib3 and http.client, 394 without the first, and takes 213 so.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
from typing import TYPE_CHECKING, Any

from urllib3.util.connection import is_connection_dropped

from keepfs.keep.pace import PacedSocket

if TYPE_CHECKING:
    import io
    from collections.abc import Mapping

    from urllib3.connection import HTTPConnection

#: Bytes of a line, and lines of a head, at most; as http.client has it.
_MOST_LINE, _MOST_LINES = 65536, 100
#: Bytes of a body that is sent together with the head, in one piece, which an
#: idle connection takes without a wait.
ONE_PIECE = 16 * 1024
#: So many digits, and no more: Python refuses to read a number of thousands.
_STATUS, _LENGTH = re.compile(r"[1-9][0-9]{2}\Z"), re.compile(r"[0-9]{1,19}\Z")
#: What is raised where the other side has ended a connection.
BROKEN = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
_CANT_SEND = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
_NO_BODY = frozenset({204, 304})
_CONTINUE = range(100, 200)


class Wire:
    """A connection to one service, for one exchange at a time.

    Args:
        connection: Of urllib3, not connected yet.
        host: For the Host header.
    """

    def __init__(self, connection: HTTPConnection, host: str) -> None:
        self._connection = connection
        self._host = host
        self._socket: Any = None
        self._stream: io.BufferedReader | None = None
        self._method, self._is_sent = "", False
        #: Whether a request was sent on it.
        self.was_used = False

    def connect(self, timeout: float) -> None:
        """Connect, within so many seconds for each address.

        Raises:
            urllib3.exceptions.HTTPError: It can't be.
        """
        self._connection.timeout = timeout
        self._connection.connect()
        self._socket = PacedSocket(self._connection.sock)

    def is_usable(self) -> bool:
        """Tell whether it is connected still, and nothing came that nobody asked for."""
        return not is_connection_dropped(self._connection)

    def close(self) -> None:
        """Close it, and what was being received."""
        self._end_stream()
        self._connection.close()

    def _end_stream(self) -> None:
        # It holds the socket open for itself.
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def fileno(self) -> int:
        """Return the descriptor that an answer comes by."""
        return int(self._socket.fileno())

    def send(
        self, method: str, target: str, headers: Mapping[str, str], body: memoryview | None
    ) -> None:
        """Send a request, or as much of it as the service takes.

        Raises:
            ValueError: A header can't be sent.
            OSError: The connection broke its pace.
        """
        head = _head_of(method, target, self._host, headers, body)
        self._method, self._is_sent = method, False
        self.was_used = True
        # An answer may come before everything is sent, and be why no more can be.
        with contextlib.suppress(*_CANT_SEND):
            if body is not None and body.nbytes <= ONE_PIECE:
                self._socket.sendall(head + body.tobytes())
            else:
                self._socket.sendall(head)
                if body is not None:
                    self._socket.sendall(body)
            self._is_sent = True

    def receive(self) -> Head:
        """Return the head of the answer to what was sent.

        Raises:
            http.client.HTTPException: The answer isn't one of HTTP.
            OSError: The connection broke, or its pace did.
        """
        # A new one each time: nothing that was left of the last answer is taken for this one's.
        self._end_stream()
        self._stream = self._socket.makefile()
        return Head.read(self._stream, self._method, can_go_on=self._is_sent)

    def has_answered(self) -> bool:
        """Tell whether any byte has come of the answer to what was sent."""
        return self._stream is not None and bool(self._stream.raw.has_received)  # type: ignore[attr-defined] # ours


class Head:
    """The head of an answer, and the body behind it.

    Attributes:
        version: Of HTTP: 10 or 11.
        status: The HTTP status.
        reason: The text beside it.
        headers: Names in lower case.
        body: Where the body is read from.
    """

    def __init__(
        self, version: int, status: int, reason: str, headers: dict[str, str], body: Body
    ) -> None:
        self.version = version
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = body

    @classmethod
    def read(cls, stream: io.BufferedReader, method: str, *, can_go_on: bool) -> Head:
        """Read a head; those of interim answers are skipped."""
        while True:
            version, status, reason = _status_line(stream)
            headers = _headers(stream)
            if status not in _CONTINUE:
                break
        is_empty = method == "HEAD" or status in _NO_BODY
        length = 0 if is_empty else declared_length(headers)
        is_chunked = not is_empty and headers.get("transfer-encoding", "").lower() == "chunked"
        kept = headers.get("connection", "").lower()
        keeps = "close" not in kept if version == 11 else "keep-alive" in kept  # noqa: PLR2004
        body = _ChunkedBody(stream) if is_chunked else Body(stream, length)
        body.can_go_on = can_go_on and keeps
        return cls(version, status, reason, headers, body)


class Body:
    """What follows a head, up to its length, or to the end of the connection.

    Args:
        stream: What is received.
        length: Bytes; None where only the end tells.

    Attributes:
        can_go_on: Whether the service keeps the connection.
    """

    def __init__(self, stream: io.BufferedReader, length: int | None) -> None:
        self._stream = stream
        self._left = length
        self.can_go_on = True

    def is_complete(self) -> bool:
        """Tell whether it has been read to its known end."""
        return self._left == 0

    def readinto(self, view: memoryview) -> int:
        """Receive up to a view's bytes; 0 at the end, be it too early."""
        if self._left is not None and self._left < view.nbytes:
            view = view[: self._left]
        if not view.nbytes:
            return 0
        count = self._stream.readinto(view) or 0
        if self._left is not None:
            self._left -= count
        return count

    def read(self, most: int) -> bytes:
        """Receive up to so many bytes; fewer at the end only, be it too early."""
        found = bytearray(most)
        got = 0
        with memoryview(found) as view:
            while count := self.readinto(view[got:]):
                got += count
        return bytes(found[:got])


class _ChunkedBody(Body):
    """A body in chunks, each with its length before it."""

    def __init__(self, stream: io.BufferedReader) -> None:
        super().__init__(stream, 0)
        self._is_last = False

    def is_complete(self) -> bool:
        return self._is_last

    def readinto(self, view: memoryview) -> int:
        if not view.nbytes or (not self._left and not self._next_chunk()):
            return 0
        count = super().readinto(view)
        if count and not self._left:
            _line(self._stream)  # what ends a chunk
        return count

    def _next_chunk(self) -> bool:
        """Read a chunk's length; tell whether there is one, the last having none."""
        if self._is_last:
            return False
        text = _line(self._stream).partition(b";")[0]
        try:
            self._left = int(text, 16)
        except ValueError:
            self._left = 0
            return False
        if self._left == 0:
            _headers(self._stream)
            self._is_last = True
        return not self._is_last


def _head_of(
    method: str, target: str, host: str, headers: Mapping[str, str], body: memoryview | None
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {body.nbytes}")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header with a line break in it can't be sent")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _line(stream: io.BufferedReader) -> bytes:
    line = stream.readline(_MOST_LINE + 1)
    if len(line) > _MOST_LINE:
        raise http.client.LineTooLong("line of an answer")
    return line.rstrip(b"\r\n")


def _status_line(stream: io.BufferedReader) -> tuple[int, int, str]:
    raw = stream.readline(_MOST_LINE + 1)
    if not raw:
        raise http.client.RemoteDisconnected("Remote end closed connection without response")
    version, _, rest = raw.decode("latin-1").strip().partition(" ")
    status, _, reason = rest.partition(" ")
    if not version.startswith("HTTP/1.") or not _STATUS.match(status):
        raise http.client.BadStatusLine(repr(raw[:200]))
    return 10 if version == "HTTP/1.0" else 11, int(status), reason.strip()


def _headers(stream: io.BufferedReader) -> dict[str, str]:
    found: dict[str, str] = {}
    for _ in range(_MOST_LINES + 1):
        line = _line(stream)
        if not line:
            return found
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            found[name] = f"{found[name]}, {value}" if name in found else value
    raise http.client.HTTPException(f"got more than {_MOST_LINES} headers")


def declared_length(headers: Mapping[str, str]) -> int | None:
    """Return the length that a body is said to have; None where there is no such number."""
    text = headers.get("content-length", "")
    return int(text) if _LENGTH.match(text) else None
