"""The bytes of files being written, until they are blocks in the store.

A file is cut every 64 MiB into slots. A slot's bytes are in the store, or
staged in memory, or nowhere (a hole: zeros). `Staging` bounds what is staged
by all files together: a writer who needs more room than there is waits while
the slot that was staged first is stored and let go.

For the trio thread only. Between two awaits a slot doesn't change.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from keepfs.fs.upload.failed import FailedFiles
from keepfs.fs.upload.staged import StagedBytes, zeros
from keepfs.fs.upload.unsaved import Piece
from keepfs.keep.errors import fresh_copy
from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.fs.bridge import AsyncBlocks
    from keepfs.fs.future import Future
    from keepfs.keep.locator import KeepLocator
    from keepfs.keep.store import Receipt

#: Bytes that a staged slot takes beside its content: the slot, its digest, its file and
#: its errors. Measured with 6,000 failed files of 5 bytes.
SLOT_OVERHEAD = 6 * 1024
#: Seconds after which a writer that waits for room has another slot stored. Guessed.
_PATIENCE = 5.0
#: Bytes: eight whole blocks, so that several can be filled while others are sent.
DEFAULT_STAGING_SIZE = 8 * MAX_BLOCK_SIZE


class Staging:
    """What all files have staged, bounded in bytes.

    Invariant: `currsize` exceeds `maxsize` only where a single slot does, or
    where slots that are being sent were written to meanwhile.

    Args:
        blocks: Where slots are stored.
        maxsize: Bytes.
        block_size: Bytes after which files are cut; at most a block's.
        failed: Where files go whose store has failed.
        lend: Lends memory of `block_size` bytes that was used before.
        overhead: Bytes that a staged slot takes beside its content.
    """

    def __init__(
        self,
        blocks: AsyncBlocks,
        maxsize: int = DEFAULT_STAGING_SIZE,
        block_size: int = MAX_BLOCK_SIZE,
        failed: FailedFiles | None = None,
        lend: Callable[[int], memoryview] | None = None,
        overhead: int = 0,
    ) -> None:
        self._overhead = overhead
        self.failed = FailedFiles() if failed is None else failed
        self.blocks = blocks
        self.maxsize = maxsize
        self.block_size = block_size
        self.currsize = 0
        self._lend = lend
        # Set, and replaced, when a slot has more or less staged, or a store has ended.
        self._changed = trio.Event()
        #: Whether the last wait for room ended without a change.
        self._is_slow = False
        # In the order they were staged.
        self._sizes: dict[Slot, int] = {}

    def new_bytes(self) -> StagedBytes:
        """Make a slot's memory: none at first."""
        return StagedBytes(self.blocks, self.block_size, self._lend)

    async def make_room(self, slot: Slot, size: int) -> None:
        """Wait until `slot` may have `size` bytes, while others are stored.

        A store that hangs holds nobody up: after a while another slot is
        stored instead. Cancellation leaves the stores under way.

        Raises:
            KeepWriteError: Storing every other slot failed, so there is no room.
        """
        failures: dict[Slot, Exception] = {}
        size = self._with_overhead(size)
        while self.currsize - self._sizes.get(slot, 0) + size > self.maxsize:
            others = [other for other in self._sizes if other is not slot]
            if not others:
                return
            left = [other for other in others if other not in failures]
            if not left:
                raise fresh_copy(failures[others[0]])
            await self._wait_for_one(left, failures)

    async def _wait_for_one(self, slots: list[Slot], failures: dict[Slot, Exception]) -> None:
        """Wait until one of several slots is stored, or failed; start one more if that is slow."""
        idle = [slot for slot in slots if not slot.is_storing]
        if len(idle) == len(slots) or self._is_slow:
            # One that is complete, rather than one still growing; the oldest first.
            chosen = min(idle, key=lambda each: not each.is_full, default=None)
            if chosen is not None:
                chosen.start_storing()
        watched = [slot for slot in slots if slot.is_storing]
        self._is_slow = True
        with trio.move_on_after(_PATIENCE):
            await self._changed.wait()
            self._is_slow = False
        failures |= {
            slot: slot.failure
            for slot in watched
            if not slot.is_storing and slot.failure is not None
        }

    def account(self, slot: Slot, size: int) -> None:
        """Note that a slot now has `size` bytes staged."""
        size = self._with_overhead(size)
        self.currsize += size - self._sizes.get(slot, 0)
        if size:
            self._sizes[slot] = size
        else:
            self._sizes.pop(slot, None)
        self._changed.set()
        self._changed = trio.Event()

    def _with_overhead(self, size: int) -> int:
        """Return the bytes that a slot takes of which `size` bytes are staged."""
        return size + self._overhead if size else 0


