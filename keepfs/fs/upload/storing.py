"""StoringFile: a file whose changes are stored by a task of the mount.

A store has one owner. `store` starts that task or joins it, and only waits:
a waiter that is cancelled, killed or timed out changes nothing. The task
records the outcome: a new version, or a failed file that is queued for retry.

Invariant: a named file with unstored changes is open with changes that no attempt
has covered (`PassageState.UNTRIED`), or has a task in progress, or is queued for
retry. The `Passage` is independent of the file's name and handles: a removed file
that is open has a state, too.

For the trio thread only.
"""

from __future__ import annotations

import abc
import enum
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keepfs.fs.future import Future
from keepfs.fs.nodes import FileNode, Metadata
from keepfs.fs.upload.passage import Passage, PassageEvent, PassageState
from keepfs.keep.errors import KeepRequestError, KeepWriteError, fresh_copy
from keepfs.messages import of_commands, of_uploads

if TYPE_CHECKING:
    from keepfs.fs.bridge import AsyncBlocks
    from keepfs.fs.upload.failed import FailedFiles

_log = logging.getLogger(__name__)


class State(enum.Enum):
    """The values of `user.keep.state`."""

    STORED = "stored"
    DIRTY = "dirty"
    STORING = "storing"
    FAILED = "failed"
    LOST = "lost"


@dataclass(slots=True)
class _Attempt:
    """One run of the task that stores a file.

    Attributes:
        changes: The changes it covers; bytes of later ones may or may not be included.
        outcome: Finished when the outcome is recorded.
        waiters: Requests that wait for it.
    """

    changes: int
    outcome: Future[None] = field(default_factory=Future)
    waiters: int = 0


