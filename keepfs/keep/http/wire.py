"""Wire: one keep-alive HTTP/1.1 connection with little overhead for small blocks.

urllib3 connects, including TLS and its checks; requests and answers are handled here:
through `requests`, urllib3 and http.client a block of 4 KiB took three times as long.
"""

from __future__ import annotations

import http.client
import io
import re
import select
import ssl
from typing import TYPE_CHECKING, Any

from keepfs.keep.http.pace import PacedReader, send_all
from keepfs.keep.http.phases import Phase, WireEvent, WireState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from urllib3.connection import HTTPConnection

    from keepfs.keep.http.pace import Pace

#: Bounds of a head or of trailers: bytes, and header lines (http.client's number).
_MOST_HEAD, _MOST_LINES = 65536, 100
#: Bounds of a chunk's size line, in bytes, and of the interim answers to one request.
_MOST_CHUNK_LINE, _MOST_INTERIM = 4096, 20
#: Most bytes of a body that is sent together with the head, in one piece. An idle
#: connection accepts it without blocking.
ONE_PIECE = 16 * 1024
#: Bytes of the first buffer for a body that may be long.
_FIRST_ROOM = 64 * 1024
#: The exceptions raised when the other side has closed a connection.
BROKEN = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
_CANT_SEND = (BrokenPipeError, ConnectionResetError, *BROKEN[1:])
# The grammar is RFC 9112's, as h11 implements it: `scripts/fuzz-http` compares the two.
# Numbers are bounded: Python refuses to convert numbers of thousands of digits.
_STATUS_LINE = re.compile(r"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: ([^\x00\r\n\f\v]*))?\r?\n")
_FIELD = re.compile(r"^([-!#$%&'*+.^_`|~0-9A-Za-z]+):([^\x00\r\n\f\v]*)\r?\n", re.MULTILINE)
_FOLD = re.compile(r"\r?\n[ \t]+")
_LENGTH = re.compile(r"[0-9]{1,20}\Z")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,20})(?:;[^\n]*)?[ \t]*\r\n")
_BLANK = (b"\r\n", b"\n")
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_BEGIN = b"HTTP/1."
_NO_ANSWER = "Remote end closed connection without response"  # as http.client has it
_NO_BODY = frozenset({204, 304})
_SWITCHING = 101
_FIRST_FINAL = 200


class CutShortError(http.client.HTTPException):
    """The connection ended before the answer did."""


