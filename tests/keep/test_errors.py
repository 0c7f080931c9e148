"""The texts of errors, and that they keep no memory alive."""

from __future__ import annotations

import contextlib
import errno
import gc
import pickle
import threading
import weakref
from pathlib import Path
from typing import NoReturn

import pytest

from keepfs.keep import (
    ArgumentError,
    Cause,
    HttpError,
    KeepBlockCache,
    KeepCacheError,
    KeepLocator,
    KeepReadError,
    KeepRequestError,
    KeepWriteError,
    NoKeepServersError,
    NotFoundError,
)
from tests.fakes.threads import Running, wait_for, wait_until

A, B, C = "http://b.example:25107/", "http://a.example:25107/", "http://c.example:25107/"
UNAVAILABLE = HttpError(503, "HTTP/1.1 503 Service Unavailable")
FOO = KeepLocator("acbd18db4cc2f85cedef654fccc4a4d8+3")


class Block(bytearray):
    """A block that a weak reference can watch."""


def reset_while_holding(block: Block) -> Exception:
    """Return an error whose traceback holds a block, as that of a broken connection does."""

    def receive(into: Block) -> NoReturn:
        raise ConnectionResetError(errno.ECONNRESET, f"reset after {len(into)} bytes")

    with pytest.raises(ConnectionResetError) as caught:
        receive(block)
    return caught.value


def traceback_of(error: BaseException) -> object:
    """Return an error's traceback; mypy would believe that one just made has none for ever."""
    return error.__traceback__


# --- ancestry ---


@pytest.mark.parametrize(
    ("error", "ancestor"),
    [
        (NotFoundError, KeepReadError),
        (KeepReadError, KeepRequestError),
        (KeepWriteError, KeepRequestError),
        (KeepCacheError, KeepRequestError),
        (NoKeepServersError, KeepRequestError),
        (KeepRequestError, Exception),
        (ArgumentError, Exception),
        (HttpError, Exception),
    ],
)
def test_the_classes_descend_as_the_sdks_do(
    error: type[Exception], ancestor: type[Exception]
) -> None:
    assert ancestor in error.__mro__


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (NotFoundError(), Cause.NOT_FOUND),
        (NoKeepServersError(), Cause.UNREACHABLE),
        (KeepReadError(), Cause.OTHER),
        (KeepWriteError(), Cause.OTHER),
        (KeepReadError(cause=Cause.DENIED), Cause.DENIED),
        (NotFoundError(cause=Cause.TIMED_OUT), Cause.TIMED_OUT),
    ],
)
def test_an_error_has_its_classs_cause_unless_another_is_given(
    error: KeepRequestError, cause: Cause
) -> None:
    assert error.cause is cause


# --- texts ---


def test_an_http_error_prints_its_reason() -> None:
    error = HttpError(404, "HTTP/1.1 404 Not Found")

    assert str(error) == "HTTP/1.1 404 Not Found"
    assert error.status_code == 404
    assert error.reason == "HTTP/1.1 404 Not Found"


def test_an_error_prints_the_errors_of_the_services_in_order() -> None:
    error = KeepReadError(
        "[req-x] failed to read foo after 4 attempts",
        [(A, UNAVAILABLE), (B, HttpError(0, "(52, 'Empty reply from server')"))],
    )

    assert str(error) == (
        "[req-x] failed to read foo after 4 attempts:"
        f" service {A} responded with 503 HTTP/1.1 503 Service Unavailable;"
        f" service {B} responded with 0 (52, 'Empty reply from server')"
    )


def test_an_empty_label_leaves_two_blanks_as_the_sdk_does() -> None:
    error = NotFoundError("foo not found", {A: HttpError(404, "HTTP/1.1 404 Not Found")}, label="")

    assert str(error) == f"foo not found:  {A} responded with 404 HTTP/1.1 404 Not Found"


def test_an_error_other_than_an_http_error_is_printed_with_its_class() -> None:
    error = KeepWriteError("failed to write foo", {A: TimeoutError("too slow")}, label="proxy")

    assert str(error) == f"failed to write foo: proxy {A} raised TimeoutError (too slow)"


def test_an_error_without_services_prints_its_message_alone() -> None:
    assert str(KeepReadError("failed to read foo")) == "failed to read foo"


def test_the_message_is_separate_from_the_errors_of_the_services() -> None:
    error = KeepReadError("failed to read foo", {A: UNAVAILABLE})

    assert error.message == "failed to read foo"
    assert error.label == "service"


# --- request_errors ---


