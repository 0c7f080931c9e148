"""Memory for received blocks: newly allocated, or reused from a pool.

A fresh buffer of 64 MiB costs about 32 ms in page faults, as much as the
whole transfer; 7 ms where the kernel gives huge pages, which it is asked for. A
GET from a service that hashes took 144 ms before, and 119 with that.
Whoever reads blocks for long, a mount, uses each buffer again as soon as
nobody looks at it any more. A program that calls `KeepClient` wants `bytes`,
which can't be used again.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import io
import mmap
import weakref
from typing import TYPE_CHECKING, Protocol

from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Buffers kept though nobody uses them: what two transfers begin with.
_MOST_IDLE = 2
#: Bytes beyond which glibc maps `bytes` by themselves, unless its heap happens to have
#: so much in one piece: so what the kernel is told of their pages holds for nobody else.
_MAPPED = 32 * 1024 * 1024
#: Of libc; None where it has none. `mmap` asks for its own memory, not for that of `bytes`.
_madvise = getattr(ctypes.CDLL(None), "madvise", None)


class Allocation(Protocol):
    """Memory for one block."""

    @property
    def view(self) -> memoryview:
        """The memory, to be written to."""

    def first(self, size: int) -> bytes | memoryview:
        """Return the first `size` bytes, without a copy; nothing may be written after that."""


class FreshAllocation:
    """New memory, whose content becomes `bytes`."""

    def __init__(self, size: int) -> None:
        self._content = io.BytesIO(bytes(size))
        self.view = self._content.getbuffer()
        if size > _MAPPED:
            _ask_for_huge_pages(self.view)

    def first(self, size: int) -> bytes:
        """Return the first `size` bytes; without a copy, since nobody else has them."""
        self.view.release()
        self._content.truncate(size)
        return self._content.getvalue()


def _ask_for_huge_pages(view: memoryview) -> None:
    """Ask the kernel to back untouched memory with huge pages; it may decline."""
    if _madvise is None or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    address = ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
    # Its neighbours in the first and the last page aren't ours.
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + view.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    _madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_HUGEPAGE)


class _LentAllocation:
    """Memory of a pool, which it goes back to when the last view of it is gone."""

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def first(self, size: int) -> memoryview:
        """Return the first `size` bytes."""
        return self.view[:size]


def _mapped(size: int) -> mmap.mmap:
    """Map memory, whose pages are made as they are touched: no caller waits for them all."""
    try:
        buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:  # which would be taken for the network's
        raise MemoryError(f"no memory for a block: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


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
        self._idle: collections.deque[mmap.mmap] = collections.deque(maxlen=most_idle)
        self._array = ctypes.c_ubyte * size

    def lend(self, size: int) -> memoryview:
        """Return memory to be written to; what is in it is anything."""
        if size != self._size:
            return memoryview(bytearray(size))
        try:
            buffer = self._idle.pop()
        except IndexError:
            buffer = _mapped(size)
        # Every view keeps this object alive, and nothing else does.
        loan = self._array.from_buffer(buffer)
        weakref.finalize(loan, self._idle.append, buffer).atexit = False
        return memoryview(loan).cast("B")

    def allocate(self, size: int) -> Allocation:
        """Return the memory for a block of `size` bytes."""
        return _LentAllocation(self.lend(size))

    def release_idle(self) -> None:
        """Give the buffers that nobody uses back to the system."""
        self._idle.clear()

    def idle(self) -> int:
        """Count the buffers that nobody uses."""
        return len(self._idle)


def as_buffer(data: Buffer | str) -> Buffer:
    """Return what is to be stored as a buffer.

    Raises:
        TypeError: It is neither bytes nor text.
    """
    if isinstance(data, str):
        return data.encode()
    try:
        memoryview(data)
    except TypeError:
        raise TypeError(
            f"a block is bytes, another buffer of them, or str, not {type(data).__name__}"
        ) from None
    return data


def as_bytes(block: memoryview) -> bytes:
    """Return the bytes behind a view, copied only where they aren't bytes already."""
    whole = block.obj
    if isinstance(whole, bytes) and len(whole) == block.nbytes:
        return whole
    return bytes(block)


def writable(buffer: Buffer) -> memoryview:
    """Return a view of a caller's buffer, as bytes to be written to.

    Raises:
        TypeError: It is no buffer, or read-only, or not contiguous.
    """
    view = memoryview(buffer)
    if view.readonly:
        raise TypeError(f"the {type(buffer).__name__} is read-only: give a writable buffer")
    if not view.c_contiguous:
        raise TypeError("the buffer is not contiguous: give one whose bytes are in one piece")
    return view.cast("B")
