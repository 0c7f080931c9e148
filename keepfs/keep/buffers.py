"""The memory that blocks are received into, be it fresh or used before.

A fresh buffer of 64 MiB costs about 45 ms in page faults, as much as the
whole transfer. So whoever reads blocks for long, a mount, uses each again as
soon as nobody looks at it any more. A program that calls `KeepClient` wants
`bytes`, which can't be used again.
"""

from __future__ import annotations

import collections
import ctypes
import io
import weakref
from typing import Protocol

from keepfs.keep.locator import MAX_BLOCK_SIZE

#: Buffers kept though nobody uses them: what two transfers begin with.
_MOST_IDLE = 2


class Room(Protocol):
    """Memory for one block."""

    @property
    def view(self) -> memoryview:
        """The memory, to be written to."""

    def first(self, size: int) -> bytes | memoryview:
        """Return the first `size` bytes, without a copy; nothing may be written after that."""


class FreshRoom:
    """New memory, whose content becomes `bytes`."""

    def __init__(self, size: int) -> None:
        self._content = io.BytesIO(bytes(size))
        self.view = self._content.getbuffer()

    def first(self, size: int) -> bytes:
        """Return the first `size` bytes; without a copy, since nobody else has them."""
        self.view.release()
        self._content.truncate(size)
        return self._content.getvalue()


class _LentRoom:
    """Memory of a pool, which it goes back to when the last view of it is gone."""

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def first(self, size: int) -> memoryview:
        """Return the first `size` bytes."""
        return self.view[:size]


class BufferPool:
    """Buffers of a whole block, each used again once nobody has a view of it.

    Any thread may use it. Smaller blocks get memory of their own: so what a
    block takes is never more than its size.

    Args:
        size: Bytes of a whole block.
        most_idle: Buffers kept though nobody uses them.
    """

    def __init__(self, size: int = MAX_BLOCK_SIZE, most_idle: int = _MOST_IDLE) -> None:
        self._size = size
        # Appending and popping are atomic: a buffer may come back at any
        # moment, from within any thread, so no lock could be held.
        self._idle: collections.deque[bytearray] = collections.deque(maxlen=most_idle)
        self._array = ctypes.c_ubyte * size

    def lend(self, size: int) -> memoryview:
        """Return memory to be written to; what is in it is anything."""
        if size != self._size:
            return memoryview(bytearray(size))
        try:
            buffer = self._idle.pop()
        except IndexError:
            buffer = bytearray(size)
        # Every view keeps this object alive, and nothing else does.
        loan = self._array.from_buffer(buffer)
        weakref.finalize(loan, self._idle.append, buffer).atexit = False
        return memoryview(loan).cast("B")

    def room(self, size: int) -> Room:
        """Make room for a block."""
        return _LentRoom(self.lend(size))

    def idle(self) -> int:
        """Count the buffers that nobody uses."""
        return len(self._idle)
