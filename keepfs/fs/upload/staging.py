"""Staging: the memory of all files that are being written, bounded in bytes.

A write that needs more memory than is left waits while another slot is stored and
its memory released: a full slot if there is one, else the slot that was staged first.

For the trio thread only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from keepfs.fs.upload.failed import FailedFiles
from keepfs.fs.upload.renewal import NoRenewal, Renewal
from keepfs.fs.upload.staged import StagedBytes
from keepfs.keep.errors import fresh_copy
from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.fs.bridge import AsyncBlocks

#: Bytes that a staged slot takes in addition to its content: the slot, its digest, its file
#: and its errors. Measured with 6,000 failed files of 5 bytes.
SLOT_OVERHEAD = 6 * 1024
#: Seconds after which a writer that waits for memory starts to store another slot. Guessed.
_PATIENCE = 5.0
#: Default of `maxsize`: eight full blocks, so that some can be filled while others are sent.
DEFAULT_STAGING_SIZE = 8 * MAX_BLOCK_SIZE


class StagedSlot(Protocol):
    """The interface of a slot for the accounting of its memory."""

    @property
    def is_storing(self) -> bool:
        """Whether a store of it is in progress."""

    @property
    def is_full(self) -> bool:
        """Whether a whole block is staged."""

    @property
    def failure(self) -> Exception | None:
        """The error of its last store, or None."""

    def start_storing(self) -> object:
        """Start to store it, unless a store is in progress."""


class StagingStatistics(NamedTuple):
    """The state of the staging area.

    Attributes:
        maxsize: Most bytes.
        currsize: Bytes staged, with the overhead of their slots.
        slots: Slots with staged bytes; each becomes a block.
        storing: The number of these slots that are being stored.
    """

    maxsize: int
    currsize: int
    slots: int
    storing: int


class Staging:
    """The staged bytes of all files, bounded in bytes.

    Invariant: `currsize` exceeds `maxsize` only if a single slot does, or if slots
    were written to while they were being sent.

    Args:
        blocks: The store of the slots.
        maxsize: Most bytes.
        block_size: The size of a file's slots, in bytes; at most a block's.
        failed: Retries the files that couldn't be stored.
        lend: Lends used memory of `block_size` bytes.
        overhead: Bytes that a staged slot takes in addition to its content.
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
        # Set, and replaced, when the staged bytes of a slot change, or a store has ended.
        self._changed = trio.Event()
        #: Whether the last wait for room ended without a change.
        self._is_slow = False
        # In the order of staging.
        self._sizes: dict[StagedSlot, int] = {}

    def new_bytes(self) -> StagedBytes:
        """Make a slot's memory, empty at first."""
        return StagedBytes(self.blocks, self.block_size, self._lend)

    def has_room(self, slot: StagedSlot, size: int) -> bool:
        """Return whether `slot` may take `size` bytes now."""
        taken = self.currsize - self._sizes.get(slot, 0)
        return taken + self._with_overhead(size) <= self.maxsize

    async def make_room(self, slot: StagedSlot, size: int) -> None:
        """Wait until `slot` may take `size` bytes, while other slots are stored.

        A store that hangs doesn't block writers: after 5 s another slot is stored
        instead. Returns at once if no other slot has memory. Cancellation leaves the stores
        in progress.

        Raises:
            KeepWriteError: Storing every other slot failed, so there is no memory.
        """
        failures: dict[StagedSlot, Exception] = {}
        while not self.has_room(slot, size):
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
        """Wait until one of several slots is stored or failed; if it is slow, start another."""
        idle = [slot for slot in slots if not slot.is_storing]
        if len(idle) == len(slots) or self._is_slow:
            # Prefer full slots to growing ones, then the oldest.
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
        """Record that a slot now has `size` bytes staged."""
        size = self._with_overhead(size)
        self.currsize += size - self._sizes.get(slot, 0)
        if size:
            self._sizes[slot] = size
        else:
            self._sizes.pop(slot, None)
        self._changed.set()
        self._changed = trio.Event()

    def statistics(self) -> StagingStatistics:
        """Return the state."""
        storing = sum(slot.is_storing for slot in self._sizes)
        return StagingStatistics(self.maxsize, self.currsize, len(self._sizes), storing)

    def _with_overhead(self, size: int) -> int:
        """Return the memory that a slot with `size` staged bytes takes, in bytes."""
        return size + self._overhead if size else 0