class Wire:
    """A connection to one service, for one exchange at a time.

    Args:
        connection: A urllib3 connection, not connected yet.
        host: The value of the Host header.
    """

    def __init__(self, connection: HTTPConnection, host: str) -> None:
        self._connection = connection
        self._host = host
        self._socket: Any = None
        self._poll = select.poll()
        self._raw: PacedReader | None = None
        self._stream: io.BufferedReader | None = None
        self._method = ""
        self._state = WireState()
        #: Whether a request was sent on it.
        self.was_used = False

    def __repr__(self) -> str:
        return f"Wire({self._host!r}, {self._state.phase})"

    def connect(self, timeout: float) -> None:
        """Connect, within `timeout` seconds for each address. Blocks.

        Raises:
            urllib3.exceptions.HTTPError: It couldn't connect.
        """
        self._connection.timeout = timeout
        self._connection.connect()
        self._socket = self._connection.sock
        self._poll.register(self._socket, select.POLLIN)
        self._state.apply(WireEvent.CONNECTED)

    def is_idle(self) -> bool:
        """Return whether another request can be sent: no exchange is in progress or failed."""
        return self._state.phase is Phase.IDLE

    def end_exchange(self) -> bool:
        """End the exchange, and return whether another can follow; else close the connection.

        From then on a cancel of the pace does not reach the socket.
        """
        if self.is_idle():
            self._end_stream()
            return True
        self.close()
        return False

    def is_usable(self) -> bool:
        """Return whether it is still connected, without unexpected bytes to read."""
        return self._connection.sock is not None and not self._poll.poll(0)

    def close(self) -> None:
        """Close the connection and the answer in progress."""
        self._state.apply(WireEvent.CLOSE)
        self._end_stream()
        self._connection.close()

    def _end_stream(self) -> None:
        # The pace must not outlive the exchange: it refers to the call and its block.
        if self._stream is not None:
            self._stream.close()
            self._stream = self._raw = None

    def fileno(self) -> int:
        """Return the descriptor to poll for an answer."""
        return int(self._socket.fileno())

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        pace: Pace | None = None,
    ) -> None:
        """Send a request, or as much of it as the service accepts. Blocks.

        Args:
            method: GET, HEAD, PUT, POST, PATCH or DELETE.
            target: The path, with its slash.
            headers: All except Host and Content-Length.
            body: Sent without a copy; it must not change meanwhile.
            pace: The pace of the exchange; None for no limit but the socket's own.

        Raises:
            ValueError: A header can't be sent.
            OSError: The connection exceeded its pace, or failed without being closed.
            PhaseError: An exchange is in progress.
        """
        head = _head_of(method, target, self._host, headers, body)
        self._state.apply(WireEvent.REQUEST)
        self._end_stream()  # no byte of the last answer may be left in its reader
        self._method = method
        self.was_used = True
        try:
            if body is not None and body.nbytes <= ONE_PIECE:
                send_all(self._socket, head + body.tobytes(), pace)
            else:
                send_all(self._socket, head, pace)
                if body is not None:
                    send_all(self._socket, body, pace)
        except _CANT_SEND:
            # The service may answer before it has read the whole request, then close.
            self._state.apply(WireEvent.SENDING_FAILED)
        else:
            self._state.apply(WireEvent.ALL_SENT)

    def receive(self, pace: Pace | None = None) -> Head:
        """Return the head of the answer; the pace applies to the body too. Blocks.

        Raises:
            http.client.HTTPException: The answer isn't valid HTTP.
            OSError: The connection broke or exceeded its pace.
        """
        return Head.read(self._reader(pace)[1], self._method, self._state)

    def receive_nowait(self, pace: Pace | None = None) -> bool:
        """Receive what has arrived of the answer; return whether any byte has. Doesn't block.

        Raises:
            ConnectionError: The service closed the connection; or another `OSError`.
        """
        raw, _ = self._reader(pace)
        if not raw.has_received and raw.receive_nowait() == 0:
            raise http.client.RemoteDisconnected(_NO_ANSWER)
        return raw.has_received

    def _reader(self, pace: Pace | None) -> tuple[PacedReader, io.BufferedReader]:
        if self._raw is None or self._stream is None:
            self._raw = PacedReader(self._socket, pace)
            self._stream = io.BufferedReader(self._raw)
        return self._raw, self._stream

    def has_answered(self) -> bool:
        """Return whether any byte of the answer has arrived."""
        return self._raw is not None and self._raw.has_received


