"""Slot: up to 64 MiB of a file, staged in memory until they are a block in the store.

For the trio thread only. Between two awaits a slot doesn't change: what is
read before an await is compared after it, and a change follows without
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
from keepfs.fs.upload.unsaved import Piece
from keepfs.keep.errors import fresh_copy
from keepfs.keep.store import Receipt

if TYPE_CHECKING:
    from keepfs.fs.future import Future
    from keepfs.fs.upload.renewal import Relabelled
    from keepfs.fs.upload.staging import Staging
    from keepfs.keep.locator import KeepLocator


@dataclass(slots=True)
class _Sending:
    """A store of a slot that is under way.

    Attributes:
        version: The slot's when it began.
        staged: The memory that is sent, which must not change; None if zeros are sent.
        future: Its outcome; set when it has begun.
    """

    version: int
    staged: StagedBytes | None
    future: Future[Receipt] = field(init=False)


class Slot:
    """Up to 64 MiB of a file, at a fixed place in it.

    Invariant: the bytes are the staged ones if there are any, else those of
    the stored block if there is one, else zeros; behind them zeros up to
    `length`. `SlotState` says which, and whether a store is under way.

    Args:
        staging: Where its memory is counted.
        length: Bytes of the file that fall into it.
        receipt: The stored block that has them, or the first of them; None for a hole.

    Attributes:
        failure: Why the last attempt to store it failed, or None.
    """

    def __init__(self, staging: Staging, length: int, receipt: Receipt | None = None) -> None:
        self.length = length
        self.failure: Exception | None = None
        self._staging = staging
        self._state = SlotState.HOLE
        #: None for a hole, and when dropped.
        self._content: StagedBytes | Receipt | None = None
        self._sending: _Sending | None = None
        #: Changes so far: a waiter compares it with that of a store under way.
        self._version = 0
        if receipt is not None:
            self._name(receipt)

    def __repr__(self) -> str:
        return f"<Slot {self._state.name}, {self.length} bytes, version {self._version}>"

    @property
    def is_stored(self) -> bool:
        """Whether a stored block has exactly the slot's bytes."""
        return self._state is SlotState.STORED

    @property
    def locator(self) -> KeepLocator | None:
        """The name of the stored block that has the slot's bytes, or the first of them."""
        return self._content.locator if isinstance(self._content, Receipt) else None

    @property
    def is_hole(self) -> bool:
        """Whether it is nothing but zeros, and not stored."""
        return self._state in HOLES

    @property
    def is_storing(self) -> bool:
        """Whether it is being sent at this moment."""
        return self._sending is not None

    @property
    def is_full(self) -> bool:
        """Whether all of a whole block is staged."""
        content = self._content
        return isinstance(content, StagedBytes) and content.size == self._staging.block_size

    async def read(self, begin: int, end: int) -> bytes | memoryview:
        """Return the bytes from `begin` up to `end`, both within the length."""
        content = self._content
        if isinstance(content, StagedBytes):
            # A copy: the reply may be written after the next change.
            found: bytes | memoryview = bytes(content.view[begin:end])
        elif content is not None:
            found = (await self._staging.blocks.get(content.locator))[begin:end]
        else:
            found = b""
        missing = end - begin - len(found)
        return b"".join((found, zeros(missing))) if missing else found

    async def write(self, begin: int, content: memoryview) -> None:
        """Put bytes at `begin`; the length grows to hold them."""
        end = begin + len(content)
        staged = await self._stage(end)
        staged.write(begin, content)
        self.length = max(self.length, end)
        self._account()

    async def cut(self, length: int) -> None:
        """Cut the slot to `length` bytes."""
        if self._content is None:
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
        """Return what the slot consists of; staged bytes aren't copied."""
        if isinstance(self._content, StagedBytes):
            return Piece(self.length, None, self._content.view)
        return Piece(self.length, self._content)

    def restore(self, piece: Piece) -> None:
        """Take the content that an earlier mount couldn't store."""
        if piece.staged is not None:
            staged = self._staged(memoryview(piece.staged).cast("B"))
            self._note(SlotEvent.CHANGE)
            self._content = staged
        elif piece.receipt is not None:
            self._name(piece.receipt)
        self._account()

    def drop(self) -> None:
        """Let the bytes go for good: the slot is cut off, or its file removed.

        Bytes that are being sent stay in memory, and are counted, until they are sent.
        """
        self._note(SlotEvent.DROP)
        self._content = None
        self._account()

    def adopt(self, receipt: Receipt) -> None:
        """Be stored as a block of zeros, if the slot is a hole of the block's size."""
        if self._state is SlotState.HOLE and self.length == receipt.locator.size:
            self._name(receipt)

    async def store(self) -> Receipt | None:
        """Return when the bytes the slot has at this moment are stored, or dropped (None).

        Raises:
            KeepWriteError: They aren't; they stay staged, and `failure` says why.
        """
        wanted = self._version
        while self._state not in GONE:
            if self._sending is None:
                if not isinstance(self._content, Receipt):
                    self.start_storing()
                elif self._state is SlotState.STORED:
                    return self._content
                else:
                    await self._stage_short_block(self._content)
            elif self._sending.version >= wanted:
                return await self._sending.future.wait()
            else:
                await self._storing_ended()
        await self._storing_ended()
        return None

    def start_storing(self) -> Future[Receipt] | None:
        """Begin to send the bytes there are; return the store under way.

        Does nothing if one is under way, or all is stored or dropped.
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
        """Wait until nothing is being sent; it was of older bytes, so it may have failed."""
        if self._sending is not None:
            with contextlib.suppress(Exception):
                await self._sending.future.wait()

    def _settle(self, future: Future[Receipt]) -> None:
        """Note the outcome of a store."""
        sending, self._sending = self._sending, None
        self.failure = future.failure
        self._note(SlotEvent.SENT if future.failure is None else SlotEvent.FAIL)
        if self._state is SlotState.STORED:
            self._content = future.result
        elif (
            isinstance(self._content, StagedBytes)
            and sending is not None
            and sending.staged is self._content
        ):
            self._content.forget_digest()
        self._account()

    async def _stage(self, size: int) -> StagedBytes:
        """Wait for memory for `size` bytes; return the slot's, to change before the next await.

        Of a dropped slot it is memory that nothing refers to.
        """
        while True:
            content, version = self._content, self._version
            block = memoryview(b"")
            if isinstance(content, Receipt):
                block = await self._staging.blocks.get(content.locator)
            staged = content if isinstance(content, StagedBytes) else self._staging.new_bytes()
            await self._staging.make_room(
                self, staged.footprint(max(size, len(block), staged.size))
            )
            if self._content is content and self._version == version:
                break
        # No await from here on: the state is the one that was compared.
        if content is not staged:
            staged.write(0, block)
        elif self._state in SHARED:
            staged = staged.copy()
        self._note(SlotEvent.CHANGE)
        if self._state not in GONE:
            self._content = staged
        return staged

    async def _stage_short_block(self, receipt: Receipt) -> None:
        """Stage a block that is shorter than the slot, since zeros belong behind it."""
        block = await self._staging.blocks.get(receipt.locator)
        await self._staging.make_room(self, len(block))
        is_same = isinstance(self._content, Receipt) and self._content.names_block_of(receipt)
        if is_same and self._state is SlotState.SHORT:
            staged = self._staged(block)
            self._note(SlotEvent.FETCH)
            self._content = staged
            self._account()

    def _staged(self, content: memoryview) -> StagedBytes:
        """Stage a copy of bytes."""
        staged = self._staging.new_bytes()
        staged.write(0, content)
        return staged

    def take_locator(self, relabelled: Relabelled) -> None:
        """Use a newer locator of the stored block, if one is the content."""
        if isinstance(self._content, Receipt):
            self._content = relabelled.receipt(self._content)

    def _name(self, receipt: Receipt) -> None:
        """Have a stored block as the content."""
        is_exact = receipt.locator.size == self.length
        self._note(SlotEvent.NAME if is_exact else SlotEvent.NAME_SHORT)
        self._content = receipt

    def _note(self, event: SlotEvent) -> None:
        """Go to the next state; count the version if the content is another now."""
        self._state = slot_state_after(self._state, event)
        if event in CONTENT_EVENTS:
            self._version += 1

    def _account(self) -> None:
        taken = [self._content] if isinstance(self._content, StagedBytes) else []
        sent = None if self._sending is None else self._sending.staged
        if sent is not None and sent is not self._content:
            taken.append(sent)
        self._staging.account(self, sum(each.footprint(each.size) for each in taken))


async def store_slots(slots: list[Slot]) -> list[Receipt | None]:
    """Store slots side by side; equal holes are sent once. Return None for one that is dropped."""
    failures: list[Exception] = []
    receipts: dict[Slot, Receipt | None] = {}
    holes: dict[int, Future[Receipt] | None] = {}
    for slot in slots:
        if slot.is_hole and slot.length not in holes:
            holes[slot.length] = slot.start_storing()

    async def store_one(slot: Slot) -> None:
        zeros_sent = holes.get(slot.length) if slot.is_hole else None
        try:
            if zeros_sent is not None:
                slot.adopt(await zeros_sent.wait())
            receipts[slot] = await slot.store()
        except Exception as error:  # noqa: BLE001 - raised when the others have ended
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for slot in slots:
            nursery.start_soon(store_one, slot)
    if failures:
        raise fresh_copy(failures[0])
    return [receipts[slot] for slot in slots]
