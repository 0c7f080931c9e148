"""Spills: files that could not be stored, written to the disk and restored by the next mount.

For the trio thread only; disk work runs in worker threads.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

import trio

from keepfs.fs.errnos import RefusedError
from keepfs.fs.future import Future
from keepfs.fs.nodes import Metadata, Node, directory_mode
from keepfs.fs.upload import unsaved
from keepfs.fs.upload.directory import UploadDirectory
from keepfs.fs.upload.file import UploadFile
from keepfs.fs.upload.place import Spilled
from keepfs.fs.upload.stored import StoredBytes, StoredRange
from keepfs.fs.upload.unsaved import About, UnsavedError
from keepfs.fs.upload.version import identity_of, unsigned
from keepfs.keep.hashing.growing import DigestInCaller
from keepfs.keep.locator import KeepLocator
from keepfs.keep.store import Receipt
from keepfs.messages import of_uploads

if TYPE_CHECKING:
    from pathlib import Path

    from keepfs.fs.bridge import AsyncBlocks
    from keepfs.fs.upload.catalog import Catalog
    from keepfs.fs.upload.staging import Staging
    from keepfs.fs.upload.unsaved import Piece, UnsavedFile

_log = logging.getLogger(__name__)


def about(file: UploadFile) -> About:
    """Describe a file that isn't stored."""
    metadata = file.metadata
    return About(
        path=file.path,
        size=file.size,
        mode=metadata.mode,
        uid=metadata.uid,
        gid=metadata.gid,
        atime_ns=metadata.atime_ns,
        mtime_ns=metadata.mtime_ns,
        version=file.version,
        error=file.error,
    )


class Spills:
    """The spill records of one mount.

    A record is obsolete once its file is stored or removed. The catalog marks it in
    the same transaction, so that no old content is restored after a crash.

    Args:
        blocks: Runs disk work in threads.
        state_dir: The directory of the records.
        catalog: Records which of them are obsolete.
    """

    def __init__(self, blocks: AsyncBlocks, state_dir: Path, catalog: Catalog) -> None:
        self._blocks = blocks
        self._state_dir = state_dir
        self._catalog = catalog
        self._under_way: dict[UploadFile, Future[bool]] = {}
        #: The number of records being deleted; the event is set, and replaced, after each.
        self._removing = 0
        self._removed = trio.Event()

    async def spill(self, file: UploadFile) -> bool:
        """Write a file's unstored content to the disk, unless a record has it already.

        The record of a file that its writer has not closed is marked as partial: it must
        not replace the stored version. Cancellation ends the wait only: a task of the
        mount writes the record.

        Returns:
            Whether the content is in a record, or is stored; if not, the log has the reason.
        """
        wanted = file.changes
        while file.has_unstored_changes:
            record = file.spilled
            if (
                record is not None
                and record.changes >= wanted
                and record.path == file.path
                and (record.is_partial or not file.is_half_written)
            ):
                break
            running = self._under_way.get(file)
            if running is None:
                running = self._under_way[file] = Future[bool]()
                self._blocks.start(self._spill, file, running, is_awaited=True)
            if not await running.wait():
                return False
        return True

    async def settle(self) -> None:
        """Wait until the records that are being deleted are gone."""
        while self._removing:
            await self._removed.wait()

    async def _spill(self, file: UploadFile, outcome: Future[bool]) -> None:
        """Write a record, without a retry, and set the outcome."""
        is_written = False
        try:
            if file.has_unstored_changes:
                is_written = await self._write(file)
        except Exception as error:  # noqa: BLE001 - of one file: the others are still to be spilled
            _log.error("%s", of_uploads.SPILL_FAILED(path=file.path, reason=error))
        finally:
            del self._under_way[file]
            outcome.finish(is_written)

    async def _write(self, file: UploadFile) -> bool:
        before, changes, path = file.spilled, file.changes, file.path
        description = dataclasses.replace(
            about(file),
            is_partial=file.is_half_written,
            replaces=(before.name,) if before else (),
        )
        pieces = file.pieces()  # views of memory: later writes to the file change them
        record = await self._blocks.spill(
            lambda: unsaved.spill(self._state_dir, description, pieces)
        )
        if file.changes != changes and file.has_unstored_changes:
            # The new record may mix old and new bytes. Keep the earlier record.
            await self._blocks.spill(record.remove)
            return False
        if before and file.spilled is before:
            before.remove()
        file.spilled = self._spilled(record, path, changes, is_partial=description.is_partial)
        if not file.has_unstored_changes:
            self._drop(file)  # stored or removed meanwhile
            return True
        _log.warning(
            "%s",
            of_uploads.SPILLED(
                record=record.name,
                path=path,
                reason="its writer had not closed it; kept in addition to the stored version"
                if description.is_partial
                else description.error or "there was no time to store it",
            ),
        )
        return True

    async def restore(self, upload: UploadDirectory, staging: Staging) -> None:
        """Restore the files that earlier mounts spilled, and queue them to be stored.

        If the catalog has another version of the name by now, the file is restored as
        `NAME~unsaved`. A record that can't be used is kept, with an error in the log.
        """
        try:
            obsolete = self._catalog.obsolete_spills()
            await self._blocks.spill(self._catalog.sync)
            await self._blocks.spill(lambda: unsaved.sweep(self._state_dir, obsolete))
            self._catalog.forget_obsolete(obsolete)
        except OSError as error:  # the next mount does it
            _log.warning(
                "%s",
                of_uploads.SPILL_RECORD_LEFT(record=self._state_dir / "unsaved", reason=error),
            )
        found, flaws = await self._blocks.spill(lambda: unsaved.find_records(self._state_dir))
        for flaw in flaws:
            _log.error("%s", of_uploads.UNSAVED_DAMAGED(text=f"{flaw}; it stays there"))
        for record in found:
            try:
                await self._restore_one(record, upload, staging)
            except Exception as error:  # noqa: BLE001 - of one record: the others are restored
                _log.error("%s", of_uploads.NOT_RESTORED(reason=error))

    async def _restore_one(
        self, record: UnsavedFile, upload: UploadDirectory, staging: Staging
    ) -> None:
        if staging.currsize + record.staged > staging.maxsize and staging.currsize:
            raise UnsavedError(f"{record.directory}: --staging-size is used up")
        pieces = await self._blocks.spill(record.pieces)
        if any(it.length != staging.block_size for it in pieces[:-1]):
            raise UnsavedError(f"{record.directory} is not cut into blocks of a file")
        described = record.about
        directory, name = _directory_of(described, upload)
        there = directory.entry_nowait(name)
        stored = there.version if isinstance(there, UploadFile) else ""
        if stored and await self._blocks.spill(lambda: _version_of(pieces)) == unsigned(stored):
            _log.info("stored before the last mount ended: %s", described.path)
            await self._blocks.spill(lambda: self._remove_synced(record))
            return
        is_same = unsigned(stored) == unsigned(described.version)
        if isinstance(there, UploadFile) and is_same and not described.is_partial:
            file = there
        else:
            file = _made(directory, name, described)
        file.restore(
            Metadata(
                described.mode,
                described.uid,
                described.gid,
                described.atime_ns,
                described.mtime_ns,
            ),
            pieces,
        )
        file.spilled = self._spilled(record, file.path, file.changes)
        _log.info("restored what was not stored: %s", file.path)

    def _spilled(
        self, record: UnsavedFile, path: str, changes: int, *, is_partial: bool = False
    ) -> Spilled:
        def remove() -> None:
            self._removing += 1
            self._blocks.start(self._remove, record, is_awaited=True)

        return Spilled(record.name, path, changes, remove, is_partial)

    def _drop(self, file: UploadFile) -> None:
        if file.spilled is not None:
            with self._catalog.change():
                self._catalog.mark_obsolete(file.spilled.name)
            file.spilled.remove()
            file.spilled = None

    async def _remove(self, record: UnsavedFile) -> None:
        """Delete a record, then its mark in the catalog."""
        try:
            await self._blocks.spill(lambda: self._remove_synced(record))
            if not record.exists():
                self._catalog.forget_obsolete([record.name])
        except Exception as error:  # noqa: BLE001 - the next mount deletes it
            _log.warning("%s", of_uploads.SPILL_RECORD_LEFT(record=record.directory, reason=error))
        finally:
            self._removing -= 1
            self._removed.set()
            self._removed = trio.Event()

    def _remove_synced(self, record: UnsavedFile) -> None:
        """Sync the catalog, then delete an obsolete record. Blocks."""
        self._catalog.sync()
        record.remove()


