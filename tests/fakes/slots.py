"""Slots in the state that a test begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.fs.upload.slot import Slot

if TYPE_CHECKING:
    from keepfs.fs.upload.staging import Staging


async def staged(staging: Staging, content: bytes) -> Slot:
    """Return a slot with bytes that aren't stored."""
    slot = Slot(staging, 0)
    await slot.write(0, memoryview(content))
    return slot
