"""Errors of the client, with the names and base classes of the SDK's.

If a program has imported `arvados.errors`, an error raised here is also an instance
of the SDK's class of that name, so `except arvados.errors.KeepReadError` catches it.
`Cause` is the reason of a failure; exit codes and errnos are derived from it.

An exception that several callers receive is copied for each (`fresh`): raising one
instance repeatedly lengthens its traceback, and a traceback keeps the frames, and
so the blocks, alive.
"""

from __future__ import annotations

import copy
import enum
import functools
import sys
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


_T = TypeVar("_T")


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


class _SdkError(Exception):
    """An error that is also one of the SDK's, if the SDK's errors are loaded.

    `except` checks real base classes only. So the class of an instance is made when it
    is created: code with an `except` for the SDK's class has loaded it by then.
    """

    #: The class as defined here; for a joined class, its base from this module.
    _plain: type[_SdkError]

    def __init_subclass__(cls) -> None:
        if "_plain" not in cls.__dict__:
            cls._plain = cls

    def __new__(cls, *arguments: object, **_: object) -> Self:
        """Make an instance of the class that both `except` clauses catch."""
        return super().__new__(_with_sdk_base(cls), *arguments)

    def __reduce__(self) -> tuple[object, ...]:
        _, *rest = cast("tuple[object, ...]", super().__reduce__())
        return (self._plain, *rest)


def _with_sdk_base(cls: type[_T]) -> type[_T]:
    """Return a subclass of this class and the SDK's of the same name, if that is loaded."""
    sdk = sys.modules.get("arvados.errors")
    theirs = getattr(sdk, cls.__name__, None)
    if cls.__module__ != __name__ or not isinstance(theirs, type) or issubclass(cls, theirs):
        return cls
    return cast("type[_T]", _join(cast("Any", cls), theirs))


@functools.lru_cache
def _join(cls: Any, theirs: Any) -> Any:  # noqa: ANN401 - classes
    names = {"__module__": cls.__module__, "__doc__": cls.__doc__, "_plain": cls}
    return type(cls.__name__, (cls, theirs), names)


class ArgumentError(_SdkError):
    """An invalid argument: the caller's mistake."""


class HttpError(_SdkError):
    """A service answered with an error, or did not answer.

    Args:
        status_code: The HTTP status; 0 without a complete answer.
        reason: The status line's text, or a description of the failure.
    """

    def __init__(self, status_code: int, reason: str) -> None:
        super().__init__(status_code, reason)
        self.status_code = status_code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class KeepRequestError(_SdkError):
    """A request to Keep failed.

    Args:
        message: What failed. It never contains a token.
        request_errors: The error of each service, by its root URL, in the order
            of the requests.
        label: The word for a key of `request_errors` in the text.
        cause: The reason; None: the default of the class.
    """

    #: The cause of an instance that sets none.
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
            f"{self.label} {root} {_description(error)}"
            for root, error in self._request_errors.items()
        )
        return f"{self.message}: {said}" if said else self.message

    def request_errors(self) -> dict[str, Exception]:
        """Return the error of each service, by its root URL, in the order of the requests."""
        return dict(self._request_errors)

    def fresh(self) -> Self:
        """Return a copy without a traceback, for another caller to raise.

        The errors of the services are copied likewise.
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
    """A block couldn't be stored with the requested copies."""


class KeepCacheError(KeepRequestError):
    """The block cache failed."""


class NoKeepServersError(KeepRequestError):
    """No Keep service is known."""

    cause = Cause.UNREACHABLE


def fresh_copy(error: Exception) -> Exception:
    """Copy an error without its traceback; if that fails, return a KeepReadError with its text."""
    if isinstance(error, KeepRequestError):
        return error.fresh()
    try:
        twin = copy.copy(error)
    except Exception:  # noqa: BLE001 - a constructor may need any arguments, and raise anything
        return KeepReadError(f"{type(error).__name__}: {error}")
    return twin


def _description(error: Exception) -> str:
    if isinstance(error, HttpError):
        return f"responded with {error.status_code} {error.reason}"
    return f"raised {type(error).__name__} ({error})"
