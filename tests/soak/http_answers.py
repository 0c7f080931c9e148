"""Mutated HTTP answers, read by our parser and by h11: the verdicts must agree.

    scripts/fuzz-http N [SEED]

Each answer is read twice by ours, whole and in small pieces: heads that come
in one piece have a path of their own. A verdict is a refusal, or status,
reason, headers, body, and whether the connection can be used again. Where the
two may differ, `DIFFERENCES` says why.
"""

from __future__ import annotations

import http.client
import io
import random
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, cast

import h11

from keepfs.keep.http.phases import Phase, WireState
from keepfs.keep.http.wire import Head
from tests.soak.arguments import numbers_and_seed

if TYPE_CHECKING:
    from collections.abc import Callable

_METHODS = ("GET", "GET", "GET", "HEAD", "PUT")
#: Bytes of a body that are read, and differences that are shown.
_MOST_BODY, _MOST_SHOWN = 1_000_000, 5

_LENGTHS = ("content-length", "transfer-encoding")

#: What is mutated: answers of each kind that services and what is before them send.
SEEDS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: text/plain\r\n\r\nfoo",
    (
        b"HTTP/1.1 200 OK\r\nAccess-Control-Expose-Headers: X-Keep-Locator\r\n"
        b"X-Keep-Replicas-Stored: 1\r\nContent-Length: 12\r\nDate: now\r\n\r\n0123456789a\n"
    ),
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n",
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n\r\nbusy",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nfoo\r\n2;a=b\r\nba\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nT: 1\r\nU: 2\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nfoo",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 204 No Content\r\nX-A: 1\r\nX-A: 2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\nX: a\r\n  b\r\n\r\nab",
    b"HTTP/1.1 304\r\nContent-Length: 5\r\n\r\n",
)
#: What is put in, or in place of something else.
PIECES = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b"\x00",
        b"\x0b",
        b"\x0c",
        b"\x7f",
        b"\xff",
    ),
    *(
        b":",
        b";",
        b",",
        b"0",
        b"1",
        b"9",
        b"-1",
        b"+1",
        b"0x3",
        b"1_0",
        b"3, 3",
        b"3,4",
        b"a",
        b"G",
    ),
    *(b"\r\n ", b"\r\n\t", b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/2.0 ", b"HTTP/1.2 ", b"http/1.1 "),
    *(b"Content-Length: 3\r\n", b"Content-Length: 4\r\n", b"Content-Length:\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n"),
    *(b"Transfer-Encoding: identity\r\n", b"Connection: close\r\n", b"Connection: x, Close\r\n"),
    *(b"Connection: keep-alive\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 101 S\r\n\r\n"),
    *(b"0\r\n\r\n", b"3\r\nfoo\r\n", b"ffffffffffffffff", b"9" * 30, b"X: y\r\n" * 120),
    *(b"HTTP/1.1 102 P\r\n\r\n" * 25, b"x" * 5000, b"X: " + b"y" * 70_000 + b"\r\n"),
)


class Verdict(NamedTuple):
    """What a parser makes of an answer."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes
    keeps: bool


class _Pieces(io.RawIOBase):
    """Bytes that come so many at a time."""

    def __init__(self, text: bytes, step: int) -> None:
        self._text, self._step = io.BytesIO(text), step

    def readable(self) -> bool:
        return True

    def readinto(self, view: memoryview) -> int:  # type: ignore[override] # as it is called
        return self._text.readinto(view[: self._step])


def ours(text: bytes, method: str, step: int) -> Verdict | None:
    """Read an answer with our parser; None if it refuses it."""
    stream = cast("io.BufferedReader", io.BufferedReader(_Pieces(text, step)))
    state = WireState(Phase.SENT)
    try:
        head = Head.read(stream, method, state)
        body = head.body.read(_MOST_BODY)
    except http.client.HTTPException:
        return None
    keeps = state.phase is Phase.IDLE
    headers = dict(head.headers)
    if "transfer-encoding" in headers:
        headers["transfer-encoding"] = headers["transfer-encoding"].lower()
    return Verdict(head.status, head.reason, headers, body, keeps)


def theirs(text: bytes, method: str) -> Verdict | None:
    """Read an answer with h11; None if it refuses it."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    answer: h11.Response | None = None
    body = b""
    try:
        connection.receive_data(text)
        connection.receive_data(b"")
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                answer = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None
    if answer is None:
        return None
    headers: dict[str, str] = {}
    for raw_name, raw_value in answer.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    has_body = method != "HEAD" and answer.status_code not in {204, 304}
    if has_body and "transfer-encoding" in headers:
        headers.pop("content-length", None)  # it isn't the body's; ours leaves it out
    reason = answer.reason.decode("latin-1").strip(" \t")
    has_length = not has_body or not headers.keys().isdisjoint(_LENGTHS)
    keeps = connection.their_state is h11.DONE and has_length  # else the end was the connection's
    return Verdict(answer.status_code, reason, headers, body, keeps)


