"""UploadFile: a file of upload/, written in any order, cut into blocks, stored when closed.

Close is not a single event: dup and fork flush a file several times, a shell
flushes before the first write, and mmap writes after the last close. So `store`
may be called at any time; it stores the changes so far, and later calls store
later changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
from typing import TYPE_CHECKING

import trio

from keepfs.fs.errnos import RefusedError
from keepfs.fs.metadata_changes import changed_metadata
from keepfs.fs.upload.content import Content
from keepfs.fs.upload.content_reader import ContentReader
from keepfs.fs.upload.passage import Passage, PassageEvent
from keepfs.fs.upload.slot import Slot, store_slots
from keepfs.fs.upload.stored import NOTHING, StoredBytes
from keepfs.fs.upload.storing import State, StoringFile
from keepfs.fs.upload.version import identity_of, xattrs_of
from keepfs.keep.errors import KeepWriteError
from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from keepfs.fs.nodes import Changes, Metadata
    from keepfs.fs.upload.place import OnStored, Place, Spilled
    from keepfs.fs.upload.renewal import Relabelled
    from keepfs.fs.upload.staging import Staging
    from keepfs.fs.upload.unsaved import Piece

#: Largest file, in bytes: 65,536 blocks, whose locators take 6 MB.
MAX_FILE_SIZE = 65536 * MAX_BLOCK_SIZE


class UploadFile(StoringFile):
    """A file whose bytes are in Keep, or staged to be stored there.

    Args:
        metadata: Its mode, owner and times.
        staging: Holds its bytes until they are stored.
        on_stored: Called after each store with the receipt of each whole block of the version,
            and the file's metadata.
    """

    __slots__ = (
        "_content",
        "_mutating",
        "_on_stored",
        "_reader",
        "_resting_size",
        "_staging",
        "number",
        "place",
        "spilled",
    )

    def __init__(self, metadata: Metadata, staging: Staging, on_stored: OnStored) -> None:
        super().__init__(metadata, staging.blocks, staging.failed)
        self._staging = staging
        self._on_stored = on_stored
        #: None while the catalog has all of it and it is not in use.
        self._content: Content | None = Content(staging)
        #: The size while `_content` is None.
        self._resting_size = 0
        # The lock and the reader are created when they are needed.
        self._mutating: trio.Lock | None = None
        self._reader: ContentReader | None = None
        #: Its place; None if it has no name.
        self.place: Place | None = None
        #: Its number in the catalog; None until a version is stored.
        self.number: int | None = None
        #: The spill record with its unstored bytes, or None.
        self.spilled: Spilled | None = None

    def take_version(self, size: int) -> None:
        """Become a stored file of `size` bytes, with the version in the catalog."""
        self._content, self._reader, self._resting_size = None, None, size
        self._passage = Passage.of_stored_file()

    @property
    def size(self) -> int:
        """The size of its content, in bytes."""
        return self._resting_size if self._content is None else self._content.size

    @property
    def failure(self) -> Exception | None:
        """The error of the last attempt to store it or one of its blocks, or None."""
        if self._failure is not None or self._content is None:
            return self._failure
        return self._content.failure

    @property
    def is_overwriting(self) -> bool:
        """Whether the catalog has a stored version of its name; True if it can't be read."""
        try:
            return self.place is not None and self.place.has_version
        except OSError:
            return True

    @property
    def is_half_written(self) -> bool:
        """Whether storing it now would replace a stored version by an incomplete one."""
        return self.is_being_changed and self.is_overwriting

    def xattrs(self) -> Mapping[str, str]:
        """Return `user.keep.…`: the state, and the stored version's locator and copies."""
        found = {"user.keep.state": self.state.value}
        if self._passage.is_stored:
            found |= xattrs_of(self._stored_version())
            retained = self._staging.renewal.retained(self.number)
            if retained:
                found["user.keep.retained"] = retained
            lost = self._staging.renewal.lost(self.number)
            if lost:
                found |= {"user.keep.state": State.LOST.value, "user.keep.error": lost}
        elif self.failure is not None:
            found["user.keep.error"] = self.error
        return found

    @property
    def path(self) -> str:
        """The path below upload/; empty if it has no name."""
        return "" if self.place is None else self.place.path

    @property
    def mount_path(self) -> str:
        """The path from the mount's root; empty if it has no name. For any thread."""
        place = self.place
        return "" if place is None else f"upload/{place.path}"

    @property
    def version(self) -> str:
        """The identity of the catalog's version of its name; empty without one.

        `damaged` if the entry in the catalog is damaged.
        """
        try:
            return "" if self.place is None else identity_of(self.place.version())
        except OSError:
            return "damaged"

    def pieces(self) -> list[Piece]:
        """Return the content of each slot; staged bytes aren't copied."""
        return self.load().pieces()

    def restore(self, metadata: Metadata, pieces: Sequence[Piece]) -> None:
        """Restore a file that an earlier mount couldn't store; queue it for a retry at once.

        Raises:
            MemoryError: There is no memory for the staged bytes; the file is unchanged.
        """
        before = self.load()
        self._content = Content.restored(self._staging, pieces)
        self._reader = None
        before.drop()
        self._passage.note(PassageEvent.RESTORE)
        self.metadata = metadata
        self._staging.failed.add(self, at_once=True)

    @property
    def may_change(self) -> bool:
        """True."""
        return True

    def check_open(self, flags: int) -> None:
        """Allow all flags."""

    def opened(self) -> None:
        """Count one more open handle."""
        self._openings += 1

    def closed(self) -> None:
        """Count one open handle less; if it was the last of a removed file, release its bytes."""
        self._openings -= 1
        self._discard_if_unreachable()
        self._rest()

    def forgotten(self) -> None:
        """Drop the node from memory, if the catalog has all of it and it isn't open."""
        in_use = self._openings or self.is_storing or self.has_unstored_changes
        if self.place is not None and not in_use:
            self.place.leave()

    def removed(self) -> None:
        """Handle the removal of its name."""
        self.links = 0
        self.metadata.changed()
        self._staging.failed.discard(self)
        if self.spilled is not None:
            self.spilled.remove()
            self.spilled = None
        self._discard_if_unreachable()

    def read_nowait(self, offset: int, size: int) -> memoryview | None:
        """Return what `read` would, if it is of one stored block in memory; else None."""
        return self._reader_of(self.load()).read_nowait(offset, size)

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return the bytes from `offset` on, `size` at most, unstored ones included.

        Raises:
            KeepReadError: A stored block can't be read.
            OSError: EIO, the entry in the catalog is damaged.
        """
        return await self._reader_of(self.load()).read(offset, size, self.number)

    def _reader_of(self, content: Content) -> ContentReader:
        if self._reader is None:
            self._reader = ContentReader(content, self._staging)
        return self._reader

    def take_locators(self, relabelled: Relabelled) -> None:
        """Use newer locators of the same blocks."""
        if self._content is not None:
            self._content.take_locators(relabelled)

    def write_nowait(self, offset: int, content: bytes) -> bool:
        """Write as `write` does, within one slot in memory that has room; return whether done.

        Raises:
            OSError: EIO, the entry in the catalog is damaged.
        """
        end = offset + len(content)
        number, begin = divmod(offset, self._staging.block_size)
        fits_slot = begin + len(content) <= self._staging.block_size and end <= MAX_FILE_SIZE
        if not content or not fits_slot or (self._mutating and self._mutating.locked()):
            return False
        held = self.load()
        slot = held.slot(number)
        if not slot.write_nowait(begin, memoryview(content)):
            return False
        self._written(held, slot, offset, end)
        return True

    async def write(self, offset: int, content: bytes) -> None:
        """Write bytes at `offset`; start to store each block that is full.

        Waits for memory, and for stored blocks that are changed in part. After a failure
        or cancellation the slots before it have the new bytes.

        Raises:
            RefusedError: EFBIG, the file would exceed 4 TiB.
            KeepReadError: A stored block that is changed in part can't be read.
            KeepWriteError: There is no memory for the bytes, since storing failed.
        """
        end = offset + len(content)
        if end > MAX_FILE_SIZE:
            raise RefusedError(errno.EFBIG)
        view = memoryview(content)
        block_size = self._staging.block_size
        async with self._changing() as held:
            for number, begin, stop in held.spans(offset, end):
                slot, start = held.slot(number), number * block_size
                taken = start + begin - offset
                piece = view[taken : taken + stop - begin]
                change = functools.partial(slot.write, begin, piece)
                await self._reader_of(held).change(number, change, self.number)
                self._written(held, slot, start + begin, start + stop)

    def _written(self, held: Content, slot: Slot, begin: int, end: int) -> None:
        """Record a write to a slot; if the slot is full, start to store it."""
        held.note_written(begin, end)
        self._changed()
        if not end % self._staging.block_size and slot.is_full:
            slot.start_storing()

    async def truncate(self, size: int) -> None:
        """Set the size; a longer file is padded with zeros.

        Raises:
            RefusedError: EFBIG, the size exceeds 4 TiB.
            KeepReadError: The block that is cut can't be read.
        """
        if size > MAX_FILE_SIZE:
            raise RefusedError(errno.EFBIG)
        async with self._changing() as held:
            if size == held.size:
                # Record the time here: no store follows that would.
                metadata = dataclasses.replace(self.metadata)
                metadata.changed(content=True)
                if self.place is not None:
                    self.place.record_metadata(self.number, metadata)
                self.metadata = metadata
                return
            held.extend(size)
            if size < held.size:
                last, length = divmod(size, self._staging.block_size)
                if length and held.may_have_bytes(last):
                    cut = functools.partial(held.slot(last).cut, length)
                    await self._reader_of(held).change(last, cut, self.number)
                held.cut(size)
            self._changed()

    async def _store_once(self, changes: int) -> None:
        content = self.load()
        base, base_count, cuts = content.base, content.base_count, content.cuts
        used = content.slots_to_store()
        # The other slots after the base are holes; one block is stored for all of them.
        behind = content.count - base_count
        has_holes = sum(number >= base_count for number in used) < behind
        hole = [Slot(self._staging, self._staging.block_size)] if has_holes else []
        stored = await store_slots([*used.values(), *hole])
        if not self.links:
            return
        zero_slot = stored[-1] if hole else None
        version = content.assembled(
            base, dict(zip(used, stored, strict=False)), zero_slot or NOTHING
        )
        if version is None:
            if self._passage.changes == changes:
                raise KeepWriteError("the blocks that were stored make up no version")
            return  # cut meanwhile
        spilled = self.spilled
        if self.place is not None:
            self.place.record_version(self, version, "" if spilled is None else spilled.name)
        self._passage.note(PassageEvent.RECORD)
        content.take_version(version, cuts)
        if spilled is not None:
            self.spilled = None
            spilled.remove()
        for receipt in version.whole_blocks():
            self._on_stored(receipt, self.metadata)

    def _is_sending(self) -> bool:
        return self._content is not None and self._content.is_sending

    def _attempt_ended(self) -> None:
        self._discard_if_unreachable()
        self._rest()
        if not self.lookups:  # the kernel forgot it while it was stored
            self.forgotten()

    async def change(self, changes: Changes) -> None:
        """Apply a setattr. A new size of a file that isn't open is stored before the return.

        Raises:
            RefusedError: EPERM, the setattr changes the owner; EFBIG.
            KeepReadError: The block that is cut can't be read.
            KeepWriteError: The file with its new size can't be stored.
        """
        metadata = changed_metadata(self.metadata, changes)
        if changes.size is not None:
            await self.truncate(changes.size)
            metadata = changed_metadata(self.metadata, changes)
        # After truncate(2) no close follows.
        is_last = changes.size is not None and not self._openings
        try:
            if self.place is not None:
                self.place.record_metadata(self.number, metadata)
            self.metadata = metadata
        finally:
            if is_last and self.has_untried_changes:
                self.begin_store()
        if is_last:
            await self.store()

    async def sync(self) -> None:
        """Sync the catalog: the versions recorded by `store` survive a power cut."""
        if self.place is not None:
            await self._staging.blocks.run(self.place.sync)

    @contextlib.asynccontextmanager
    async def _changing(self) -> AsyncIterator[Content]:
        """Hold the lock for changes of the content; stores continue meanwhile."""
        self._mutating = self._mutating or trio.Lock()
        async with self._mutating:
            content = self.load()
            try:
                yield content
            finally:
                self._discard_if_unreachable()  # removed meanwhile

    def load(self) -> Content:
        """Load the content, so that it no longer depends on the catalog's entry; return it."""
        if self._content is None:
            self._content = Content(self._staging, self._resting_size, self._stored_version())
        return self._content

    def _stored_version(self) -> StoredBytes:
        """Return where the stored version's bytes are, from memory or from the catalog."""
        if self._content is not None:
            return self._content.version
        return NOTHING if self.place is None else self.place.version_of(self.number)

    def _rest(self) -> None:
        """Drop the content from memory, if the catalog has all of it and it isn't in use."""
        is_changing = self._mutating is not None and self._mutating.locked()
        in_use = self._openings or self.is_storing or is_changing
        if in_use or self.has_unstored_changes or self.number is None:
            return
        if self._content is not None and self._content.is_at_rest:
            self._resting_size = self._content.size
            self._content = None
            self._mutating = self._reader = None

    def _changed(self) -> None:
        self._passage.note(PassageEvent.CHANGE)
        self.metadata.changed(content=True)

    def _discard_if_unreachable(self) -> None:
        if not self.links and self._openings <= 0 and self._content is not None:
            self._content.drop()
