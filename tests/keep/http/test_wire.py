"""Heads and bodies of answers: valid, unusual, and broken ones."""

from __future__ import annotations

import http.client
import io
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfs.keep.http.phases import Phase, WireState
from keepfs.keep.http.wire import CutShortError, Head
from tests.soak.http_answers import fuzz


def read(text: bytes, method: str = "GET", state: WireState | None = None) -> Head:
    """Read a head from bytes, as the answer to a request that was sent whole."""
    stream = cast("io.BufferedReader", io.BufferedReader(io.BytesIO(text)))
    return Head.read(stream, method, WireState(Phase.SENT) if state is None else state)


@pytest.fixture
def state() -> WireState:
    """Make the state of a connection on which a request was sent whole."""
    return WireState(Phase.SENT)


def test_a_head_and_a_body_of_known_length(state: WireState) -> None:
    head = read(
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A: 1\r\nx-a:  2 \r\n\r\nfoorest", state=state
    )

    assert (head.version, head.status, head.reason) == (11, 200, "OK")
    assert head.headers == {"content-length": "3", "x-a": "1, 2"}
    assert head.body.read(100) == b"foo"
    assert state.phase is Phase.IDLE


def test_a_body_that_ends_too_early_is_an_error(state: WireState) -> None:
    head = read(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfoo", state=state)
    view = memoryview(bytearray(9))

    assert head.body.readinto(view) == 3
    with pytest.raises(CutShortError, match="ended 1 bytes too early"):
        head.body.readinto(view)
    assert state.phase is Phase.RECEIVING


def test_a_body_without_length_ends_with_the_connection(state: WireState) -> None:
    head = read(b"HTTP/1.1 200 OK\r\n\r\nfoo", state=state)

    assert head.body.read(100) == b"foo"
    assert state.phase is Phase.RECEIVING


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: " + b"9" * 5000,
        b"Content-Length: -3",
        b"Content-Length: 0x3",
        b"Content-Length: 3 3",
        b"Content-Length:",
        b"Content-Length: 3, 4",
        b"Content-Length: 3\r\nContent-Length: 4",
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"no colon",
        b"A : b",
        b": b",
        b" A: b",
        b"A: b\x00",
        b"A: b\rc",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_header_that_cannot_be_trusted_is_an_error(lines: bytes, method: str) -> None:
    with pytest.raises(http.client.HTTPException):
        read(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n\r\nfoo", method)


@pytest.mark.parametrize("twice", [b"3, 3", b"3\r\nContent-Length: 3", b"3\r\n\t,3"])
def test_a_repeated_equal_length_is_accepted(twice: bytes) -> None:
    head = read(b"HTTP/1.1 200 OK\r\nContent-Length: " + twice + b"\r\n\r\nfoobar")

    assert head.headers == {"content-length": "3"}
    assert head.body.read(100) == b"foo"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_a_head_that_is_cut_anywhere_is_an_error(method: str) -> None:
    text = b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 67108864\r\n\r\n"

    for end in range(1, len(text)):
        with pytest.raises(CutShortError):
            read(text[:end], method)


def test_a_folded_header_is_joined() -> None:
    assert read(b"HTTP/1.1 204 \r\nA: b\r\n  c\r\n\t d\r\n\r\n").headers == {"a": "b c d"}


def test_an_unrequested_change_of_protocol_is_an_error() -> None:
    with pytest.raises(http.client.HTTPException):
        read(b"HTTP/1.1 101 Switching\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def test_the_number_of_interim_answers_is_limited() -> None:
    with pytest.raises(http.client.HTTPException):
        read(b"HTTP/1.1 102 \r\n\r\n" * 1000 + b"HTTP/1.1 204 \r\n\r\n")


def test_an_answer_of_another_protocol_is_refused_by_its_first_line() -> None:
    with pytest.raises(http.client.BadStatusLine, match="SSH"):
        read(b"SSH-2.0-OpenSSH_9.2\r\n")
    with pytest.raises(http.client.BadStatusLine, match="SSH"):
        read(b"SSH-2.0")


@pytest.mark.parametrize("status", [b"9" * 5000, b"20", b"2000", b"099", b"2x0", b"", b"-20"])
def test_a_status_is_three_digits(status: bytes) -> None:
    with pytest.raises(http.client.BadStatusLine):
        read(b"HTTP/1.1 " + status + b" OK\r\n\r\n")


def test_interim_answers_are_skipped(state: WireState) -> None:
    head = read(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 204 \r\n\r\n", state=state)

    assert (head.status, head.headers) == (204, {})
    assert state.phase is Phase.IDLE


def test_the_answer_to_a_head_has_no_body(state: WireState) -> None:
    head = read(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "HEAD", state=state)

    assert head.body.read(10) == b""
    assert state.phase is Phase.IDLE


def test_chunks_are_joined(state: WireState) -> None:
    head = read(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b"2;x=y\r\nfo\r\n1\r\no\r\n0\r\nTrailer: t\r\n\r\nrest",
        state=state,
    )

    assert head.body.read(100) == b"foo"
    assert state.phase is Phase.IDLE


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("end", range(len(b"2;x\r\nfo\r\n0\r\nT: t\r\n\r\n")))
def test_chunks_and_trailers_that_end_too_early_are_an_error(end: int) -> None:
    with pytest.raises(CutShortError):
        read(CHUNKED + b"2;x\r\nfo\r\n0\r\nT: t\r\n\r\n"[:end]).body.read(100)


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n",
        b"-2\r\nfo\r\n",
        b"0x2\r\nfo\r\n",
        b"1_0\r\n0123456789abcdef\r\n",
        b" 2\r\nfo\r\n",
        b"2\nfo\n",
        b"2\r\nfoo\r\n",
        b"2;" + b"x" * 5000 + b"\r\nfo\r\n",
        b"f" * 21 + b"\r\n",
    ],
)
def test_an_invalid_chunk_is_an_error(chunks: bytes) -> None:
    with pytest.raises(http.client.HTTPException):
        read(CHUNKED + chunks + b"0\r\n\r\n").body.read(100)


def test_chunks_define_the_length_and_not_a_content_length() -> None:
    head = read(
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nfoo\r\n0\r\n\r\n"
    )

    assert "content-length" not in head.headers
    assert head.body.read(100) == b"foo"


@pytest.mark.parametrize(
    ("head", "goes_on"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: disclosed\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive, Close\r\n", False),
    ],
)
def test_the_head_defines_whether_the_connection_is_kept(
    head: bytes,
    goes_on: bool,  # noqa: FBT001 - a row
    state: WireState,
) -> None:
    read(head + b"Content-Length: 0\r\n\r\n", state=state)

    assert state.phase is (Phase.IDLE if goes_on else Phase.CLOSED)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 99 low\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200,
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
    ],
)
def test_an_invalid_answer_is_an_http_exception(text: bytes) -> None:
    with pytest.raises(http.client.HTTPException):
        read(text)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_an_http_exception(text: bytes) -> None:
    try:
        head = read(b"HTTP/1.1 200 OK\r\n" + text)
        body = head.body.read(1000)
    except http.client.HTTPException:
        return
    assert len(body) <= len(text)


def test_h11_accepts_and_refuses_the_same_answers() -> None:
    kinds, unexplained = fuzz(5_000, seed=12)

    assert unexplained == []
    assert min(kinds["accepted"], kinds["refused"]) > 500
