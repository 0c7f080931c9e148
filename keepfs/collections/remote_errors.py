"""The errors of requests to the API server about collections.

Each error has the `Cause` of `keepfs.keep.errors`, the HTTP status (0 without an
answer) and the server's own reason. No text contains a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.keep.errors import Cause, KeepRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping


class CollectionError(KeepRequestError):
    """A request to the API server about collections failed.

    Args:
        message: What failed, why, and what to do.
        cause: Why; the class's own when not given.
        status: The HTTP status; 0 without an answer.
        reason: The server's reason; empty if it gave none.
    """

    def __init__(
        self, message: str, *, cause: Cause | None = None, status: int = 0, reason: str = ""
    ) -> None:
        super().__init__(message, cause=cause)
        self.status = status
        self.reason = reason


class CollectionNotFoundError(CollectionError):
    """There is no such collection or project, or it is in the trash, or may not be read."""

    cause = Cause.NOT_FOUND


class UnauthorizedError(CollectionError):
    """The token is unknown or has expired (401)."""

    cause = Cause.DENIED


class ForbiddenError(CollectionError):
    """The token may not do that, or a block's signature is missing or refused (403)."""

    cause = Cause.DENIED


class ChangedMeanwhileError(CollectionError):
    """The collection isn't as the caller expects: somebody else changed it.

    Args:
        message: Says what was changed, when and by which user.
        changed: Attribute to (expected, found).
        modified_at: When it was changed last, as the server writes it.
        modified_by: Uuid of the user that did it.
    """

    def __init__(
        self,
        message: str,
        *,
        changed: Mapping[str, tuple[object, object]],
        modified_at: str,
        modified_by: str,
    ) -> None:
        super().__init__(message)
        self.changed = dict(changed)
        self.modified_at = modified_at
        self.modified_by = modified_by


class NameTakenError(CollectionError):
    """Another collection of the same owner has the name.

    Args:
        message: Names it.
        uuid: The other collection's; empty if it can't be read.
        reason: The server's reason; empty if it was not asked to create a collection.
    """

    def __init__(self, message: str, *, uuid: str, reason: str = "") -> None:
        super().__init__(message, status=422 if reason else 0, reason=reason)
        self.uuid = uuid


class InvalidRequestError(CollectionError):
    """The server, or the check before it, refuses what was given (400, 422)."""


class TooLargeError(CollectionError):
    """The request exceeds the server's limit, API.MaxRequestSize (413)."""


class ApiUnreachableError(CollectionError):
    """No answer of use came, and retries didn't help; it may be over soon.

    `cause` tells whether it was away, too slow, or failed by itself.
    """

    cause = Cause.UNREACHABLE