class StoringFile(FileNode):
    """A file's way into the store: its changes, attempts and failures.

    Args:
        metadata: Its mode, owner and times.
        blocks: Runs the task, in the nursery of the mount.
        failed: Retries the file after a failure.
    """

    __slots__ = ("_attempt", "_blocks", "_failed", "_failure", "_openings", "_passage")

    def __init__(self, metadata: Metadata, blocks: AsyncBlocks, failed: FailedFiles) -> None:
        super().__init__(metadata)
        self._blocks = blocks
        self._failed = failed
        self._openings = 0
        self._passage = Passage()
        #: The attempt in progress, if `_passage` is in such a state.
        self._attempt: _Attempt | None = None
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        passage = self._passage
        return (
            f"<{type(self).__name__} {self.path!r} {passage.state.name}, "
            f"{passage.stored} of {passage.changes} changes stored, {self._openings} openings>"
        )

    @property
    def changes(self) -> int:
        """The number of changes so far: it identifies the current content."""
        return self._passage.changes

    @property
    def state(self) -> State:
        """How far its changes are stored; never LOST, which a subclass may report."""
        if self._passage.is_stored:
            return State.STORED
        if self._passage.is_under_way or self._is_sending():
            return State.STORING
        return State.DIRTY if self.failure is None else State.FAILED

    @property
    def has_untried_changes(self) -> bool:
        """Whether it has a name and changes that no finished attempt has covered."""
        return self.links > 0 and self._passage.has_untried

    @property
    def is_being_changed(self) -> bool:
        """Whether it is open and was changed since the last attempt to store it."""
        return self._openings > 0 and self.has_untried_changes

    @property
    def has_unstored_changes(self) -> bool:
        """Whether it has a name and changes that are not stored."""
        return self.links > 0 and not self._passage.is_stored

    @property
    def is_storing(self) -> bool:
        """Whether a task is storing it."""
        return self._passage.is_under_way

    @property
    def failure(self) -> Exception | None:
        """The error of the last attempt to store it, or None."""
        return self._failure

    @property
    def error(self) -> str:
        """The text of `failure`; empty without one."""
        failure = self.failure
        if failure is None:
            return ""
        if isinstance(failure, (KeepRequestError, OSError)) and str(failure):
            return str(failure)
        return f"{type(failure).__name__}: {failure}"

    async def store(self) -> None:
        """Wait until everything written so far is stored with the requested copies.

        Does nothing without changes since the last store, or for a removed file, which
        has no name.

        Cancellation ends the wait only: the task continues and records the outcome.

        Raises:
            KeepWriteError: A block isn't stored; all bytes are kept and the
                file is queued for retry.
            Exception: Any other failure of the attempt, with the same result.
        """
        wanted = self._passage.changes
        while self._passage.stored < wanted and self.links:
            attempt = self.begin_store()
            attempt.waiters += 1
            try:
                await attempt.outcome.wait()
            except Exception:
                if attempt.changes >= wanted:
                    raise  # the cause of an older attempt's failure may be gone
            finally:
                attempt.waiters -= 1

    async def attempt_store(self) -> None:
        """Make one attempt to store it, or join the one in progress, and wait for its outcome.

        Unlike `store`, it starts no attempt for changes made meanwhile: the close of their
        writer stores them. Cancellation ends the wait only.

        Raises:
            Exception: The attempt failed; the file is queued for retry.
        """
        if not self.has_unstored_changes:
            return
        attempt = self._attempt or self.begin_store()
        attempt.waiters += 1
        try:
            await attempt.outcome.wait()
        finally:
            attempt.waiters -= 1

    def begin_store(self) -> _Attempt:
        """Start the task that stores the file, or return the one in progress. Doesn't wait.

        Changes that the current attempt may not cover are stored by another after it.
        """
        if self._attempt is None:
            attempt = _Attempt(self._passage.changes)
            self._passage.note(PassageEvent.BEGIN)
            try:
                self._blocks.start(self._run, attempt)
            except BaseException:
                self._passage.note(PassageEvent.ABANDON)
                raise
            self._attempt = attempt
        elif self._passage.state is PassageState.BEHIND:
            self._passage.note(PassageEvent.WANT)
        return self._attempt

    async def _run(self, attempt: _Attempt) -> None:
        """Store the file once and record the outcome."""
        failure: Exception | None = None
        try:
            await self._store_once(attempt.changes)
        except Exception as error:  # noqa: BLE001 - any failure is recorded
            failure = error
        except BaseException:
            # The mount ends, after the drain.
            self._attempt = None
            self._passage.note(PassageEvent.ABANDON)
            attempt.outcome.fail(KeepWriteError("the mount has ended"))
            raise
        is_outdated = self._passage.state is PassageState.OUTDATED
        self._attempt = None
        self._passage.note(PassageEvent.END)
        try:
            self._conclude(attempt, failure, is_outdated=is_outdated)
        finally:  # after any failure, such as lack of memory, the waiters must be woken
            if failure is None:
                attempt.outcome.finish(None)
            else:
                attempt.outcome.fail(failure)

    def _conclude(
        self, attempt: _Attempt, failure: Exception | None, *, is_outdated: bool
    ) -> None:
        """Queue the file for a retry, or start the next attempt, if necessary."""
        if failure is not None and self.links:
            self._failed.add(self)
        elif not self.has_unstored_changes:
            self._failed.discard(self)
        self._failure = None if failure is None else fresh_copy(failure)
        if failure is not None:
            self._report(attempt, failure)
        if self.has_untried_changes and (is_outdated or not self._openings):
            self.begin_store()  # changed meanwhile, and no close need follow
        self._attempt_ended()

    def _report(self, attempt: _Attempt, failure: Exception) -> None:
        """Log a failure that no waiter reports, or that is unexpected."""
        if not isinstance(failure, (KeepRequestError, OSError)):
            said = of_commands.UNEXPECTED(what=f"storing {self.path}")
            _log.error("%s", said, exc_info=failure)
        elif not attempt.waiters:
            _log.warning("%s", of_uploads.NOT_STORED(path=self.path, reason=failure))

    @property
    @abc.abstractmethod
    def path(self) -> str:
        """The path below upload/; empty if it has no name."""

    @abc.abstractmethod
    async def _store_once(self, changes: int) -> None:
        """Store the content and record the version, which has the bytes of `changes`.

        Notes `PassageEvent.RECORD`; doesn't if the file was removed or cut meanwhile.
        """

    @abc.abstractmethod
    def _is_sending(self) -> bool:
        """Return whether a block of it is being sent."""

    def _attempt_ended(self) -> None:
        """Handle the end of an attempt."""
