"""ApiRequests: sends requests to the API server with retries, and makes errors of refusals."""

from __future__ import annotations

import json
import time
import urllib.parse
from typing import TYPE_CHECKING, Any

from keepfs.collections.records import CollectionRecord
from keepfs.collections.remote_errors import (
    ApiUnreachableError,
    CollectionError,
    CollectionNotFoundError,
    ForbiddenError,
    InvalidRequestError,
    NameTakenError,
    TooLargeError,
    UnauthorizedError,
)
from keepfs.keep.errors import Cause
from keepfs.keep.retry import Backoff, RetryLoop, Verdict
from keepfs.keep.services.api import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.services.api import ApiClient

_NOT_UNIQUE = ("RecordNotUnique", "duplicate key value")
_ERRORS: dict[int, type[CollectionError]] = {
    400: InvalidRequestError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: CollectionNotFoundError,
    413: TooLargeError,
    422: InvalidRequestError,
}
_ADVICE = {
    401: "the token is unknown or has expired: get a new one",
    403: "the token's user may not do that, or a block's signature is not valid for the token",
    404: "there is none, it is in the trash, or the token's user may not read it",
    413: "it is larger than the server allows (API.MaxRequestSize)",
}


class ApiRequests:
    """Sends the requests of `RemoteCollections`; see its arguments. Any thread may use it."""

    def __init__(
        self,
        api: ApiClient,
        retries: int,
        backoff: Backoff | None,
        total: float | None,
        sleep: Callable[[float], None] | None,
    ) -> None:
        self._api = api
        self._retries = retries
        self._backoff = backoff or Backoff()
        self._total = total
        self._sleep = sleep

    def ask(self, method: str, path: str, what: str, body: bytes | None = None) -> dict[str, Any]:
        """Send a request that may be repeated, with retries. Blocks.

        Raises:
            CollectionError: The server refused it, or the retries failed.
        """
        started = time.monotonic()
        failure: ApiError | None = None
        for _ in self.rounds():
            try:
                return self.once(method, path, body, self.left(started))
            except ApiError as error:
                if not is_transient(error):
                    raise self.translated(error, what) from error
                failure = error
        raise self.given_up(failure, what)

    def once(
        self, method: str, path: str, body: bytes | bytearray | None, total: float | None
    ) -> dict[str, Any]:
        """Send a request without retries, within `total` seconds. Blocks.

        Raises:
            ApiError: The request failed.
        """
        return self._api.request(method, path, body=body, long_text="manifest_text", total=total)

    def rounds(self) -> RetryLoop:
        """Return the rounds of one call."""
        return RetryLoop(
            self._retries, backoff=self._backoff, total=self._total, sleep=self._sleep
        )

    def left(self, started: float) -> float | None:
        """Return the seconds left of a call that began at `started`; None: no limit."""
        if self._total is None:
            return None
        return max(0.001, self._total - (time.monotonic() - started))

    def record(self, answer: object) -> CollectionRecord:
        """Parse the description of a collection.

        Raises:
            ApiUnreachableError: It can't be parsed.
        """
        try:
            return CollectionRecord.of(answer)  # type: ignore[arg-type] # what it isn't, raises
        except (AttributeError, TypeError, ValueError) as error:
            raise ApiUnreachableError(
                f"{self._api.root} described a collection in a way that can't be read: {error}",
                cause=Cause.OTHER,
            ) from error

    def translated(
        self, error: ApiError, what: str, name: str | None = None, size: int = 0
    ) -> CollectionError:
        """Return the error for a refusal of the server.

        Args:
            error: The refusal.
            what: The refused action, for the message.
            name: The name that the request gives a collection, or None.
            size: Bytes of the request; 0: unknown.
        """
        reason = reason_of(error)
        if name and is_name_taken(error):
            text = f"cannot {what}: another collection of the owner is named {name!r}"
            return NameTakenError(text, uuid="", reason=reason)
        status = error.status_code
        message = f"cannot {what}: {reason}"
        if status in _ADVICE:
            message += f" ({_ADVICE[status]})"
        if status == 413 and size:  # noqa: PLR2004 - as in _ERRORS
            message += f"; the request has {size} bytes"
        kind = _ERRORS.get(status, CollectionError)
        return kind(message, status=status, reason=reason)

    def given_up(self, error: ApiError | None, what: str) -> ApiUnreachableError:
        """Return the error after the last retry; `error` is the last failure, or None."""
        if error is None:  # no round began, or each found nothing: the time was up
            return ApiUnreachableError(f"cannot {what}: the time is up", cause=Cause.TIMED_OUT)
        return ApiUnreachableError(
            f"cannot {what}: the API server failed: {reason_of(error)}",
            cause=error.cause,
            status=error.status_code,
            reason=reason_of(error),
        )


def is_transient(error: ApiError) -> bool:
    """Return whether a retry may succeed."""
    return Verdict.of(error.status_code) is Verdict.TRANSIENT


def is_name_taken(error: ApiError) -> bool:
    """Return whether the server refused a name because another collection has it."""
    said = " ".join(error.said)
    return error.status_code == 422 and any(each in said for each in _NOT_UNIQUE)  # noqa: PLR2004


def reason_of(error: ApiError) -> str:
    """Return the text of a failure, with the server's reasons."""
    said = "; ".join(error.said)
    return f"{error.reason}: {said}" if said else error.reason


def query(**parameters: object) -> str:
    """Return the query of a URL; values other than str are written as JSON."""
    given = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in parameters.items()
    }
    return f"?{urllib.parse.urlencode(given)}"


def quoted_path_part(name: str) -> str:
    """Quote one part of a path."""
    return urllib.parse.quote(name, safe="+")
