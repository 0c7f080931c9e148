"""Slot: up to 64 MiB of a file, either stored or staged in memory until they are stored.

For the trio thread only. Between two awaits a slot doesn't change. So a method
compares after an await what it read before, and then changes the slot without
another await.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from keepfs.fs.upload.slot_state import (
    CONTENT_EVENTS,
    GONE,
    HOLES,
    SHARED,
    SlotEvent,
    SlotState,
    slot_state_after,
)
from keepfs.fs.upload.staged import StagedBytes, zeros
from keepfs.fs.upload.stored import NOTHING, StoredBytes
from keepfs.fs.upload.unsaved import Piece
from keepfs.keep.errors import fresh_copy

if TYPE_CHECKING:
    from keepfs.fs.future import Future
    from keepfs.fs.upload.renewal import Relabelled
    from keepfs.fs.upload.staging import Staging
    from keepfs.keep.locator import KeepLocator
    from keepfs.keep.store import Receipt


@dataclass(slots=True)
class _Sending:
    """A store of a slot in progress.

    Attributes:
        version: The version of the slot that is sent.
        staged: The memory that is sent, which must not change; None if zeros are sent.
        future: Its outcome; set once it has begun.
    """

    version: int
    staged: StagedBytes | None
    future: Future[Receipt] = field(init=False)


class Slot:
    """Up to 64 MiB of a file, at a fixed place in it.

    Invariant: its content is the staged bytes if there are any, else the stored
    bytes if there are any, else empty; padded with zeros to `length`. `SlotState`
    records which, and whether a store is in progress. Stored bytes are one block if this slot
    was stored, and ranges of any blocks if the file was imported: the first change stages them.

    Args:
        staging: Accounts for its memory.
        length: Its length, in bytes.
        stored: Where its bytes are, or the first of them; nothing for a hole.

    Attributes:
        failure: The error of the last attempt to store it, or None.
    """

    def __init__(self, staging: Staging, length: int, stored: StoredBytes = NOTHING) -> None:
        self.length = length
        self.failure: Exception | None = None
        self._staging = staging
        self._state = SlotState.HOLE
        #: Without ranges for a hole, and when dropped.
        self._content: StagedBytes | StoredBytes = NOTHING
        self._sending: _Sending | None = None
        #: The number of changes: a waiter compares it with the version of a store in progress.
        self._version = 0
        if stored:
            self._name(stored)

    def __repr__(self) -> str:
        return f"<Slot {self._state.name}, {self.length} bytes, version {self._version}>"

    @property
    def is_stored(self) -> bool:
        """Whether stored blocks have exactly the slot's bytes."""
        return self._state is SlotState.STORED

    @property
    def stored(self) -> StoredBytes:
        """Where the slot's bytes are, or the first of them; nothing if they are not stored."""
        return self._content if isinstance(self._content, StoredBytes) else NOTHING

    @property
    def is_hole(self) -> bool:
        """Whether it consists of zeros and is not stored."""
        return self._state in HOLES

    @property
    def is_storing(self) -> bool:
        """Whether it is being sent."""
        return self._sending is not None

    @property
    def is_full(self) -> bool:
        """Whether a whole block is staged."""
        content = self._content
        return isinstance(content, StagedBytes) and content.size == self._staging.block_size

    async def read(self, begin: int, end: int) -> bytes | memoryview:
        """Return the bytes from `begin` up to `end`, both within the length.

        Raises:
            KeepReadError: The stored block can't be read.
        """
        content = self._content
        if isinstance(content, StagedBytes):
            # A copy: the reply may be written after the next change.
            found: bytes | bytearray | memoryview = bytes(content.view[begin:end])
        else:
            found = await self._fetched(content.slice(begin, end))
        missing = end - begin - len(found)
        if missing or isinstance(found, bytearray):
            return b"".join((found, zeros(missing)))
        return found

    def write_nowait(self, begin: int, content: memoryview) -> bool:
        """Write as `write` does to a hole or staged bytes that have room; return whether done."""
        staged = self._content
        if self._state is SlotState.HOLE:
            staged = self._staging.new_bytes()
        elif self._state is not SlotState.STAGED:
            return False
        end = begin + len(content)
        if not isinstance(staged, StagedBytes) or not self._staging.has_room(
            self, staged.footprint(max(end, staged.size))
        ):
            return False
        self._note(SlotEvent.CHANGE)
        self._content = staged
        staged.write(begin, content)
        self.length = max(self.length, end)
        self._account()
        return True

    async def write(self, begin: int, content: memoryview) -> None:
        """Write bytes at `begin`; extend the slot if necessary. Waits for memory.

        Raises:
            KeepReadError: The stored block, whose other bytes are kept, can't be read.
            KeepWriteError: There is no memory, since storing other slots failed.
        """
        end = begin + len(content)
        staged = await self._stage(end)
        staged.write(begin, content)
        self.length = max(self.length, end)
        self._account()

    async def cut(self, length: int) -> None:
        """Cut the slot to `length` bytes; raises as `write` does."""
        if not self._content:
            self._note(SlotEvent.RESIZE)
        else:
            staged = await self._stage(0)
            staged.cut(length)
            self._account()
        self.length = length

    def extend(self, length: int) -> None:
        """Fill the slot with zeros up to `length` bytes."""
        if length > self.length:
            self._note(SlotEvent.RESIZE)
            self.length = length

    def piece(self) -> Piece:
        """Return the slot's content; staged bytes aren't copied."""
        if isinstance(self._content, StagedBytes):
            return Piece(self.length, staged=self._content.view)
        return Piece(self.length, self._content)

    def restore(self, piece: Piece) -> None:
        """Set the content from a spill record of an earlier mount."""
        if piece.staged is not None:
            staged = self._staged(memoryview(piece.staged).cast("B"))
            self._note(SlotEvent.CHANGE)
            self._content = staged
        elif piece.stored:
            self._name(piece.stored)
        self._account()

    def drop(self) -> None:
        """Release the bytes for good: the slot was cut off, or its file removed.

        Bytes that are being sent stay in memory, and are accounted for, until they are sent.
        """
        self._note(SlotEvent.DROP)
        self._content = NOTHING
        self._account()

    def adopt(self, receipt: Receipt) -> None:
        """Take a stored block of zeros as the content, if the slot is a hole of its size."""
        if self._state is SlotState.HOLE and self.length == receipt.locator.size:
            self._name(StoredBytes.of_blocks([receipt]))

    async def store(self) -> StoredBytes | None:
        """Wait until the current bytes are stored; return where they are, or None if dropped.

        Raises:
            KeepWriteError: They couldn't be stored; they stay staged, and `failure` is set.
            KeepReadError: A stored block that must be padded with zeros can't be read.
        """
        wanted = self._version
        while self._state not in GONE:
            if self._sending is None:
                if not self.stored:
                    self.start_storing()
                elif self._state is SlotState.STORED:
                    return self.stored
                else:
                    await self._stage_short_bytes(self.stored)
            elif self._sending.version >= wanted:
                return StoredBytes.of_blocks([await self._sending.future.wait()])
            else:
                await self._storing_ended()
        await self._storing_ended()
        return None

    def start_storing(self) -> Future[Receipt] | None:
        """Start to send the current bytes; return the store in progress, or None.

        Starts nothing if a store is in progress, or the slot is stored or dropped.
        """
        if self._sending is None and self._state not in {SlotState.STORED, SlotState.DROPPED}:
            state = slot_state_after(self._state, SlotEvent.SEND)
            staged = self._content if isinstance(self._content, StagedBytes) else None
            sending = _Sending(self._version, staged)
            sending.future = self._put(staged)  # nothing after it needs memory
            self._sending, self._state = sending, state
        return None if self._sending is None else self._sending.future

    def _put(self, staged: StagedBytes | None) -> Future[Receipt]:
        blocks = self._staging.blocks
        if staged is None:
            return blocks.put(zeros(self.length), self.length, self._settle)
        digest = staged.digest_with_zeros(self.length)
        return blocks.put(staged.view, self.length, self._settle, digest)

    async def _storing_ended(self) -> None:
        """Wait until the store in progress ends; ignore its failure, since its bytes are old."""
        if self._sending is not None:
            with contextlib.suppress(Exception):
                await self._sending.future.wait()

    def _settle(self, future: Future[Receipt]) -> None:
        """Handle the outcome of a store."""
        sending, self._sending = self._sending, None
        self.failure, receipt = future.failure, future.result
        self._note(SlotEvent.SENT if future.failure is None else SlotEvent.FAIL)
        if self._state is SlotState.STORED and receipt is not None:
            self._content = StoredBytes.of_blocks([receipt])
        elif (
            isinstance(self._content, StagedBytes)
            and sending is not None
            and sending.staged is self._content
        ):
            self._content.forget_digest()
        self._account()

    async def _stage(self, size: int) -> StagedBytes:
        """Wait for memory for `size` bytes; return it, to be changed before the next await.

        For a dropped slot the memory belongs to no slot.
        """
        while True:
            content, version = self._content, self._version
            block: bytearray | memoryview = memoryview(b"")
            if isinstance(content, StoredBytes):
                block = await self._fetched(content)
            staged = content if isinstance(content, StagedBytes) else self._staging.new_bytes()
            await self._staging.make_room(
                self, staged.footprint(max(size, len(block), staged.size))
            )
            if self._content is content and self._version == version:
                break
        # No await from here on, so that the compared state stays valid.
        if content is not staged:
            staged.write(0, block)
        elif self._state in SHARED:
            staged = staged.copy()
        self._note(SlotEvent.CHANGE)
        if self._state not in GONE:
            self._content = staged
        return staged

    async def _stage_short_bytes(self, stored: StoredBytes) -> None:
        """Stage stored bytes that are fewer than the slot has, to pad them with zeros."""
        block = await self._fetched(stored)
        await self._staging.make_room(self, len(block))
        if self.stored.is_same_as(stored) and self._state is SlotState.SHORT:
            staged = self._staged(block)
            self._note(SlotEvent.FETCH)
            self._content = staged
            self._account()

    async def _fetched(self, stored: StoredBytes) -> bytearray | memoryview:
        """Return stored bytes: a view of a whole block, else a copy without a hold on blocks.

        Each block is fetched once, and one at a time, also if its ranges are among others.

        Raises:
            KeepReadError: A block couldn't be read, or has another size than its locator says.
        """
        copied = bytearray(stored.size)
        numbers: dict[KeepLocator, list[int]] = {}
        for number, each in enumerate(stored.ranges):
            numbers.setdefault(each.locator, []).append(number)
        for locator, of_block in numbers.items():
            block = await self._staging.blocks.get(locator)
            if len(stored) == 1 and stored.ranges[0].is_whole:
                return block
            for number in of_block:
                each, begin = stored.ranges[number], stored.start_of(number)
                part = block[each.offset : each.offset + each.length]
                copied[begin : begin + each.length] = part
        return copied

    def _staged(self, content: bytearray | memoryview) -> StagedBytes:
        """Stage a copy of bytes."""
        staged = self._staging.new_bytes()
        staged.write(0, content)
        return staged

    def take_locator(self, relabelled: Relabelled) -> None:
        """Use newer locators of the stored blocks, if there are any."""
        if isinstance(self._content, StoredBytes):
            self._content = relabelled.stored(self._content)

    def _name(self, stored: StoredBytes) -> None:
        """Set stored bytes as the content."""
        is_exact = stored.size == self.length
        self._note(SlotEvent.NAME if is_exact else SlotEvent.NAME_SHORT)
        self._content = stored

    def _note(self, event: SlotEvent) -> None:
        """Handle an event: set the next state; increase the version if the content changed."""
        self._state = slot_state_after(self._state, event)
        if event in CONTENT_EVENTS:
            self._version += 1

    def _account(self) -> None:
        taken = [self._content] if isinstance(self._content, StagedBytes) else []
        sent = None if self._sending is None else self._sending.staged
        if sent is not None and sent is not self._content:
            taken.append(sent)
        self._staging.account(self, sum(each.footprint(each.size) for each in taken))


async def store_slots(slots: list[Slot]) -> list[StoredBytes | None]:
    """Store slots concurrently, equal holes once; return where they are, None if dropped.

    Raises:
        Exception: The first failure, raised when all stores have ended.
    """
    failures: list[Exception] = []
    stored: dict[Slot, StoredBytes | None] = {}
    holes: dict[int, Future[Receipt] | None] = {}
    for slot in slots:
        if slot.is_hole and slot.length not in holes:
            holes[slot.length] = slot.start_storing()

    async def store_one(slot: Slot) -> None:
        zeros_sent = holes.get(slot.length) if slot.is_hole else None
        try:
            if zeros_sent is not None:
                slot.adopt(await zeros_sent.wait())
            stored[slot] = await slot.store()
        except Exception as error:  # noqa: BLE001 - raised when the others have ended
            failures.append(error)

    if len(slots) == 1:  # without a task, which takes two turns of the event loop
        await store_one(slots[0])
    else:
        async with trio.open_nursery() as nursery:
            for slot in slots:
                nursery.start_soon(store_one, slot)
    if failures:
        raise fresh_copy(failures[0])
    return [stored[slot] for slot in slots]
