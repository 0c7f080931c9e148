"""What a call that came to nothing is reported as: one error, its text, its cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.keep.errors import Cause, KeepReadError, KeepWriteError, NotFoundError
from keepfs.keep.outcome import NOT_FOUND_FOR_SDK, cause_of_reads, cause_of_writes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keepfs.keep.errors import NoKeepServersError
    from keepfs.keep.locator import KeepLocator
    from keepfs.keep.outcome import Outcome
    from keepfs.keep.store import Call
    from keepfs.keep.writer_queue import Tally


def read_error(
    locator: KeepLocator,
    call: Call,
    outcomes: Mapping[str, Outcome],
    attempts: int,
    trouble: NoKeepServersError | None,
) -> KeepReadError:
    """Say why a block wasn't read.

    Args:
        locator: The block's name.
        call: What was wanted.
        outcomes: What each service said last, by its root, in the order they were asked.
        attempts: Rounds.
        trouble: Why there was nobody to ask, if that was so.
    """
    if not outcomes:
        return KeepReadError(
            f"[{call.request_id}] failed to read {locator}: no Keep services available"
            f" ({trouble or 'the list is empty'})",
            cause=trouble.cause if trouble else Cause.UNREACHABLE,
        )
    cause = cause_of_reads(it.cause for it in outcomes.values() if it.cause is not None)
    errors = {root: outcome.error() for root, outcome in outcomes.items()}
    if all(outcome.status in NOT_FOUND_FOR_SDK for outcome in outcomes.values()):
        # A 403 among them: somebody refused to say, so it isn't known not to
        # be there. The SDK's class all the same, with the true cause.
        message = f"[{call.request_id}] {locator} not found"
        return NotFoundError(message, errors, label="", cause=cause)
    message = f"[{call.request_id}] failed to read {locator} after {_attempts(attempts)}"
    return KeepReadError(message, errors, cause=cause)


def write_error(
    locator: KeepLocator,
    call: Call,
    outcomes: Mapping[str, Outcome],
    attempts: int,
    tally: Tally,
    trouble: NoKeepServersError | None,
) -> KeepWriteError:
    """Say why a block isn't stored as wanted.

    Args:
        locator: The block's name.
        call: What was wanted.
        outcomes: What each service said last, by its root.
        attempts: Rounds.
        tally: What was confirmed all the same.
        trouble: Why there was nobody to ask, if that was so.
    """
    message = f"[{call.request_id}] failed to write {locator.md5sum}"
    if not outcomes:
        return KeepWriteError(
            f"{message}: no Keep services available ({trouble or 'none takes blocks'})",
            cause=trouble.cause if trouble else Cause.UNREACHABLE,
        )
    failed = {root: it for root, it in outcomes.items() if it.cause is not None}
    short = "".join(
        f"; storage class {name}: {tally.by_class[name]}" for name in tally.pending_classes()
    )
    return KeepWriteError(
        f"{message} after {_attempts(attempts)}"
        f" (wanted {tally.wanted} copies but wrote {tally.copies}{short})",
        {root: outcome.error() for root, outcome in failed.items()},
        cause=cause_of_writes(
            (it.cause for it in failed.values() if it.cause is not None), tally.copies
        ),
    )


def _attempts(count: int) -> str:
    return f"{count} attempt" if count == 1 else f"{count} attempts"
