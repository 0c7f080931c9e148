"""Staging: the memory of all files that are being written, bounded in bytes.

A write that needs more memory than is left waits while the slot that was
staged first is stored and its memory released.

For the trio thread only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from keepfs.fs.upload.failed import FailedFiles
from keepfs.fs.upload.renewal import NoRenewal, Renewal
from keepfs.fs.upload.staged import StagedBytes
from keepfs.keep.errors import fresh_copy
from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.fs.bridge import AsyncBlocks

#: Bytes that a staged slot takes beside its content: the slot, its digest, its file and
#: its errors. Measured with 6,000 failed files of 5 bytes.
SLOT_OVERHEAD = 6 * 1024
#: Seconds after which a writer that waits for room has another slot stored. Guessed.
_PATIENCE = 5.0
#: Bytes: eight whole blocks, so that several can be filled while others are sent.
DEFAULT_STAGING_SIZE = 8 * MAX_BLOCK_SIZE


class StagedSlot(Protocol):
    """A slot, as far as its memory is concerned."""

    @property
    def is_storing(self) -> bool:
        """Whether a store of it is under way."""

    @property
    def is_full(self) -> bool:
        """Whether all of a whole block is staged."""

    @property
    def failure(self) -> Exception | None:
        """Why the last store of it failed, or None."""

    def start_storing(self) -> object:
        """Begin to store it, unless that is under way."""


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
        #: How long stored files are kept, and new signatures for their blocks.
        self.renewal: Renewal = NoRenewal()
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
        self._sizes: dict[StagedSlot, int] = {}

    def new_bytes(self) -> StagedBytes:
        """Make a slot's memory: none at first."""
        return StagedBytes(self.blocks, self.block_size, self._lend)

    async def make_room(self, slot: StagedSlot, size: int) -> None:
        """Wait until `slot` may have `size` bytes, while others are stored.

        A store that hangs holds nobody up: after a while another slot is
        stored instead. Cancellation leaves the stores under way.

        Raises:
            KeepWriteError: Storing every other slot failed, so there is no room.
        """
        failures: dict[StagedSlot, Exception] = {}
        size = self._with_overhead(size)
        while self.currsize - self._sizes.get(slot, 0) + size > self.maxsize:
            others = [other for other in self._sizes if other is not slot]
            if not others:
                return
            left = [other for other in others if other not in failures]
            if not left:
                raise fresh_copy(failures[others[0]])
            await self._wait_for_one(left, failures)

    async def _wait_for_one(
        self, slots: list[StagedSlot], failures: dict[StagedSlot, Exception]
    ) -> None:
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

    def account(self, slot: StagedSlot, size: int) -> None:
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