class Slot:
    """Up to 64 MiB of a file, at a fixed place in it.

    Invariant: the bytes are the staged ones if there are any, else those of
    the block that `receipt` names, else zeros; behind them zeros up to
    `length`.

    Args:
        staging: Where its memory is counted.
        length: Bytes of the file that fall into it.

    Attributes:
        failure: Why the last attempt to store it failed, or None.
    """

    def __init__(self, staging: Staging, length: int) -> None:
        self.length = length
        self.receipt: Receipt | None = None
        self.failure: Exception | None = None
        self._staging = staging
        self._buffer: StagedBytes | None = None
        #: Changes so far, and how many of them the last store took along.
        self._version = 0
        self._sent_version = -1
        #: What was sent last: it may not change while it is being sent.
        self._sent: StagedBytes | None = None
        self._storing: Future[Receipt] | None = None
        self._is_dropped = False

    @property
    def is_stored(self) -> bool:
        """Whether the block that `receipt` names has exactly the slot's bytes."""
        return (
            self._buffer is None
            and self.receipt is not None
            and self.receipt.locator.size == self.length
        )

    @property
    def locator(self) -> KeepLocator | None:
        """The name of the stored block that has the slot's bytes, or the first of them."""
        return self.receipt.locator if self._buffer is None and self.receipt else None

    @property
    def is_hole(self) -> bool:
        """Whether it is nothing but zeros, and not stored."""
        return self._buffer is None and self.receipt is None

    @property
    def is_storing(self) -> bool:
        """Whether it is being sent at this moment."""
        return self._storing is not None

    @property
    def is_full(self) -> bool:
        """Whether all of a whole block is staged."""
        return self._buffer is not None and self._buffer.size == self._staging.block_size

    async def read(self, begin: int, end: int) -> bytes | memoryview:
        """Return the bytes from `begin` up to `end`, both within the length."""
        if self._buffer is not None:
            # A copy: the reply may be written after the next change.
            found: bytes | memoryview = bytes(self._buffer.view[begin:end])
        elif self.receipt is not None:
            found = (await self._staging.blocks.get(self.receipt.locator))[begin:end]
        else:
            found = b""
        missing = end - begin - len(found)
        return b"".join((found, zeros(missing))) if missing else found

    async def write(self, begin: int, content: memoryview) -> None:
        """Put bytes at `begin`; the length grows to hold them."""
        end = begin + len(content)
        buffer = await self._stage(end)
        buffer.write(begin, content)
        self.length = max(self.length, end)
        self._account()

    async def cut(self, length: int) -> None:
        """Cut the slot to `length` bytes."""
        if not self.is_hole:
            buffer = await self._stage(0)
            buffer.cut(length)
            self._account()
        self._version += 1
        self.length = length

    def extend(self, length: int) -> None:
        """Fill the slot with zeros up to `length` bytes."""
        if length > self.length:
            self._version += 1
            self.length = length

    def piece(self) -> Piece:
        """Return what the slot consists of; staged bytes aren't copied."""
        if self._buffer is None:
            return Piece(self.length, self.receipt)
        return Piece(self.length, None, self._buffer.view)

    def restore(self, piece: Piece) -> None:
        """Be what an earlier mount couldn't store."""
        self.receipt = piece.receipt
        if piece.staged is not None:
            self._buffer = self._staged(memoryview(piece.staged).cast("B"))
        self._version += 1
        self._account()

    def drop(self) -> None:
        """Let the bytes go for good: the slot is cut off, or its file removed."""
        self._version += 1
        self._is_dropped = True
        self._buffer = None
        self.receipt = None
        if self._storing is None:  # else they stay in memory until they are sent
            self._sent = None
        self._account()

    def adopt(self, receipt: Receipt) -> None:
        """Be stored as a block of zeros, if the slot is a hole of the block's size."""
        if self.is_hole and self.length == receipt.locator.size:
            self.receipt = receipt

    async def store(self) -> Receipt | None:
        """Return when the bytes the slot has at this moment are stored, or dropped (None).

        Raises:
            KeepWriteError: They aren't; they stay staged, and `failure` says why.
        """
        wanted = self._version
        while not self._is_dropped:
            if self._storing is None:
                if self.is_stored and self.receipt is not None:
                    return self.receipt
                if self._buffer is None and self.receipt is not None:
                    await self._stage_short_block(self.receipt)
                else:
                    self.start_storing()
            elif self._sent_version >= wanted:
                return await self._storing.wait()
            else:
                await self._storing_ended()
        await self._storing_ended()
        return None

    def start_storing(self) -> Future[Receipt] | None:
        """Begin to send the bytes there are, unless that is under way; return what is."""
        if self._storing is not None or self.is_stored:
            return self._storing
        self._sent, self._sent_version = self._buffer, self._version
        blocks = self._staging.blocks
        if self._buffer is None:
            self._storing = blocks.put(zeros(self.length), self.length, self._settle)
        else:
            digest = self._buffer.digest_with_zeros(self.length)
            self._storing = blocks.put(self._buffer.view, self.length, self._settle, digest)
        return self._storing

    async def _storing_ended(self) -> None:
        """Wait until nothing is being sent; it was of older bytes, so it may have failed."""
        if self._storing is not None:
            with contextlib.suppress(Exception):
                await self._storing.wait()

    def _settle(self, future: Future[Receipt]) -> None:
        """Note what came of a store."""
        self._storing = None
        self.failure = future.failure
        if future.failure is None and self._version == self._sent_version:
            self._buffer = self._sent = None
            self.receipt = future.result
        elif self._sent is not self._buffer:
            self._sent = None
        elif self._buffer is not None:
            self._buffer.forget_digest()
        self._account()

    async def _stage(self, size: int) -> StagedBytes:
        """Make room for `size` bytes; return the slot's, to be changed before the next await."""
        while True:
            buffer, version = self._buffer, self._version
            content = memoryview(b"")
            if buffer is None and self.receipt is not None:
                content = await self._staging.blocks.get(self.receipt.locator)
            staged = buffer or self._staging.new_bytes()
            room = staged.footprint(max(size, len(content), staged.size))
            await self._staging.make_room(self, room)
            if self._buffer is buffer and self._version == version:
                break
        self._version += 1
        if buffer is None:
            self._buffer = self._staged(content)
        elif buffer is self._sent and self._storing is not None:
            self._buffer = buffer.copy()
        if self._storing is None:
            self._sent = None
        return self._buffer or staged

    def _staged(self, content: memoryview) -> StagedBytes:
        """Stage a copy of bytes."""
        staged = self._staging.new_bytes()
        staged.write(0, content)
        return staged

    async def _stage_short_block(self, receipt: Receipt) -> None:
        """Stage a block that is shorter than the slot, since zeros belong behind it."""
        block = await self._staging.blocks.get(receipt.locator)
        await self._staging.make_room(self, len(block))
        if self._buffer is None and self.receipt is receipt and self._storing is None:
            self._buffer = self._staged(block)
            self._account()

    def _account(self) -> None:
        taken = [] if self._buffer is None else [self._buffer]
        if self._storing is not None and self._sent is not None and self._sent is not self._buffer:
            taken.append(self._sent)
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
