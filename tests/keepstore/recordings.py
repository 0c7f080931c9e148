"""The recorded exchanges, and how one is replayed over a plain socket."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.keepstore.server import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FILE = Path(__file__).parents[1] / "data" / "transcripts" / "exchanges.jsonl"

#: Seconds for which an answer that must not come is waited for.
SILENCE = 0.1

# Seconds; a test server that takes longer is broken.
_PATIENCE = 20.0

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded exchange.

    Attributes:
        kind: keepstore, keepproxy or stub.
        configuration: Of the server, in words.
        body: What the client sent; None for a request without body.
        sent: Bytes of the body after which the client half-closed, or None.
        status: None if there was no answer.
        headers: Of the answer.
        answer_body: As described: size, md5, text where it is short.
        interim: Statuses of interim answers.
        afterwards: What the server did with the connection: kept or closed,
            None if there was no answer.
    """

    name: str
    kind: str
    configuration: str
    method: str
    target: str
    request_headers: Headers
    body: bytes | None
    sent: int | None
    status: int | None
    reason: str
    headers: Headers
    answer_body: dict[str, Any]
    interim: list[int]
    silence: str
    afterwards: str | None

    def header(self, name: str) -> str | None:
        """Return a header of the recorded answer."""
        return dict(self.headers).get(name)

    @property
    def digest(self) -> str:
        """The digest in the target, as far as there is one."""
        return self.target.lstrip("/")[:32]

    @property
    def answer_text(self) -> str:
        """The recorded body as text; empty where it is none."""
        text = self.answer_body.get("text", "")
        return str(text)


@functools.cache
def recordings() -> dict[str, Recording]:
    """Load all recordings, by name."""
    first, *lines = map(json.loads, _FILE.read_text().splitlines())
    return {plain["name"]: _recording(plain, first["CORS"]) for plain in lines}


def _recording(plain: dict[str, Any], cors: dict[str, str]) -> Recording:
    request, answer = plain["request"], plain["response"] or {}
    headers: Headers = []
    for name, text in answer.get("headers") or []:
        if name == "CORS":
            # The five are written once in the file; only the methods differ.
            values = {**cors, "Access-Control-Allow-Methods": text}
            headers += sorted(values.items())
        else:
            headers.append((name, text))
    body = request.get("body")
    afterwards = plain.get("connection_afterwards", "kept open") if answer else None
    return Recording(
        name=plain["name"],
        kind=plain["server"]["kind"],
        configuration=plain["server"]["configuration"],
        method=request["method"],
        target=request["target"],
        request_headers=[(name, text) for name, text in request["headers"]],
        body=None if body is None else content_of(body),
        sent=2 if body and "sent" in body else None,
        status=answer.get("status"),
        reason=answer.get("reason") or "",
        headers=headers,
        answer_body=answer.get("body") or {},
        interim=[each["status"] for each in plain.get("interim") or []],
        silence=plain.get("connection") or "",
        afterwards=afterwards,
    )


def content_of(body: dict[str, Any]) -> bytes:
    """Make the bytes that a recording describes."""
    if "base64" in body:
        return base64.b64decode(body["base64"])
    if "text" in body:
        return str(body["text"]).encode()
    if "md5" not in body:
        # Of what the SDK sent only the sizes are written down; the digests in
        # the targets are of these.
        return {0: b"", 3: b"foo", 2_000_000: b"x" * 2_000_000}[body["size"]]
    return _zeros(body["size"])


@functools.cache
def _zeros(size: int) -> bytes:
    return bytes(size)


@functools.cache
def known_blocks() -> dict[str, bytes]:
    """Collect the blocks whose content the recordings show, by digest."""
    found = [b"", bytes(range(256)) * 1024, _zeros(1 << 26)]
    for recording in recordings().values():
        if recording.body and len(recording.body) < 1 << 20:
            found.append(recording.body)
        answer = recording.answer_body
        if "base64" in answer or "text" in answer:
            found.append(content_of(answer))
    return {hashlib.md5(each, usedforsecurity=False).hexdigest(): each for each in found}


@dataclass(slots=True)
class Outcome:
    """What came of a replayed request; the fields are as in `Recording`."""

    status: int | None = None
    reason: str = ""
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    interim: list[int] = field(default_factory=list)
    silence: str = ""
    afterwards: str | None = None

    def header(self, name: str) -> str | None:
        """Return a header of the answer."""
        return dict(self.headers).get(name)


