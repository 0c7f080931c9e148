"""Failures: the error of a failed call, with its text and cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.keep.errors import Cause, KeepReadError, KeepWriteError, NotFoundError
from keepfs.keep.services.outcome import (
    NOT_FOUND_FOR_SDK,
    cause_of_reads,
    cause_of_writes,
    copies_of_failed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keepfs.keep.errors import NoKeepServersError
    from keepfs.keep.locator import KeepLocator
    from keepfs.keep.services.discovery import Services
    from keepfs.keep.services.outcome import Outcome
    from keepfs.keep.services.writer_queue import Tally
    from keepfs.keep.store import CallOptions


def read_error(
    locator: KeepLocator,
    call: CallOptions,
    outcomes: Mapping[str, Outcome],
    attempts: int,
    trouble: NoKeepServersError | None,
    skipped: Sequence[str] = (),
) -> KeepReadError:
    """Return the error of a failed read.

    Args:
        locator: The block's locator.
        call: The options of the call.
        outcomes: The last outcome of each service, by its root, in the order of requests.
        attempts: The number of rounds.
        trouble: The error if no list of services was available, or None.
        skipped: Messages about hints that weren't followed.
    """
    why = "".join(f"; hint not followed: {each}" for each in skipped)
    if not outcomes:
        return KeepReadError(
            f"[{call.request_id}] failed to read {locator.stripped()}: no Keep services available"
            f" ({trouble or 'the list is empty'}){why}",
            cause=trouble.cause if trouble else Cause.UNREACHABLE,
        )
    cause = cause_of_reads(it.cause for it in outcomes.values() if it.cause is not None)
    errors = {root: outcome.error() for root, outcome in outcomes.items()}
    message = (
        f"[{call.request_id}] failed to read {locator.stripped()} after {_attempts(attempts)}"
    )
    if cause is Cause.NOT_FOUND:
        message = f"[{call.request_id}] {locator.stripped()} not found"
    elif cause is Cause.DENIED:
        why = f" ({_of_signature(locator)}){why}"
    if all(outcome.status in NOT_FOUND_FOR_SDK for outcome in outcomes.values()):
        # With a 403 among them the block may exist. Nevertheless raise the SDK's class, with
        # the true cause and text.
        return NotFoundError(f"{message}{why}", errors, label="", cause=cause)
    return KeepReadError(f"{message}{why}", errors, cause=cause)


def _of_signature(locator: KeepLocator) -> str:
    """Return the likely reason of a refused read, as text."""
    if locator.perm_sig is None:
        return "the locator has no signature (+A...): this cluster wants one; or the token is bad"
    if locator.permission_expired():
        return "the locator's signature has expired: take a new one from its collection"
    return "the token, or the locator's signature, which is for one token, is refused"


def write_error(
    locator: KeepLocator,
    call: CallOptions,
    outcomes: Mapping[str, Outcome],
    attempts: int,
    tally: Tally,
    trouble: NoKeepServersError | None,
    services: Services | None = None,
) -> KeepWriteError:
    """Return the error of a failed write.

    Args:
        locator: The block's locator.
        call: The options of the call.
        outcomes: The last outcome of each service, by its root.
        attempts: The number of rounds.
        tally: The copies that were confirmed.
        trouble: The error if no list of services was available, or None.
        services: The last list of services, or None.
    """
    message = f"[{call.request_id}] failed to write {locator.md5sum}"
    if not outcomes:
        if trouble is None and services is not None and services.records:
            return KeepWriteError(
                f"{message}: all Keep services ({len(services.records)}) are read-only",
                cause=Cause.READ_ONLY,
            )
        return KeepWriteError(
            f"{message}: no Keep services available ({trouble or 'the list is empty'})",
            cause=trouble.cause if trouble else Cause.UNREACHABLE,
        )
    failed = {root: it for root, it in outcomes.items() if it.cause is not None}
    short = "".join(
        f"; storage class {name}: {tally.by_class[name]}" for name in tally.pending_classes()
    )
    # A proxy that made too few copies reports their number, but no locator.
    made = tally.copies + sum(
        copies_of_failed(it.headers) for it in failed.values() if it.cause is Cause.TOO_FEW_COPIES
    )
    return KeepWriteError(
        f"{message} after {_attempts(attempts)}"
        f" (wanted {tally.wanted} copies but wrote {made}{short})",
        {root: outcome.error() for root, outcome in failed.items()},
        cause=cause_of_writes((it.cause for it in failed.values() if it.cause is not None), made),
    )


def _attempts(count: int) -> str:
    return f"{count} attempt" if count == 1 else f"{count} attempts"