def _version_of(pieces: list[Piece]) -> list[str]:
    """Return the unsigned identity of the version that pieces would make. Blocks.

    Empty if it is unknown: stored bytes are padded with zeros, which changes their digest.
    """
    ranges: list[StoredRange] = []
    for piece in pieces:
        if piece.stored and piece.stored.size != piece.length:
            return []
        ranges += piece.stored.ranges
        if not piece.stored:
            digest = DigestInCaller()
            digest.extend(b"" if piece.staged is None else piece.staged)
            locator = KeepLocator(f"{digest.hexdigest(piece.length)}+{piece.length}")
            ranges.append(StoredRange(Receipt(locator, 0, ()), 0, piece.length))
    return unsigned(identity_of(StoredBytes(ranges)))


def _directory_of(described: About, upload: UploadDirectory) -> tuple[UploadDirectory, str]:
    """Return directory and name to restore a file at; create missing directories."""
    *above, name = described.path.split("/")
    directory = upload
    for part in above:
        node: Node | None = directory.entry_nowait(part)
        if node is None:
            owner = Metadata(directory_mode(0o755), described.uid, described.gid)
            node = directory.mkdir(part, owner)
        if not isinstance(node, UploadDirectory):
            return upload, name  # a file has the directory's name
        directory = node
    return directory, name


def _made(directory: UploadDirectory, name: str, described: About) -> UploadFile:
    """Create a file with this name, or with the first free variant."""
    free = f"{name}~unsaved" if described.is_partial else name
    number = 0
    while directory.entry_nowait(free) is not None:
        number += 1
        free = f"{name}~unsaved" + (f"-{number}" if number > 1 else "")
    try:
        file = directory.create(free, Metadata(described.mode, described.uid, described.gid))
    except RefusedError:  # too long a name
        return _made(directory, f"unsaved-{described.mtime_ns}", described)
    if not isinstance(file, UploadFile):
        raise TypeError("upload/ makes upload files")
    return file