class Head:
    """The head of an answer, and its body.

    Attributes:
        version: The HTTP version: 10 or 11.
        status: The HTTP status.
        reason: The reason phrase.
        headers: The headers; names in lower case.
        body: The body, still to be read.
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
    def read(cls, stream: io.BufferedReader, method: str, state: WireState) -> Head:
        """Read a head; skip interim answers. Blocks.

        Args:
            stream: The receiving half of the connection.
            method: The method of the request.
            state: The connection's state; changed by the head, and later by the body's end.

        Raises:
            CutShortError: The connection ended within the head.
            http.client.HTTPException: The head isn't valid HTTP.
            OSError: The connection broke or exceeded its pace.
        """
        for _ in range(_MOST_INTERIM + 1):
            version, status, reason, headers = _head(stream)
            if status >= _FIRST_FINAL:
                break
            if status == _SWITCHING:
                raise http.client.HTTPException(
                    "the service switches the protocol without a request"
                )
        else:
            raise http.client.HTTPException(f"more than {_MOST_INTERIM} interim answers")
        keeps = _keeps_connection(version, headers)
        state.apply(WireEvent.HEAD_KEEPS if keeps else WireEvent.HEAD_ENDS)
        body: Body
        if method == "HEAD" or status in _NO_BODY:
            body = Body(stream, 0, state)
        elif "transfer-encoding" in headers:
            headers.pop("content-length", None)  # the chunks define the length
            body = _ChunkedBody(stream, state)
        else:
            length = headers.get("content-length")  # `_fields` has checked it
            body = Body(stream, None if length is None else int(length), state)
        return cls(version, status, reason, headers, body)


class Body:
    """The body of an answer, up to its length or to the end of the connection.

    Args:
        stream: The receiving half of the connection.
        length: Its length in bytes; None if the end of the connection ends it.
        state: The connection's state. It gets the event `BODY_COMPLETE` when the body was
            read to its length; never if the length is None.
    """

    def __init__(self, stream: io.BufferedReader, length: int | None, state: WireState) -> None:
        self._stream = stream
        self._left = length
        self._state = state
        if length == 0:
            state.apply(WireEvent.BODY_COMPLETE)

    def readinto(self, view: memoryview) -> int:
        """Receive bytes into a view; return their number, 0 at the end. Blocks.

        Raises:
            CutShortError: The connection ended before the body did.
            http.client.HTTPException: The body isn't valid HTTP.
            OSError: The connection broke or exceeded its pace.
        """
        if self._left is not None and self._left < view.nbytes:
            view = view[: self._left]
        if not view.nbytes:
            return 0
        count = self._stream.readinto(view) or 0
        if self._left is not None:
            if not count:
                raise CutShortError(f"the connection ended {self._left} bytes too early")
            self._left -= count
            if not self._left:
                self._reach_length()
        return count

    def _reach_length(self) -> None:
        """Handle the end of the body: all announced bytes have arrived."""
        self._state.apply(WireEvent.BODY_COMPLETE)

    def read(self, most: int) -> bytes:
        """Receive `most` bytes, fewer only at the end. Raises as `readinto`. Blocks."""
        found = bytearray()
        room = bytearray(min(most, _FIRST_ROOM))  # grows with the body: most answers are short
        while len(found) < most:
            with memoryview(room) as view:
                count = self.readinto(view[: most - len(found)])
                found += view[:count]
            if not count:
                break
            if count == len(room):
                room = bytearray(min(most, 2 * count))
        return bytes(found)


class _ChunkedBody(Body):
    """A body in chunked transfer coding."""

    def __init__(self, stream: io.BufferedReader, state: WireState) -> None:
        super().__init__(stream, None, state)
        self._left = 0
        self._is_last = False

    def readinto(self, view: memoryview) -> int:
        if not view.nbytes or (not self._left and not self._next_chunk()):
            return 0
        return super().readinto(view)

    def _reach_length(self) -> None:
        """Read the line break after a chunk."""
        end = self._stream.read(2)
        if end != b"\r\n":
            if b"\r\n".startswith(end):
                raise CutShortError("the connection ended within a body in chunks")
            raise http.client.HTTPException(f"{end!r} instead of the end of a chunk")

    def _next_chunk(self) -> bool:
        """Read a chunk's length; return False after the last chunk."""
        if self._is_last:
            return False
        line = _line(self._stream, _MOST_CHUNK_LINE)
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise http.client.HTTPException(f"{line[:100]!r} instead of a chunk's length")
        self._left = int(match[1], 16)
        if self._left == 0:
            _fields(_head_text(self._stream))  # trailers
            self._is_last = True
            self._state.apply(WireEvent.BODY_COMPLETE)
        return not self._is_last


