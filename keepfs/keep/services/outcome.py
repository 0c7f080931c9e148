"""What an answer means: tables from statuses and errors to causes.

One service's outcome is an `Outcome`; what a whole call came to is the
`Cause` that its outcomes add up to.
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

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_log = logging.getLogger(__name__)

_NOT_FOUND = frozenset({404, 410})
#: A read that every service answered so is a NotFoundError for the SDK.
NOT_FOUND_FOR_SDK = frozenset({403, 404, 410})
# 400: we send well-formed locators only, so on a read it means the signature.
# 422: how keepproxy says 400 and 401.
_DENIED_READ = frozenset({400, 401, 403, 422})
_DENIED_WRITE = frozenset({401, 403})
# 499: keepstore's own deadline.
_TIMED_OUT = frozenset({408, 499, 504})
_INSUFFICIENT_STORAGE = 507
_BAD_GATEWAY = 502
_UNAVAILABLE = 503

# Precedence: where a call's services failed in different ways, the first cause of
# these that any of them had is the call's. Refusals come first: a user can act on
# them. Then what may pass: the block may be at a service that didn't answer, so it
# is neither missing nor damaged. Then what is final. SEMANTICS.md has the same table.
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
#: What requests, urllib3 and http.client raise where no complete answer came.
TRANSPORT_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)
_TIMEOUTS = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one request.

    Attributes:
        status: The HTTP status; 0 without a complete and proper answer.
        reason: The status line, or what happened instead.
        cause: Why it failed; None if it succeeded.
        headers: Of the answer; names in lower case.
        block: The verified block, of a GET.
        text: The locator, of a PUT.
        size: The block's bytes, of a HEAD that said it.
        is_permanent: Whether asking the same service again is of no use.
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
        """Make the error that says so; a new one each time."""
        return HttpError(self.status, self.reason)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What a service says it stored.

    Attributes:
        replicas: Copies written by this request.
        classes: Copies per storage class; None from a server that predates them.
    """

    replicas: int
    classes: Mapping[str, int] | None

    @classmethod
    def of_headers(cls, headers: Mapping[str, str]) -> Confirmation:
        """Read the headers of a 2xx answer to a PUT; names in lower case."""
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
            _log.warning("a service confirms storage classes as %r: not understood", text)
            return None
    return classes


def copies_of_failed(headers: Mapping[str, str]) -> int:
    """Return how many copies a keepproxy made before it gave up; 0 where it doesn't say."""
    try:
        return max(0, int(headers["x-keep-replicas-stored"]))
    except (KeyError, ValueError):
        return 0


def cause_of_read(status: int, *, is_corrupt: bool = False) -> Cause:
    """Judge the status of a GET or HEAD that didn't succeed.

    Args:
        status: Of the answer.
        is_corrupt: Whether a 502 was seen to speak of a damaged copy.
    """
    if status in _NOT_FOUND:
        return Cause.NOT_FOUND
    if status in _DENIED_READ:
        return Cause.DENIED
    if status in _TIMED_OUT:
        return Cause.TIMED_OUT
    return Cause.CORRUPT if status == _BAD_GATEWAY and is_corrupt else Cause.OTHER


def cause_of_write(status: int, headers: Mapping[str, str]) -> Cause:
    """Judge the status of a PUT that didn't succeed."""
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
    """Judge an error that stands for an answer."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Cause):
        return cause
    # urllib3 has "refused" among the time-outs; what is behind it tells.
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
    """Add up why no service gave the block."""
    found = set(causes)
    return next((cause for cause in READ_ORDER if cause in found), Cause.UNREACHABLE)


def cause_of_writes(causes: Iterable[Cause], copies: int) -> Cause:
    """Add up why the block isn't stored as wanted.

    Args:
        causes: Of the services that failed.
        copies: Those confirmed all the same.
    """
    found = set(causes)
    if copies and found != {Cause.FULL}:
        return Cause.TOO_FEW_COPIES
    return next((cause for cause in WRITE_ORDER if cause in found), Cause.TOO_FEW_COPIES)


def innermost(error: BaseException) -> BaseException:
    """Unwrap an error of requests or urllib3 down to what happened first."""
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


def verdict_is_permanent(status: int) -> bool:
    """Tell whether a status says not to ask again."""
    return Verdict.of(status) is Verdict.PERMANENT


def is_keepstores(headers: Mapping[str, str]) -> bool:
    """Tell whether an answer is a keepstore's own, and not that of a proxy before it."""
    return "x-keep-locator" in headers.get("access-control-expose-headers", "").lower() and (
        "via" not in headers
    )


def flaw_of_written(text: str, md5sum: str, size: int) -> str:
    """Say what is wrong with the locator that a service answers to a PUT; empty if nothing is."""
    try:
        locator = KeepLocator(text)
    except ValueError:
        return "but the answer is no locator"
    if locator.md5sum == md5sum and locator.size == size:
        return ""
    return "but the answer is the locator of another block"
