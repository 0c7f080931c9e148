"""Every failure as an errno, in one table.

A handler that lets anything but `FUSEError` out ends the whole mount; so all
failures pass through here, in the guard of `keepfs.fs.requests`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pyfuse3 import FUSEError

from keepfs.keep.errors import Cause, KeepRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Has a row for every cause; a test sees to it.
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
    """Choose the errno that tells a caller what `error` means for it."""
    match error:
        case FUSEError():
            return error.errno
        case KeepRequestError():
            return ERRNO_BY_CAUSE[error.cause]
        case MemoryError():
            return errno.ENOMEM
        case OSError(errno=int(number)) if number in errno.errorcode:  # 0 would say success
            return number
        case _:
            return errno.EIO
