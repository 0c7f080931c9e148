"""How an answer looks on the wire: which headers Go's server adds, and when it closes.

Pure functions; nothing is sent here.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.keepstore.clock import Clock
    from tests.keepstore.wire import Answer, Request

# Go's buffer: longer bodies of unannounced length are sent in chunks.
_MOST_UNCHUNKED = 2048


@dataclass(frozen=True, slots=True)
class Rendered:
    """An answer as it goes over the wire: the head, the body, and what comes after."""

    head: bytes
    body: memoryview
    closes: bool


def render(answer: Answer, request: Request, clock: Clock) -> Rendered:
    """Lay an answer out as Go does: own headers by name, then the others."""
    own = dict(answer.headers)
    given = {name.lower() for name in own}
    if answer.length is not None:
        own["Content-Length"] = str(answer.length)
    lines = [f"HTTP/1.1 {answer.status} {_reason(answer.status)}"]
    lines += [f"{name}: {own[name]}" for name in sorted(own)]
    lines.append(f"Date: {clock.http_date()}")
    body = memoryview(answer.body)
    is_head = request.method == "HEAD"
    chunked = False
    fits = answer.length is None or len(body) <= answer.length
    if answer.length is None and not (is_head and not body) and "content-length" not in given:
        chunked = len(body) > _MOST_UNCHUNKED
        if not chunked:
            lines.append(f"Content-Length: {len(body)}")
    if "content-type" not in given and body and fits:
        lines.append(f"Content-Type: {content_type(bytes(body[:512]))}")
    says_close = not request.body.finished or request.header("Connection").lower() == "close"
    if says_close and "connection" not in given:
        lines.append("Connection: close")
    if chunked:
        lines.append("Transfer-Encoding: chunked")
        size = f"{len(body):x}\r\n".encode()
        body = memoryview(b"".join([size, body, b"\r\n0\r\n\r\n"]))
    if is_head or not fits:
        body = body[:0]
    falls_short = answer.length is not None and len(body) < answer.length and not is_head
    closes = says_close or falls_short or answer.cut or own.get("Connection") == "close"
    return Rendered("\r\n".join([*lines, "", ""]).encode("latin-1"), body, closes)


def _reason(status: int) -> str:
    # Go's words for what Python calls otherwise.
    words = {413: "Request Entity Too Large", 422: "Unprocessable Entity"}
    try:
        return words.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return f"status code {status}"


# The beginnings that Go's http.DetectContentType knows, as far as blocks are
# likely to have them.
_BEGINNINGS = (
    (b"%PDF-", "application/pdf"),
    (b"%!PS-Adobe-", "application/postscript"),
    (b"\x89PNG\x0d\x0a\x1a\x0a", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b\x08", "application/x-gzip"),
    (b"\xfe\xff", "text/plain; charset=utf-16be"),
    (b"\xff\xfe", "text/plain; charset=utf-16le"),
    (b"<?xml", "text/xml; charset=utf-8"),
)
_BINARY = frozenset([*range(9), 0x0B, *range(0x0E, 0x1B), *range(0x1C, 0x20)])


def content_type(beginning: bytes) -> str:
    """Guess a body's type from its first 512 bytes, as Go does."""
    for text, kind in _BEGINNINGS:
        if beginning.startswith(text):
            return kind
    if beginning.lstrip(b" \t\r\n\x0c").upper().startswith((b"<!DOCTYPE HTML", b"<HTML")):
        return "text/html; charset=utf-8"
    if _BINARY.isdisjoint(beginning):
        return "text/plain; charset=utf-8"
    return "application/octet-stream"