def _head_of(
    method: str, target: str, host: str, headers: Mapping[str, str], body: memoryview | None
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {body.nbytes}")
    text = "\r\n".join(lines)
    if text.count("\r") >= len(lines) or text.count("\n") >= len(lines):
        raise ValueError("a header with a line break in it can't be sent")
    return (text + "\r\n\r\n").encode("latin-1")


def _line(stream: io.BufferedReader, most: int) -> bytes:
    """Read a line of at most `most` bytes, including its end."""
    line = stream.readline(most)
    if not line.endswith(b"\n"):
        if len(line) >= most:
            raise http.client.LineTooLong("part of an answer")
        raise CutShortError("the connection ended within the answer's head or chunks")
    return line


def _head_text(stream: io.BufferedReader, first: str = "") -> str:
    """Read the lines of a head or of trailers, up to the blank line.

    Args:
        stream: The receiving half of the connection.
        first: The first line, if it was read already.
    """
    lines: list[bytes] = []
    room = _MOST_HEAD - len(first)
    while (line := _line(stream, room)) not in _BLANK:
        lines.append(line)
        room -= len(line)
        if not room:
            raise http.client.LineTooLong("head of an answer")
    return first + b"".join(lines).decode("latin-1")


def _head(stream: io.BufferedReader) -> tuple[int, int, str, dict[str, str]]:
    """Read one head: 10 or 11 for HTTP's version, status, reason, headers."""
    buffered = stream.peek(1)
    if not buffered:
        raise http.client.RemoteDisconnected(_NO_ANSWER)
    # Most heads come in one piece.
    if end := _END_OF_HEAD.search(buffered):
        text = stream.read(end.end())[: end.start() + 1].decode("latin-1")
    else:
        text = _first_line(stream)
    match = _STATUS_LINE.match(text)
    if match is None:
        raise http.client.BadStatusLine(repr(text[:200]))
    if not end:
        text = _head_text(stream, text)
    version, status, reason = match.groups("")
    fields = _fields(text[match.end() :])
    return 10 if version == "0" else 11, int(status), reason.strip(" \t"), fields


def _first_line(stream: io.BufferedReader) -> str:
    line = stream.readline(_MOST_HEAD)
    if len(line) >= _MOST_HEAD:
        raise http.client.LineTooLong("status line")
    if not line.endswith(b"\n") and _BEGIN.startswith(line[: len(_BEGIN)]):
        raise CutShortError("the connection ended within the answer's status line")
    return line.decode("latin-1")


def _fields(text: str) -> dict[str, str]:
    """Parse headers; names in lower case, values of one name joined by commas."""
    if "\n " in text or "\n\t" in text:
        text = _FOLD.sub(" ", text)
    fields = _FIELD.findall(text)
    if len(fields) > _MOST_LINES:
        raise http.client.HTTPException(f"got more than {_MOST_LINES} headers")
    if len(fields) != text.count("\n"):
        raise http.client.HTTPException("an invalid header line")
    found: dict[str, str] = {}
    for name, value in fields:
        key, value = name.lower(), value.strip(" \t")  # noqa: PLW2901
        found[key] = f"{found[key]}, {value}" if key in found else value
    if "content-length" in found:
        found["content-length"] = _the_length(found["content-length"])
    if found.get("transfer-encoding", "chunked").lower() != "chunked":
        raise http.client.HTTPException("a transfer coding other than chunked")
    return found


def _the_length(text: str) -> str:
    """Return the length of a Content-Length; if it is repeated, all values must be equal."""
    length, *others = {length.strip(" \t") for length in text.split(",")}
    if others or not _LENGTH.match(length):
        raise http.client.HTTPException(f"no proper Content-Length: {text[:100]!r}")
    return length


def _keeps_connection(version: int, headers: Mapping[str, str]) -> bool:
    if "connection" not in headers:
        return version == 11  # noqa: PLR2004
    words = {word.strip(" \t") for word in headers["connection"].lower().split(",")}
    return "close" not in words and (version == 11 or "keep-alive" in words)  # noqa: PLR2004


def declared_length(headers: Mapping[str, str]) -> int | None:
    """Return the length in Content-Length; None if it is missing or invalid."""
    try:
        return int(_the_length(headers["content-length"]))
    except (KeyError, http.client.HTTPException):
        return None
