"""Outcome: the result of one request, and tables from statuses and errors to causes.

The `Cause` of a call is derived from the outcomes of its requests.
"""

from __future__ import annotations

import http.client
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import requests
import urllib3

from keepfs.keep.errors import Cause, HttpError
from keepfs.keep.locator import KeepLocator
from keepfs.keep.retry import Verdict
from keepfs.messages import of_stores

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_log = logging.getLogger(__name__)

_NOT_FOUND = frozenset({404, 410})
#: If every service answers a read with one of these, the SDK raises NotFoundError.
NOT_FOUND_FOR_SDK = frozenset({403, 404, 410})
# 400: keepfs sends well-formed locators only, so on a read it means the signature.
# 422: keepproxy sends it for a keepstore's 400 and 401.
_DENIED_READ = frozenset({400, 401, 403, 422})
_DENIED_WRITE = frozenset({401, 403})
# 499: keepstore's own deadline.
_TIMED_OUT = frozenset({408, 499, 504})
_INSUFFICIENT_STORAGE = 507
_BAD_GATEWAY = 502
_UNAVAILABLE = 503

# Precedence: if the services of a call failed for different causes, the first of
# these that occurred is the call's cause. Refusals come first: a user can act on
# them. Then temporary causes: a service that didn't answer may have the block, so
# it is neither missing nor damaged. Then final causes. SEMANTICS.md has the same table.
READ_ORDER = (
    Cause.DENIED,
    Cause.TIMED_OUT,
    Cause.UNREACHABLE,
    Cause.CORRUPT,
    Cause.OTHER,
    Cause.NOT_FOUND,
)
# The same for writes that stored nothing; with some copies stored it is TOO_FEW_COPIES,
# unless all other services are full.
WRITE_ORDER = (
    Cause.DENIED,
    Cause.TIMED_OUT,
    Cause.UNREACHABLE,
    Cause.FULL,
    Cause.TOO_FEW_COPIES,
    Cause.OTHER,
)
#: The exceptions of requests, urllib3 and http.client raised instead of a complete answer.
TRANSPORT_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)
_TIMEOUTS = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one request.

    Attributes:
        status: The HTTP status; 0 without a complete and valid answer.
        reason: The status line, or a description of the failure.
        cause: The cause of a failure; None if it succeeded.
        headers: The answer's headers; names in lower case.
        block: For a GET: the verified block.
        text: For a PUT: the locator.
        size: For a HEAD: the block's size in bytes, if the answer has it.
        is_permanent: Whether a retry at this service is useless.
        is_cut: Whether the connection ended in the middle of a block.
    """

    status: int
    reason: str
    cause: Cause | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    block: bytes | memoryview | None = None
    text: str = ""
    size: int | None = None
    is_permanent: bool = False
    is_cut: bool = False

    def error(self) -> HttpError:
        """Return a new error for this outcome."""
        return HttpError(self.status, self.reason)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The copies that a service confirms.

    Attributes:
        replicas: Copies written by this request.
        classes: Copies per storage class; None from a server that predates them.
    """

    replicas: int
    classes: Mapping[str, int] | None

    @classmethod
    def of_headers(cls, headers: Mapping[str, str]) -> Confirmation:
        """Parse the headers of a 2xx answer to a PUT; names in lower case.

        Without a valid count of replicas, one copy counts.
        """
        try:
            replicas = int(headers["x-keep-replicas-stored"])
        except (KeyError, ValueError):
            replicas = 1
        confirmed = headers.get("x-keep-storage-classes-confirmed")
        return cls(max(0, replicas), None if confirmed is None else _classes(confirmed))


def _classes(text: str) -> Mapping[str, int] | None:
    classes: Counter[str] = Counter()
    for part in text.split(","):
        name, equals, count = part.partition("=")
        if not equals:
            continue
        try:
            classes[name.strip()] += int(count)
        except ValueError:
            _log.warning("%s", of_stores.CLASSES_UNREADABLE(text=repr(text)))
            return None
    return classes


def copies_of_failed(headers: Mapping[str, str]) -> int:
    """Return the copies that a failed PUT to a keepproxy made; 0 if it reports none."""
    try:
        return max(0, int(headers["x-keep-replicas-stored"]))
    except (KeyError, ValueError):
        return 0


