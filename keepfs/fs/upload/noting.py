"""FailureNotes: keeps the journal of unstored files up to date; writes it in threads.

For the trio thread only.
"""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING

import trio

from keepfs.fs.upload.file import UploadFile
from keepfs.fs.upload.recovery import about
from keepfs.messages import of_uploads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepfs.fs.bridge import AsyncBlocks
    from keepfs.fs.upload.failed import FailedFiles, Storable
    from keepfs.fs.upload.failed_journal import FailedJournal
    from keepfs.fs.upload.unsaved import About

_log = logging.getLogger(__name__)

#: Seconds between two writes, which combine many changes.
_INTERVAL = 0.05
#: Seconds before a retry after a failed write.
_AFTER_FAILURE = 5.0
#: Files described between two turns of the event loop, about 5 ms.
_AT_ONCE = 200


class FailureNotes:
    """Records in the journal which files are not stored.

    Args:
        journal: The journal; written in threads.
        failed: The unstored files.
    """

    def __init__(self, journal: FailedJournal, failed: FailedFiles) -> None:
        self._journal = journal
        self._failed = failed
        self._numbers: dict[Storable, int] = {}
        self._next = itertools.count(1)
        #: The files whose entries must be updated.
        self._stale: dict[Storable, None] = {}
        #: The updates that are not written yet.
        self._changes: dict[int, About | None] = {}
        self._wake = trio.Event()
        self._is_failing = False
        failed.on_change = self._changed

    def _changed(self, file: Storable) -> None:
        self._stale[file] = None
        self._wake.set()

    async def run(self, blocks: AsyncBlocks) -> None:
        """Write the journal as files fail, are renamed or are stored; runs until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await trio.sleep(_INTERVAL)
            await self._take_changes()
            changes, self._changes = self._changes, {}
            if not changes and not self._is_failing:
                continue
            try:
                await blocks.run(lambda: self._journal.update(changes))  # noqa: B023 - awaited here
            except Exception as error:  # noqa: BLE001 - of the disk, or no thread: retried
                self._changes = {**changes, **self._changes}
                if not self._is_failing:
                    _log.warning("%s", of_uploads.UNSAVED_NOT_NOTED(state="unsaved", reason=error))
                self._is_failing = True
                await trio.sleep(_AFTER_FAILURE)
                self._wake.set()
            else:
                self._is_failing = False

    def end(self, lost: Iterable[UploadFile]) -> None:
        """Keep only lost files in the journal: the rest is stored or spilled. Blocks briefly."""
        try:
            self._journal.end([about(file) for file in lost])
        except OSError as error:
            _log.warning("%s", of_uploads.UNSAVED_NOT_NOTED(state="lost", reason=error))

    async def _take_changes(self) -> None:
        while self._stale:
            for file in list(itertools.islice(self._stale, _AT_ONCE)):
                del self._stale[file]
                if file in self._failed and isinstance(file, UploadFile):
                    number = self._numbers.setdefault(file, next(self._next))
                    self._changes[number] = about(file)
                elif file in self._numbers:
                    self._changes[self._numbers.pop(file)] = None
            await trio.lowlevel.checkpoint()