class Replay:
    """One replay of a recorded request.

    Args:
        port: Of the server.
        replace: Texts in the request that differ in this run, old and new.
        meanwhile: Called when the request is sent and the answer isn't read.
    """

    def __init__(
        self,
        recording: Recording,
        port: int,
        replace: Sequence[tuple[str, str]] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        self._recording = recording
        self._port = port
        self._replace = replace
        self._meanwhile = meanwhile
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Send the request, read the answer, and see what becomes of the connection."""
        with socket.create_connection((HOST, self._port), timeout=_PATIENCE) as stream:
            self._send(stream)
            self._meanwhile()
            with stream.makefile("rb") as reader:
                self._read(stream, reader)
        return self._outcome

    def _send(self, stream: socket.socket) -> None:
        recording = self._recording
        lines = [f"{recording.method} {recording.target} HTTP/1.1"]
        lines += [f"{name}: {text}" for name, text in recording.request_headers]
        stream.sendall(self._replaced("\r\n".join([*lines, "", ""]).encode()))
        if "Expect" in dict(recording.request_headers):
            return  # the answer decides whether the body is sent
        self._send_body(stream)

    def _send_body(self, stream: socket.socket) -> None:
        body = self._recording.body
        if body is None:
            return
        if len(body) < 1 << 16:
            body = self._replaced(body)
        # A server that has answered and closed is no failure here: what it
        # answered shows.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if "Transfer-Encoding" in dict(self._recording.request_headers):
                for start in range(0, len(body), 1 << 20):
                    piece = body[start : start + (1 << 20)]
                    stream.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                stream.sendall(b"0\r\n\r\n")
            elif self._recording.sent is not None:
                stream.sendall(body[: self._recording.sent])
                stream.shutdown(socket.SHUT_WR)
            else:
                stream.sendall(body)

    def _replaced(self, text: bytes) -> bytes:
        for old, new in self._replace:
            text = text.replace(old.encode(), new.encode())
        return text

    def _read(self, stream: socket.socket, reader: Any) -> None:  # noqa: ANN401 - a buffered socket
        outcome, recording = self._outcome, self._recording
        if recording.status is None and recording.silence.startswith("no answer"):
            stream.settimeout(SILENCE)
        try:
            self._read_head(reader)
            while outcome.status == 100:
                outcome.interim.append(100)
                self._send_body(stream)
                self._read_head(reader)
        except TimeoutError:
            outcome.status, outcome.silence = None, "no answer"
            return
        except ConnectionResetError:
            outcome.status, outcome.silence = None, "reset"
            return
        if outcome.status is None:
            outcome.silence = "closed"
            return
        self._read_body(reader)
        outcome.afterwards = self._afterwards(stream, reader)

    def _read_head(self, reader: Any) -> None:  # noqa: ANN401 - ditto
        outcome = self._outcome
        outcome.status = None
        line = reader.readline().decode("latin-1").rstrip("\r\n")
        if not line:
            return
        _, status, outcome.reason = line.split(" ", 2)
        outcome.headers = []
        while line := reader.readline().decode("latin-1").rstrip("\r\n"):
            name, _, text = line.partition(": ")
            outcome.headers.append((name, text))
        outcome.status = int(status)

    def _read_body(self, reader: Any) -> None:  # noqa: ANN401 - ditto
        outcome = self._outcome
        length = outcome.header("Content-Length")
        if self._recording.method == "HEAD":
            return
        if length is not None:
            outcome.body = reader.read(int(length))
        elif outcome.header("Transfer-Encoding") == "chunked":
            while size := int(reader.readline(), 16):
                outcome.body += reader.read(size)
                reader.readline()
            reader.readline()

    def _afterwards(self, stream: socket.socket, reader: Any) -> str:  # noqa: ANN401 - ditto
        stays = self._recording.afterwards == "kept open"
        says_close = self._outcome.header("Connection") == "close"
        try:
            if stays and says_close:
                # Nothing more can be asked of it; it just doesn't close.
                stream.settimeout(SILENCE)
                return "closed by server" if reader.read(1) == b"" else "it talks"
            if stays:
                stream.sendall(b"OPTIONS / HTTP/1.1\r\nHost: x\r\n\r\n")
                return "kept open" if reader.readline() else "closed by server"
            return "closed by server" if reader.read(1) == b"" else "it talks"
        except TimeoutError:
            return "kept open"
        except (ConnectionResetError, BrokenPipeError):
            return "closed by server"