_VERSION = re.compile(rb"(?:\A|\n)HTTP/(?:[02-9]\.[0-9]|1\.[2-9]) ")
_LONG_CHUNK_LINE = re.compile(rb"\n[0-9A-Fa-f]{1,20}[; \t][^\n]{4000,}")


class Difference(NamedTuple):
    """Something in which our parser differs from h11.

    Attributes:
        why: The reason.
        explains: Tells whether it explains two verdicts about an answer.
    """

    why: str
    explains: Callable[[bytes, Verdict | None, Verdict | None], bool]


DIFFERENCES = {
    "version": Difference(
        "Only HTTP/1.x is read as such; h11 takes any two digits.",
        lambda text, our, their: our is None and their is not None and bool(_VERSION.search(text)),
    ),
    "kept 1.0": Difference(
        "HTTP/1.0 with Connection: keep-alive is used again; h11 never does that.",
        lambda text, our, their: (
            b"HTTP/1.0" in text and their is not None and our == their._replace(keeps=True)
        ),
    ),
    "bounds": Difference(
        "At most 100 headers, 64 KiB of them, 20 interim answers, 4 KiB for a chunk's size line."
        " h11 has one bound, on the bytes that are not understood yet.",
        lambda text, our, their: (
            our is None
            and their is not None
            and (
                text.count(b"\n") > 100
                or len(text) > 65536
                or text.count(b"HTTP/1.") > 20
                or bool(_LONG_CHUNK_LINE.search(text))
            )
        ),
    ),
}


def mutated(draw: random.Random) -> bytes:
    """Make an answer: one of the seeds, changed in up to four places."""
    text = bytearray(draw.choice(SEEDS))
    for _ in range(draw.choice((0, 1, 1, 1, 2, 2, 3, 4))):
        place = draw.randrange(len(text) + 1)
        match draw.randrange(8):
            case 0 | 1 | 2:
                text[place:place] = draw.choice(PIECES)
            case 3:
                text[place : place + draw.choice((1, 1, 2, 5))] = draw.choice(PIECES)
            case 4:
                del text[place : place + draw.choice((1, 1, 2, 8))]
            case 5:
                del text[place:]
            case 6:
                lines = text.splitlines(keepends=True)
                if lines:
                    line = draw.choice(lines)
                    text[place:place] = line
            case _:
                if place < len(text):
                    text[place] = draw.randrange(256)
    return bytes(text)


def compare(text: bytes, method: str, step: int) -> str:
    """Have an answer read by all.

    Returns:
        Empty if the verdicts agree, else the name of the difference that explains
        them; what they are, if none does.
    """
    whole, pieces, their = (
        ours(text, method, 1 << 20),
        ours(text, method, step),
        theirs(text, method),
    )
    if whole != pieces:
        return f"whole: {whole}, in pieces of {step}: {pieces}"
    if whole == their:
        return ""
    for name, difference in DIFFERENCES.items():
        if difference.explains(text, whole, their):
            return name
    return f"ours: {whole}, h11: {their}"


def fuzz(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Compare so many answers.

    Returns:
        How many there were of each kind (accepted, refused, and each listed
        difference), and the first differences that nothing explains.
    """
    draw = random.Random(seed)  # noqa: S311 - not a secret
    kinds: Counter[str] = Counter()
    unexplained: list[str] = []
    for _ in range(count):
        text, method, step = mutated(draw), draw.choice(_METHODS), draw.choice((1, 2, 7, 64))
        found = compare(text, method, step)
        if not found:
            kinds["accepted" if ours(text, method, 1 << 20) else "refused"] += 1
        elif found in DIFFERENCES:
            kinds[found] += 1
        else:
            kinds["UNEXPLAINED"] += 1
            if len(unexplained) < _MOST_SHOWN:
                unexplained.append(f"{method} {text!r}: {found}"[:2000])
    return kinds, unexplained


def main() -> None:
    """Run as a script."""
    count, seed = numbers_and_seed(100_000)
    kinds, unexplained = fuzz(count, seed)
    for kind, number in kinds.most_common():
        print(f"{number:9} {kind}")
    for text in unexplained:
        print(text)
    sys.exit(bool(unexplained))


if __name__ == "__main__":
    main()
