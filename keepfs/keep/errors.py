"""What can go wrong with a block, by what a caller can do about it.

The classes have the SDK's names and ancestry. Where a program has imported
`arvados.errors`, an error raised here is also one of the SDK's class of that
name, so `except arvados.errors.KeepReadError` catches it. `Cause` says why a request
failed; whoever must tell the user (an exit code, an errno) decides by it.

An exception belongs to whoever catches it. One that several must see is
copied for each (`fresh`): raising one instance again and again lengthens its
traceback, and a traceback keeps the frames, and so the blocks, alive.
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
    """An error that is one of the SDK's too, where the SDK's errors are loaded.

    `except` looks at real base classes only. So the class of an instance is made when
    it is raised: by then whoever has an `except` for the SDK's class has loaded it.
    """

    #: The class as it stands here; of a joined class, the one that was joined.
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
    """Return a class that is this one and the SDK's of the same name, if that is loaded."""
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
    """An argument that can't be: the caller's mistake."""


class HttpError(_SdkError):
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


class KeepRequestError(_SdkError):
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
            f"{self.label} {root} {_description(error)}"
            for root, error in self._request_errors.items()
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


def _description(error: Exception) -> str:
    if isinstance(error, HttpError):
        return f"responded with {error.status_code} {error.reason}"
    return f"raised {type(error).__name__} ({error})"
