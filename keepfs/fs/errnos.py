"""The errno of every failure, in one table, and the error by which a node refuses a request.

`keepfs.fs.requests` converts every exception of a handler with `errno_of`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from keepfs.keep.errors import Cause, KeepRequestError
from keepfs.keep.threads import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Mapping


class RefusedError(Exception):
    """A node refuses a request because of the caller's mistake; not logged.

    Args:
        number: The errno for the caller.
    """

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.errno = number


#: The errno of each cause of a failed request; a test checks that none is missing.
ERRNO_BY_CAUSE: Mapping[Cause, int] = {
    Cause.NOT_FOUND: errno.ENOENT,
    Cause.DENIED: errno.EACCES,
    Cause.TIMED_OUT: errno.ETIMEDOUT,
    Cause.UNREACHABLE: errno.EHOSTUNREACH,
    Cause.CORRUPT: errno.EIO,
    Cause.FULL: errno.ENOSPC,
    Cause.READ_ONLY: errno.EROFS,
    Cause.TOO_FEW_COPIES: errno.EIO,
    Cause.OTHER: errno.EIO,
}


def errno_of(error: BaseException) -> int:
    """Return the errno that reports `error` to the caller."""
    match error:
        case RefusedError():
            return error.errno
        case KeepRequestError():
            return ERRNO_BY_CAUSE[error.cause]
        case MemoryError() | NoThreadError():
            return errno.ENOMEM
        case OSError(errno=int(number)) if number in errno.errorcode:  # 0 would mean success
            return number
        case _:
            return errno.EIO
