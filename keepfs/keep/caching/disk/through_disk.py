"""Fetches a block through the disk cache: from the disk, or from the services onto it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.buffers import Allocation
    from keepfs.keep.caching.disk.disk_cache import DiskCache


def fetch_through(
    disk: DiskCache,
    md5sum: str,
    record: bytes | None,
    timeout: float,
    ensure_granted: Callable[[], None],
    allocate: Callable[[int], Allocation],
    receive: Callable[[], bytes | memoryview],
) -> bytes | memoryview:
    """Return a verified block from the disk; if it isn't there, fetch and add it. Blocks.

    If another process fetches the block, wait for it for up to 5 s. The caller holds no
    memory while it waits.

    Args:
        disk: The disk cache.
        md5sum: The block's digest.
        record: The record of the block's locator, or None; see `accepted_names`.
        timeout: Seconds left for the caller.
        ensure_granted: Raises if the services refuse the name of the block.
        allocate: Allocates the memory of a block that is on the disk.
        receive: Returns the verified block from the services.

    Raises:
        Exception: `ensure_granted` or `receive` failed.
    """
    if disk.has(md5sum):
        ensure_granted()
        block = disk.read(md5sum, allocate)
        if block is not None:
            return block
    with disk.claimed(md5sum, timeout) as claim:
        if claim.has_waited and disk.has(md5sum):
            ensure_granted()
            block = disk.read(md5sum, allocate)
            if block is not None:
                disk.note_joined()
                return block
        block = receive()
        disk.add(md5sum, block, claim=claim, record=record)
        return block
