"""Every failure has an errno."""

from __future__ import annotations

import errno

import pytest

from keepfs.fs.errnos import ERRNO_BY_CAUSE, RefusedError, errno_of
from keepfs.keep import Cause, KeepReadError, KeepWriteError, NoKeepServersError, NotFoundError


def test_every_cause_has_a_row() -> None:
    assert set(ERRNO_BY_CAUSE) == set(Cause)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (NotFoundError("no service has it"), errno.ENOENT),
        (KeepReadError("expired", cause=Cause.DENIED), errno.EACCES),
        (KeepReadError("slow", cause=Cause.TIMED_OUT), errno.ETIMEDOUT),
        (NoKeepServersError("none"), errno.EHOSTUNREACH),
        (KeepReadError("all damaged", cause=Cause.CORRUPT), errno.EIO),
        (KeepReadError("for no reason"), errno.EIO),
        (KeepWriteError("full", cause=Cause.FULL), errno.ENOSPC),
        (KeepWriteError("one of two", cause=Cause.TOO_FEW_COPIES), errno.EIO),
        (RefusedError(errno.ENOTEMPTY), errno.ENOTEMPTY),
        (MemoryError(), errno.ENOMEM),
        (PermissionError(errno.EACCES, "no"), errno.EACCES),
        (TimeoutError(), errno.EIO),
        (OSError(0, "success, of all things"), errno.EIO),
        (OSError(4711, "no such errno"), errno.EIO),
        (OSError("without a number"), errno.EIO),
        (ZeroDivisionError(), errno.EIO),
        (ExceptionGroup("several", [KeyError()]), errno.EIO),
    ],
    ids=repr,
)
def test_each_failure_has_an_errno(error: Exception, number: int) -> None:
    assert errno_of(error) == number
