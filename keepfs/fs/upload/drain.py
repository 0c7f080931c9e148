"""Drain: at the end of a mount, store or spill the unstored files.

One deadline applies to all files. Files that failed before are spilled at once, files
that hang after a few seconds: spilling never queues behind stores. At the deadline the
client is closed, which ends hung requests, and the rest is spilled.

For the trio thread only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import trio

from keepfs.fs.upload.unsaved import GRACE
from keepfs.keep.errors import Cause, KeepRequestError
from keepfs.keep.threads import NoThreadError
from keepfs.messages import of_commands, of_stores, of_uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keepfs.fs.bridge import AsyncBlocks
    from keepfs.fs.upload.file import UploadFile
    from keepfs.fs.upload.recovery import Spills

_log = logging.getLogger(__name__)

#: Seconds of GRACE for closing the client, which only shuts sockets.
_CLOSING = 5.0
#: Seconds after which a store that has not ended counts as hung: its file is spilled
#: too, and another store may start. Guessed: most blocks are stored sooner on a slow link.
_PATIENCE = 5.0
#: Most files stored concurrently, not counting stores that hang.
_MAX_STORES = 8


class Files(Protocol):
    """The interface of upload/ for the drain."""

    def files(self) -> Iterable[UploadFile]:
        """Return all files in memory, all unstored ones included."""


class Drain:
    """Stores or spills the unstored files, before a deadline.

    Args:
        upload: The files.
        spills: Writes them to the disk.
        blocks: The store, whose remaining writes are abandoned at the end.
        close_client: Cancels the requests to the services. Blocks.
        timeout: Seconds for storing, from `begin` on.
        patience: Seconds after which a store that has not ended counts as hung.
    """

    def __init__(
        self,
        upload: Files,
        spills: Spills,
        blocks: AsyncBlocks,
        close_client: Callable[[], None],
        timeout: float,
        patience: float = _PATIENCE,
    ) -> None:
        self._upload = upload
        self._spills = spills
        self._blocks = blocks
        self._close_client = close_client
        #: Seconds for storing, from `begin` on.
        self.timeout = timeout
        self._patience = patience
        self._deadline: float | None = None
        self._hurried = trio.Event()
        self._storing = trio.Lock()
        self._tried: set[tuple[UploadFile, int]] = set()

    @property
    def has_begun(self) -> bool:
        """Whether the deadline is set."""
        return self._deadline is not None

    @property
    def deadline(self) -> float:
        """When storing ends, on trio's clock; the current time after `hurry` or before `begin`."""
        if self._hurried.is_set() or self._deadline is None:
            return trio.current_time()
        return self._deadline

    async def hurried(self) -> None:
        """Wait for `hurry`."""
        await self._hurried.wait()

    def begin(self) -> None:
        """Set the deadline, `timeout` seconds from now, unless it is set."""
        if self._deadline is None:
            self._deadline = trio.current_time() + self.timeout

    def hurry(self) -> None:
        """Stop storing: spill what is left."""
        self._hurried.set()

    async def store(self) -> None:
        """Store the unstored files until the deadline or `hurry`; spill those that fail or hang.

        Files that were tried before are retried only if they were changed since. A file
        that its writer has not closed does not replace its stored version.
        """
        self.begin()
        async with self._storing:  # a signal's drain may run when the mount ends
            await self._store()

    async def _store(self) -> None:
        waiting = [
            file
            for file in self._upload.files()
            if file.has_unstored_changes
            and (file, file.changes) not in self._tried
            and not file.is_half_written
        ]
        self._tried |= {(file, file.changes) for file in waiting}
        places = trio.Semaphore(_MAX_STORES)
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = self._deadline or 0.0

            async def end_when_hurried() -> None:
                await self._hurried.wait()
                nursery.cancel_scope.cancel()

            async def store_all() -> None:
                async with trio.open_nursery() as storing:
                    for file in waiting:
                        if file.failure is not None:
                            storing.start_soon(self._spills.spill, file)
                    for file in waiting:
                        await places.acquire()
                        storing.start_soon(self._store_one, file, places, nursery.cancel_scope)
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_when_hurried)
            nursery.start_soon(store_all)

    async def _store_one(
        self, file: UploadFile, places: trio.Semaphore, storing: trio.CancelScope
    ) -> None:
        ended = trio.Event()

        async def store() -> None:
            try:
                await file.attempt_store()
            except KeepRequestError as error:
                _log.error("%s", of_uploads.NOT_STORED(path=file.path, reason=error))
                if error.cause is Cause.UNREACHABLE:
                    storing.cancel()  # no service is reachable: the others would fail alike
            except Exception:  # noqa: BLE001 - a bug with one file is no reason to lose others
                _log.exception("%s", of_commands.UNEXPECTED(what=f"storing {file.path}"))
            finally:
                ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store)
            with trio.move_on_after(self._patience):
                await ended.wait()
            places.release()
            if not ended.is_set():
                # Spill a copy while the store continues, at most until the deadline.
                await self._spills.spill(file)

    async def _end_stores(self) -> None:
        """Cancel requests that hang: close the client."""
        if not any(file.is_storing for file in self._upload.files()):
            return
        with trio.move_on_after(_CLOSING):
            try:
                await self._blocks.run_alone(self._close_client)
            except NoThreadError as error:  # closing here could block: it waits for sockets
                _log.warning("%s", of_stores.CLIENT_NOT_CLOSED(reason=error))

    async def finish(self) -> tuple[int, list[UploadFile]]:
        """Spill the rest; call it when no file can be changed any more.

        Returns within `GRACE` seconds after the deadline, or after `hurry`.

        Returns:
            The number of files not stored, and the files that couldn't be spilled either.
        """
        now = trio.current_time()
        begin = now if self._hurried.is_set() else max(now, self._deadline or now)
        try:
            await self._end_stores()
            left = [file for file in self._upload.files() if file.has_unstored_changes]
            safe: set[UploadFile] = set()

            async def spill(file: UploadFile) -> None:
                if await self._spills.spill(file):
                    safe.add(file)

            with trio.move_on_at(begin + GRACE):
                async with trio.open_nursery() as nursery:
                    for file in left:
                        nursery.start_soon(spill, file)
                await self._spills.settle()
        finally:
            self._blocks.abandon_writes()
        lost = [file for file in left if file.has_unstored_changes and file not in safe]
        for file in lost:
            _log.error("%s", of_uploads.LOST_AT_END(path=file.path))
        return sum(file.has_unstored_changes for file in left), lost