def cause_of_read(status: int, *, is_corrupt: bool = False) -> Cause:
    """Return the cause for the status of a failed GET or HEAD.

    Args:
        status: The HTTP status.
        is_corrupt: Whether the body of a 502 reports a damaged copy.
    """
    if status in _NOT_FOUND:
        return Cause.NOT_FOUND
    if status in _DENIED_READ:
        return Cause.DENIED
    if status in _TIMED_OUT:
        return Cause.TIMED_OUT
    return Cause.CORRUPT if status == _BAD_GATEWAY and is_corrupt else Cause.OTHER


def cause_of_write(status: int, headers: Mapping[str, str]) -> Cause:
    """Return the cause for the status of a failed PUT."""
    if status in _DENIED_WRITE:
        return Cause.DENIED
    if status in _TIMED_OUT:
        return Cause.TIMED_OUT
    if status == _INSUFFICIENT_STORAGE:
        return Cause.FULL
    if status == _UNAVAILABLE and "x-keep-replicas-stored" in headers:
        return Cause.TOO_FEW_COPIES  # keepproxy, which stored some, or none
    return Cause.OTHER


def cause_of_error(error: BaseException) -> Cause:
    """Return the cause for an exception that was raised instead of an answer."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Cause):
        return cause
    # In urllib3 "connection refused" is a subclass of a timeout: check the inner error.
    is_refused = isinstance(error, urllib3.exceptions.NewConnectionError)
    if not is_refused and isinstance(error, _TIMEOUTS):
        return Cause.TIMED_OUT
    status = getattr(error, "status_code", None) or getattr(error, "status", None)
    if isinstance(status, int) and status > 0:
        return Cause.DENIED if status in _DENIED_WRITE else cause_of_write(status, {})
    inner = innermost(error)
    if isinstance(inner, TimeoutError):
        return Cause.TIMED_OUT
    return Cause.UNREACHABLE if isinstance(error, TRANSPORT_ERRORS) else Cause.OTHER


def cause_of_reads(causes: Iterable[Cause]) -> Cause:
    """Return the cause of a failed read from those of its services."""
    found = set(causes)
    return next((cause for cause in READ_ORDER if cause in found), Cause.UNREACHABLE)


def cause_of_writes(causes: Iterable[Cause], copies: int) -> Cause:
    """Return the cause of a failed write.

    Args:
        causes: The causes of the services that failed.
        copies: The copies that were confirmed.
    """
    found = set(causes)
    if copies and found != {Cause.FULL}:
        return Cause.TOO_FEW_COPIES
    return next((cause for cause in WRITE_ORDER if cause in found), Cause.TOO_FEW_COPIES)


def innermost(error: BaseException) -> BaseException:
    """Return the innermost cause of an error of requests or urllib3."""
    for _ in range(8):  # they nest four deep
        nested = getattr(error, "reason", None)
        if not isinstance(nested, BaseException):
            nested = next((a for a in reversed(error.args) if isinstance(a, BaseException)), None)
        if nested is None:
            nested = error.__cause__
        if nested is None:
            return error
        error = nested
    return error


def release_frames(error: BaseException) -> None:
    """Drop the tracebacks of an exception that was handled, and of those nested in it.

    The frames of urllib3 refer to the exceptions. Such a cycle keeps the block of the request
    in memory until the next garbage collection.
    """
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            nested = (each.__context__, each.__cause__, getattr(each, "reason", None), *each.args)
            waiting += [it for it in nested if isinstance(it, BaseException)]


def verdict_is_permanent(status: int) -> bool:
    """Return whether a status makes a retry useless."""
    return Verdict.of(status) is Verdict.PERMANENT


def is_keepstores(headers: Mapping[str, str]) -> bool:
    """Return whether an answer comes from a keepstore, and not from a proxy in front of it."""
    return "x-keep-locator" in headers.get("access-control-expose-headers", "").lower() and (
        "via" not in headers
    )


def flaw_of_written(text: str, md5sum: str, size: int) -> str:
    """Return the flaw of the locator in the answer to a PUT, as text; empty if it is correct."""
    try:
        locator = KeepLocator(text)
    except ValueError:
        return "but the answer isn't a locator"
    if locator.md5sum == md5sum and locator.size == size:
        return ""
    return "but the answer is the locator of another block"
