"""What can go wrong with a block, by what a caller can do about it.

The classes have the SDK's names and ancestry. `Cause` says why a request
failed; whoever must tell the user (an exit code, an errno) decides by it.

An exception belongs to whoever catches it. One that several must see is
copied for each (`fresh`): raising one instance again and again lengthens its
traceback, and a traceback keeps the frames, and so the blocks, alive.
"""

from __future__ import annotations

import copy
import enum
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Cause(enum.Enum):
    """Why a request failed."""

    NOT_FOUND = "no service has the block"
    DENIED = "the token or the locator's signature was refused"
    TIMED_OUT = "a service took too long"
    UNREACHABLE = "no service could be reached"
    CORRUPT = "every copy that was found is damaged"
    FULL = "the services have no room"
    READ_ONLY = "all services are read-only"
    TOO_FEW_COPIES = "fewer copies were stored than wanted"
    OTHER = "something else"


class ArgumentError(Exception):
    """An argument that can't be: the caller's mistake."""


class HttpError(Exception):
    """What a service answered instead of success.

    Args:
        status_code: The HTTP status; 0 when no complete answer came.
        reason: The status line's text, or what happened on the way.
    """

    def __init__(self, status_code: int, reason: str) -> None:
        super().__init__(status_code, reason)
        self.status_code = status_code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class KeepRequestError(Exception):
    """A request to Keep failed.

    Args:
        message: What failed, for people. It never contains a token.
        request_errors: What each service said, by its root URL, in the order
            they were asked.
        label: What a key of `request_errors` is called in the text.
        cause: Why; the class's own when not given.
    """

    #: Why requests of this class fail, unless the instance says otherwise.
    cause: Cause = Cause.OTHER

    def __init__(
        self,
        message: str = "",
        request_errors: Mapping[str, Exception] | Iterable[tuple[str, Exception]] = (),
        label: str = "service",
        cause: Cause | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.label = label
        self._request_errors = dict(request_errors)
        if cause is not None:
            self.cause = cause

    def __str__(self) -> str:
        said = "; ".join(
            f"{self.label} {root} {_said(error)}" for root, error in self._request_errors.items()
        )
        return f"{self.message}: {said}" if said else self.message

    def request_errors(self) -> dict[str, Exception]:
        """Return what each service said, by its root URL, in the order they were asked."""
        return dict(self._request_errors)

    def fresh(self) -> Self:
        """Return a copy without a traceback, for one more caller to raise.

        What the services said is copied likewise.
        """
        twin = copy.copy(self)
        twin._request_errors = {  # noqa: SLF001 - the copy is one of us
            root: fresh_copy(error) for root, error in self._request_errors.items()
        }
        return twin


class KeepReadError(KeepRequestError):
    """A block couldn't be read."""


class NotFoundError(KeepReadError):
    """No service has the block."""

    cause = Cause.NOT_FOUND


class KeepWriteError(KeepRequestError):
    """A block couldn't be stored with the wanted copies."""


class KeepCacheError(KeepRequestError):
    """The block cache failed."""


class NoKeepServersError(KeepRequestError):
    """There is no Keep service to ask."""

    cause = Cause.UNREACHABLE


def fresh_copy(error: Exception) -> Exception:
    """Copy any error without its traceback; one that can't be copied is told in words."""
    if isinstance(error, KeepRequestError):
        return error.fresh()
    try:
        twin = copy.copy(error)
    except Exception:  # noqa: BLE001 - a constructor may want anything, and raise anything
        return KeepReadError(f"{type(error).__name__}: {error}")
    return twin


def _said(error: Exception) -> str:
    if isinstance(error, HttpError):
        return f"responded with {error.status_code} {error.reason}"
    return f"raised {type(error).__name__} ({error})"
