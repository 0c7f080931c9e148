"""HTTP/1.1 on a socket, as Go's server speaks it.

Written by hand because tests need what a library hides: interim answers, a
body that is shorter than announced, a connection that closes without a word.
A connection belongs to one thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes of a block or a body in memory.
Content = bytes | bytearray

# Most bytes of an unread request body that Go reads to keep a connection.
_MOST_DRAINED = 256 * 1024
_READ_SIZE = 1 << 20
_MOST_HEAD = 1 << 20


class TruncatedError(Exception):
    """The client stopped sending in the middle of a request's body."""


class BadRequestError(Exception):
    """What came is no HTTP request."""


class HangUpError(Exception):
    """The connection is to be closed without a further byte.

    Args:
        reset: Close with a reset (RST) instead of an orderly end (FIN).
    """

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__("reset" if reset else "closed")
        self.reset = reset


@dataclass(slots=True)
class Answer:
    """What goes back to the client.

    Attributes:
        headers: Set by the service; sent sorted by name, as Go does. Date,
            length and type are added.
        length: Announced length of the body; None announces the true one. If
            it is more than the body, the connection closes after the body; if
            it is less, no body is sent.
        cut: Close the connection after the answer in any case.
    """

    status: int
    body: Content | memoryview = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    cut: bool = False


