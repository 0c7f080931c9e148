"""Loop figures: what the trio thread alone may read, copied by it for other threads.

The threads of the status and the metrics read no node, file or table of the trio thread: a
value may change between two reads of it. They ask the trio thread for a copy. While the event
loop is stuck they use the last copy, which is at most a second older than the loop's last turn.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import trio

from keepfs.fs.upload.storing import StoringFile
from keepfs.messages import of_commands
from keepfs.mount.figures import FailedFigures, RequestFigures, WaitingFigures

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.fs.operations import Operations
    from keepfs.fs.requests import OperationCounts, RequestInProgress, Requests
    from keepfs.fs.upload.failed import FailedFiles
    from keepfs.fs.upload.staging import Staging, StagingStatistics
    from keepfs.retention.kept import KeeperStatistics

_log = logging.getLogger(__name__)

#: Most failed files that are listed; the number of all is a separate figure.
_MOST_FAILED = 20
#: Seconds that the trio thread may take to copy. `keepfs status` waits for 1.5 s.
_PATIENCE = 0.5
#: Seconds between two counts of the lost files, a query of the catalog.
_COUNTED = 5.0


class LoopOwners(NamedTuple):
    """The parts of a mount whose state the trio thread alone may read.

    Attributes:
        requests: The requests of the kernel.
        operations: Returns the paths of requests.
        staging: The bytes that are not stored.
        failed: The files that could not be stored.
        retention: Returns the state of retention.
        is_draining: Returns whether the mount ends.
        count_lost: Returns the number of lost files.
    """

    requests: Requests
    operations: Operations
    staging: Staging
    failed: FailedFiles
    retention: Callable[[], KeeperStatistics]
    is_draining: Callable[[], bool]
    count_lost: Callable[[], int]


@dataclass(frozen=True, slots=True)
class LoopFigures:
    """One copy. It is immutable, so any thread may read it.

    Attributes:
        waiting: Requests in progress, by kind.
        operations: Answered requests, by kind.
        staging: The state of the staging area.
        unsaved: The number of files that could not be stored.
        failed: The first of these files.
        retention: The state of retention.
        updated: Seconds since the collections were brought up to date; None if never.
        lost: The number of lost files, as last counted.
        is_draining: Whether the mount ends.
    """

    waiting: dict[str, WaitingFigures]
    operations: dict[str, OperationCounts]
    staging: StagingStatistics
    unsaved: int
    failed: tuple[FailedFigures, ...]
    retention: KeeperStatistics
    updated: float | None
    lost: int
    is_draining: bool


class LoopCopies:
    """Makes copies in the trio thread; any thread may read the last one. Make it there, too.

    Args:
        owners: What is copied.
    """

    def __init__(self, owners: LoopOwners) -> None:
        self._owners = owners
        self._token = trio.lowlevel.current_trio_token()
        self._clock = trio.lowlevel.current_clock().current_time
        self._lost, self._counted = 0, float("-inf")
        # Replaced as a whole: reading the attribute is one operation.
        self._last = self._copied()

    def renew(self) -> None:
        """Replace the copy. In the trio thread; the watchdog calls it once a second."""
        self._last = self._copied()

    def latest(self, *, is_stuck: bool = False) -> LoopFigures:
        """Return a new copy; or the last one, if the loop does not run. For any other thread.

        Blocks for 0.5 s at most. With the last copy, the requests are those of this moment:
        the request that blocks the loop may be newer than the copy.

        Args:
            is_stuck: Whether the loop is known not to run; then this does not wait.
        """
        copied = threading.Event()

        def copy() -> None:
            try:
                self.renew()
            except Exception:  # noqa: BLE001 - it would end the loop
                said = of_commands.UNEXPECTED(what="reading the figures of the mount")
                _log.exception("%s", said)
            finally:
                copied.set()

        if not is_stuck:
            try:
                self._token.run_sync_soon(copy)
            except trio.RunFinishedError:
                return self._last
            if copied.wait(_PATIENCE):
                return self._last
        return dataclasses.replace(self._last, waiting=self._waiting())

    def _copied(self) -> LoopFigures:
        owners, now = self._owners, time.monotonic()
        if now >= self._counted + _COUNTED:
            self._lost, self._counted = owners.count_lost(), now
        failed = owners.failed.files()
        kept = owners.retention()
        updated = kept.updated_at
        return LoopFigures(
            waiting=self._waiting(),
            operations=owners.requests.operations(),
            staging=owners.staging.statistics(),
            unsaved=len(failed),
            failed=tuple(
                FailedFigures(file.mount_path, file.error)
                for file in failed[:_MOST_FAILED]
                if isinstance(file, StoringFile)
            ),
            retention=kept,
            updated=None if updated is None else max(0.0, self._clock() - updated),
            lost=self._lost,
            is_draining=owners.is_draining(),
        )

    def _waiting(self) -> dict[str, WaitingFigures]:
        """Return the requests in progress. For any thread, because its two sources are."""
        now = self._clock()
        found: dict[str, list[RequestInProgress]] = {}
        for each in self._owners.requests.in_progress():  # the oldest first
            found.setdefault(each.kind, []).append(each)
        return {
            kind: WaitingFigures(
                len(those),
                RequestFigures(
                    kind,
                    self._owners.operations.path_of(those[0]),
                    max(0.0, now - those[0].since),
                    those[0].pid,
                ),
            )
            for kind, those in sorted(found.items())
        }
