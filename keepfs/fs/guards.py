"""Guards: wrap the handlers, so that each registers its requests and raises only `FUSEError`."""

from __future__ import annotations

import functools
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import trio

from keepfs.fs.requests import RequestInProgress, caller_in, described

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.fs.requests import Requests

_P = ParamSpec("_P")
_T = TypeVar("_T")


class HasRequests(Protocol):
    """An object with handlers that can be guarded."""

    requests: Requests

    def path_of(self, request: RequestInProgress) -> str:
        """Return the path of a request's file from the mount's root; empty if unknown."""


_Self = TypeVar("_Self", bound=HasRequests)


def guarded(
    handler: Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _T]], /
) -> Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _T]]:
    """Wrap a handler: register its requests, and convert its exceptions to `FUSEError`."""

    @functools.wraps(handler)
    async def guarding(self: _Self, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self.requests.answer(
            handler.__name__, handler(self, *args, **kwargs), caller_in(args), args, self.path_of
        )

    return cast("Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _T]]", guarding)


def guarded_call(
    handler: Callable[Concatenate[_Self, _P], _T | Coroutine[Any, Any, _T]], /
) -> Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _T]]:
    """Wrap a handler that is a plain function: it answers, or returns the coroutine that does.

    As `guarded`, but an answer without a wait is not registered: it can't be given up. While
    the handler runs, its request is `Requests.at_once`.
    """
    name = handler.__name__

    @functools.wraps(handler)
    async def guarding(self: _Self, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        began = trio.current_time()
        self.requests.at_once = name, args, began
        try:
            answer = handler(self, *args, **kwargs)
        except Exception as error:
            self.requests.answered(name, trio.current_time() - began)
            request = RequestInProgress(name, args, began, 0)
            raise self.requests.failed(
                name, error, lambda: described(name, self.path_of(request))
            ) from error
        finally:
            self.requests.at_once = None
        if isinstance(answer, Coroutine):
            return await self.requests.answer(name, answer, caller_in(args), args, self.path_of)
        self.requests.answered(name, trio.current_time() - began)
        return answer

    return cast("Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _T]]", guarding)
