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
        cause: The reason; None: the default of the class.
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
    """The collection or project doesn't exist, is in the trash, or may not be read."""

    cause = Cause.NOT_FOUND


class UnauthorizedError(CollectionError):
    """The token is unknown or has expired (401)."""

    cause = Cause.DENIED


class ForbiddenError(CollectionError):
    """The token may not do that, or a block's signature is missing or refused (403)."""

    cause = Cause.DENIED


class ChangedMeanwhileError(CollectionError):
    """The collection isn't as the caller expects: another client changed it.

    Args:
        message: What was changed, when and by which user.
        changed: The expected and the found value of each changed attribute.
        modified_at: When it was last changed, as the server writes it.
        modified_by: The uuid of the user that changed it last.
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
        message: What failed, with the name.
        uuid: The uuid of the other collection; empty if it can't be read.
        reason: The server's reason; empty if no request to create or change was sent.
    """

    def __init__(self, message: str, *, uuid: str, reason: str = "") -> None:
        super().__init__(message, status=422 if reason else 0, reason=reason)
        self.uuid = uuid


class InvalidRequestError(CollectionError):
    """The server, or a check before the request, refuses the arguments (400, 422)."""


class TooLargeError(CollectionError):
    """The request exceeds the server's limit, API.MaxRequestSize (413)."""


class ApiUnreachableError(CollectionError):
    """No usable answer came, also after retries; a later call may succeed.

    `cause` distinguishes a server that is unreachable, too slow, or failing.
    """

    cause = Cause.UNREACHABLE