class Connection:
    """One connection of a client.

    Args:
        stream: The accepted socket; the connection closes it.
        number: Counted from 0 by the server.
        pause: Waits that many seconds; returns True, perhaps sooner, once there is no need.
    """

    def __init__(self, stream: socket.socket, number: int, pause: Callable[[float], bool]) -> None:
        self.number = number
        self.receive_rate: float | None = None
        self._stream = stream
        self._pause = pause
        self._buffer = bytearray()

    def read_head(self) -> list[str] | None:
        """Read the lines of a request's head, or None at the end of the connection."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _MOST_HEAD:
                raise BadRequestError("the head is too long")
            more = self._stream.recv(65536)
            if not more:
                if self._buffer:
                    raise BadRequestError("the head is cut")
                return None
            self._buffer += more
        head = bytes(self._buffer[:end]).decode("latin-1")
        del self._buffer[: end + 4]
        return head.split("\r\n")

    def read_line(self) -> bytes:
        """Read to the next line feed, which is left out with its carriage return."""
        while (end := self._buffer.find(b"\n")) < 0:
            more = self._stream.recv(65536)
            if not more:
                raise TruncatedError
            self._buffer += more
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line.rstrip(b"\r")

    def read_into(self, view: memoryview) -> int:
        """Read some bytes to where `view` is; 0 at the end of the connection."""
        most = min(len(view), _READ_SIZE)
        if self.receive_rate is not None:
            # Twenty reads a second, or a byte at a time.
            most = max(1, min(most, int(self.receive_rate / 20)))
            if self._pause(most / self.receive_rate):
                self.receive_rate = None
        if self._buffer:
            count = min(most, len(self._buffer))
            view[:count] = self._buffer[:count]
            del self._buffer[:count]
            return count
        return self._stream.recv_into(view[:most])

    def send(self, content: Content | memoryview) -> None:
        """Send all of it."""
        self._stream.sendall(content)

    def end_sending(self) -> None:
        """Send an end (FIN); the client can still be read."""
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        """Close the connection; with unread bytes, or if told so, it is a reset."""
        if reset:
            with contextlib.suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        with contextlib.suppress(OSError):
            self._stream.close()

    def abort(self) -> None:
        """Wake the thread that reads or writes; called from another one."""
        with contextlib.suppress(OSError):
            # Not `SSLSocket.shutdown`: the thread that reads would take the rest, still
            # encrypted, for the body.
            socket.socket.shutdown(self._stream, socket.SHUT_RDWR)


class RequestBody:
    """The body of a request, read when the service wants it.

    Args:
        connection: Where it comes from.
        length: Announced bytes; None for a chunked body.
        expects_continue: Whether the client waits for `100 Continue`.

    Attributes:
        received: Bytes read so far, whether kept or thrown away.
        finished: Whether the last byte has been read.
        continued: Whether `100 Continue` was sent.
        no_continue: Never send it.
    """

    def __init__(
        self, connection: Connection, length: int | None, *, expects_continue: bool
    ) -> None:
        self.length = length
        self.received = 0
        self.finished = length == 0
        self.continued = False
        self.no_continue = False
        self._connection = connection
        self._waits = expects_continue and length != 0
        self._content: Content = b""
        self._md5sum: str | None = None
        # Bytes left in the current chunk; None before the first.
        self._chunk: int | None = None

    @property
    def is_awaited(self) -> bool:
        """Tell whether the client still waits to be asked for the body."""
        return self._waits and not self.continued

    def read(self, limit: int) -> Content:
        """Read to the body's end, but at most `limit` bytes, and keep them.

        Raises:
            TruncatedError: The client closed before the end.
        """
        if self.length is None:
            kept = bytearray()
            while len(kept) < limit and (space := self._space(limit - len(kept))):
                piece = bytearray(min(space, _READ_SIZE))
                count = self._fill(memoryview(piece))
                kept += piece[:count]
            self._content = kept
        else:
            kept = bytearray(min(self.length - self.received, limit))
            view = memoryview(kept)
            while view:
                view = view[self._fill(view) :]
            self._content = kept
        self._md5sum = None
        return self._content

    def skip(self, most: int) -> int:
        """Read and forget up to `most` bytes; return how many there were.

        Raises:
            TruncatedError: The client closed before the end.
        """
        skipped = 0
        scratch = memoryview(bytearray(min(most, _READ_SIZE)))
        while skipped < most and (space := self._space(most - skipped)):
            skipped += self._fill(scratch[: min(space, len(scratch))])
        return skipped

    def md5sum(self) -> str:
        """Compute the MD5 of what was read and kept, in hex."""
        if self._md5sum is None:
            if not self.received or self._content:
                self._md5sum = hashlib.md5(self._content, usedforsecurity=False).hexdigest()
            else:
                self._md5sum = ""
        return self._md5sum

    @property
    def is_small(self) -> bool:
        """Tell whether Go would read the rest; of a chunked body nobody can tell."""
        return self.length is not None and self.length - self.received <= _MOST_DRAINED

    def drain(self) -> None:
        """Read what a service has left, unless it is large, as Go does to keep a connection."""
        if not self.is_awaited and (self.is_small or self.length is None):
            with contextlib.suppress(TruncatedError):
                self.skip(_MOST_DRAINED)

    def _space(self, wanted: int) -> int:
        # How many of the wanted bytes can be read in one go: those of the chunk.
        if self.finished:
            return 0
        if self.length is not None:
            return min(wanted, self.length - self.received)
        self._ask()
        while not self._chunk:
            if self._chunk == 0:
                self._connection.read_line()  # the line end behind a chunk
            try:
                size = int(self._connection.read_line().split(b";")[0], 16)
            except ValueError:
                self.finished = True  # no chunk: nothing after it can be read
                raise TruncatedError from None
            if size == 0:
                while self._connection.read_line():
                    pass  # trailers
                self.finished = True
                return 0
            self._chunk = size
        return min(wanted, self._chunk)

    def _fill(self, view: memoryview) -> int:
        self._ask()
        count = self._connection.read_into(view)
        if not count:
            self.finished = True  # there is nothing more to read
            raise TruncatedError
        self.received += count
        if self._chunk is not None:
            self._chunk -= count
        self.finished = self.received == self.length
        return count

    def _ask(self) -> None:
        if self.is_awaited and not self.no_continue:
            self._connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.continued = True


@dataclass(slots=True)
class Request:
    """What a client asks for.

    Attributes:
        target: As it came, percent signs and query included.
        headers: In their order; values without blanks around them.
        connection: Number of the connection.
        releases: Closed when the answer is sent: gives back what the request held.
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: RequestBody
    connection: int
    releases: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def path(self) -> str:
        """The decoded path."""
        return urllib.parse.unquote(self.target.partition("?")[0], "latin-1")

    @property
    def query(self) -> dict[str, list[str]]:
        """The decoded parameters."""
        return urllib.parse.parse_qs(self.target.partition("?")[2], keep_blank_values=True)

    def header(self, name: str) -> str:
        """Return the first header of that name, or an empty text."""
        wanted = name.lower()
        return next((text for key, text in self.headers if key.lower() == wanted), "")


def parse_request(lines: list[str], connection: Connection) -> Request:
    """Make a request of its head's lines.

    Raises:
        BadRequestError: They are none.
    """
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequestError(lines[0])
    headers = []
    for line in lines[1:]:
        name, colon, text = line.partition(":")
        if not colon:
            raise BadRequestError(line)
        headers.append((name, text.strip(" \t")))
    request = Request(
        words[0], words[1], headers, RequestBody(connection, 0, expects_continue=False), 0
    )
    request.connection = connection.number
    length: int | None = None
    if request.header("Transfer-Encoding").lower() != "chunked":
        announced = request.header("Content-Length") or "0"
        if not announced.isdecimal():
            raise BadRequestError(announced)
        length = int(announced)
    expects = request.header("Expect").lower() == "100-continue"
    request.body = RequestBody(connection, length, expects_continue=expects)
    return request
