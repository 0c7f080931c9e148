"""Heads and bodies of answers as servers send them: proper, odd, and broken."""

from __future__ import annotations

import http.client
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfs.keep.wire import Head


def read(text: bytes, method: str = "GET") -> Head:
    """Read a head from bytes."""
    return Head.read(io.BufferedReader(io.BytesIO(text)), method, can_go_on=True)


def test_a_head_and_a_body_of_known_length() -> None:
    head = read(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A: 1\r\nx-a:  2 \r\n\r\nfoorest")

    assert (head.version, head.status, head.reason) == (11, 200, "OK")
    assert head.headers == {"content-length": "3", "x-a": "1, 2"}
    assert head.body.read(100) == b"foo"
    assert head.body.is_complete()
    assert head.body.can_go_on


def test_a_body_that_ends_too_early_is_short_and_not_complete() -> None:
    head = read(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfoo")

    assert head.body.read(100) == b"foo"
    assert not head.body.is_complete()


def test_a_body_without_length_goes_on_to_the_end() -> None:
    head = read(b"HTTP/1.1 200 OK\r\n\r\nfoo")

    assert head.body.read(100) == b"foo"
    assert not head.body.is_complete()


def test_a_length_of_more_digits_than_a_number_has_is_none() -> None:
    head = read(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nfoo")

    assert head.body.read(100) == b"foo"
    assert not head.body.is_complete()


@pytest.mark.parametrize("status", [b"9" * 5000, b"20", b"2000", b"099", b"2x0", b"", b"-20"])
def test_a_status_is_three_digits(status: bytes) -> None:
    with pytest.raises(http.client.BadStatusLine):
        read(b"HTTP/1.1 " + status + b" OK\r\n\r\n")


def test_interim_answers_are_skipped() -> None:
    head = read(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 204 \r\n\r\n")

    assert (head.status, head.headers) == (204, {})
    assert head.body.is_complete()


def test_the_answer_to_a_head_has_no_body() -> None:
    head = read(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "HEAD")

    assert head.body.read(10) == b""
    assert head.body.is_complete()


def test_chunks_are_joined() -> None:
    head = read(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b"2;x=y\r\nfo\r\n1\r\no\r\n0\r\nTrailer: t\r\n\r\nrest"
    )

    assert head.body.read(100) == b"foo"
    assert head.body.is_complete()


@pytest.mark.parametrize("rest", [b"", b"zz\r\n", b"5\r\nfo", b"2\r\nfo\r\n"])
def test_chunks_that_end_too_early_are_not_complete(rest: bytes) -> None:
    head = read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + rest)

    assert head.body.read(100) in {b"", b"fo"}
    assert not head.body.is_complete()


@pytest.mark.parametrize(
    ("head", "goes_on"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True),
    ],
)
def test_a_service_says_whether_it_keeps_the_connection(head: bytes, goes_on: bool) -> None:  # noqa: FBT001 - a row
    assert read(head + b"Content-Length: 0\r\n\r\n").body.can_go_on is goes_on


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
def test_what_is_no_answer_is_an_error_of_http(text: bytes) -> None:
    with pytest.raises(http.client.HTTPException):
        read(text)


@given(st.binary(max_size=300))
def test_whatever_comes_is_an_answer_or_an_error_of_http(text: bytes) -> None:
    try:
        head = read(b"HTTP/1.1 200 OK\r\n" + text)
        body = head.body.read(1000)
    except http.client.HTTPException:
        return
    assert len(body) <= len(text)