def test_request_errors_are_in_the_order_the_services_were_asked() -> None:
    said = [(A, UNAVAILABLE), (B, HttpError(404, "")), (C, HttpError(0, "reset"))]

    error = KeepReadError("failed", said)

    assert list(error.request_errors().items()) == said


def test_changing_the_request_errors_that_were_returned_changes_no_error() -> None:
    error = KeepReadError("failed", {A: UNAVAILABLE})

    error.request_errors().clear()

    assert error.request_errors() == {A: UNAVAILABLE}


def test_an_error_survives_pickling() -> None:
    error = KeepWriteError("failed", {A: UNAVAILABLE}, label="proxy", cause=Cause.FULL)

    twin = pickle.loads(pickle.dumps(error))  # noqa: S301 - just made

    assert isinstance(twin, KeepWriteError)
    assert str(twin) == str(error)
    assert twin.cause is Cause.FULL


# --- fresh ---


def raised(error: KeepRequestError) -> KeepRequestError:
    """Return the error as its catcher sees it: with a traceback, a cause and a context."""

    def fail() -> NoReturn:
        try:
            Path("/dev/null/x").read_bytes()
        except OSError as reason:
            raise error from reason
        raise AssertionError("/dev/null is no directory")

    with pytest.raises(KeepRequestError) as caught:
        fail()
    return caught.value


def test_a_fresh_error_has_the_same_text() -> None:
    error = raised(NotFoundError("foo", {A: UNAVAILABLE}, label="proxy", cause=Cause.DENIED))

    fresh = error.fresh()

    assert fresh is not error
    assert isinstance(fresh, NotFoundError)
    assert str(fresh) == str(error)
    assert fresh.cause is Cause.DENIED
    assert list(fresh.request_errors()) == [A]


def test_a_fresh_error_carries_no_traceback() -> None:
    error = raised(KeepReadError("foo"))

    fresh = error.fresh()

    assert traceback_of(error) is not None
    assert traceback_of(fresh) is None
    assert fresh.__cause__ is None
    assert fresh.__context__ is None


def test_a_fresh_errors_request_errors_carry_no_traceback_either() -> None:
    reason = raised(KeepReadError("reset"))
    error = KeepReadError("foo", {A: reason, B: UNAVAILABLE})

    fresh = error.fresh().request_errors()

    assert traceback_of(reason) is not None
    assert traceback_of(fresh[A]) is None
    assert fresh[A].__cause__ is None
    assert [type(it).__name__ for it in fresh.values()] == ["KeepReadError", "HttpError"]


def test_an_error_that_cannot_be_copied_is_replaced_by_its_text() -> None:
    class OddError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} {two}")

    error = KeepReadError("foo", {A: OddError(1, 2)})

    fresh = error.fresh()

    assert str(fresh) == f"foo: service {A} raised KeepReadError (OddError: 1 2)"
    assert traceback_of(fresh.request_errors()[A]) is None


def test_raising_a_fresh_error_lengthens_no_other_traceback() -> None:
    error = raised(KeepReadError("foo"))
    before = traceback_of(error)

    for _ in range(3):
        with pytest.raises(KeepReadError):
            raise error.fresh()

    assert traceback_of(error) is before


# --- leaks ---


def test_a_failure_raised_to_many_waiters_keeps_no_block_alive() -> None:
    cache = KeepBlockCache()
    gate = threading.Event()
    watched: list[weakref.ref[Block]] = []

    def fetch() -> bytes:
        block = Block(1 << 20)
        watched.append(weakref.ref(block))
        wait_for(gate)
        raise KeepReadError("failed to read foo", {A: reset_while_holding(block)})

    owner = Running(lambda: cache.get_or_fetch(FOO, fetch))
    wait_until(lambda: bool(watched))
    waiters = [Running(lambda: cache.get_or_fetch(FOO, fetch)) for _ in range(30)]
    wait_until(lambda: cache.statistics().joined == 30)
    gate.set()
    failures = [waiter.failure() for waiter in waiters]
    owner.failure()
    del owner
    gc.collect()

    assert len(watched) == 1
    assert watched[0]() is None
    assert all(isinstance(failure, KeepReadError) for failure in failures)


def test_a_failure_that_was_handled_leaves_nothing_to_the_garbage_collector() -> None:
    cache = KeepBlockCache()
    watched: list[weakref.ref[Block]] = []

    def fetch() -> bytes:
        block = Block(1 << 20)
        watched.append(weakref.ref(block))
        raise KeepReadError("failed to read foo")

    gc.disable()
    try:
        with contextlib.suppress(KeepReadError):
            cache.get_or_fetch(FOO, fetch)

        assert watched[0]() is None
    finally:
        gc.enable()
