"""Memory for received blocks: newly allocated, or reused from a pool.

A new buffer of 64 MiB costs about 32 ms of page faults, as much as the whole
transfer, and 7 ms with huge pages, which are requested from the kernel. With huge
pages a GET from a service that hashes took 119 ms instead of 144. A mount reuses
each buffer as soon as no view of it is left. `KeepClient.get` returns `bytes`, whose
memory can't be reused.
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

#: Most idle buffers that are kept: enough for two transfers.
_MOST_IDLE = 2
#: Size in bytes above which glibc maps an allocation separately, unless its heap has a
#: free piece of that size. `madvise` then affects no other memory.
_MAPPED = 32 * 1024 * 1024
#: `madvise` of libc, or None. `mmap.madvise` of Python can't be used for `bytes`.
_madvise = getattr(ctypes.CDLL(None), "madvise", None)


class Allocation(Protocol):
    """Memory for one block."""

    @property
    def view(self) -> memoryview:
        """The writable memory."""

    def first(self, size: int) -> bytes | memoryview:
        """Return the first `size` bytes, without a copy; `view` must not be used afterwards."""


class FreshAllocation:
    """New memory of `size` bytes, whose content is returned as `bytes`."""

    def __init__(self, size: int) -> None:
        self._content = io.BytesIO(bytes(size))
        self.view = self._content.getbuffer()
        if size > _MAPPED:
            _ask_for_huge_pages(self.view)

    def first(self, size: int) -> bytes:
        """Return the first `size` bytes, without a copy; releases `view`."""
        self.view.release()
        self._content.truncate(size)
        return self._content.getvalue()


def _ask_for_huge_pages(view: memoryview) -> None:
    """Ask the kernel to back untouched memory with huge pages; it may decline."""
    if _madvise is None or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    address = ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
    # Leave out the first and the last page if they are shared with other memory.
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + view.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    _madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_HUGEPAGE)


class _LentAllocation:
    """Memory of a pool; it returns to the pool when its last view is gone."""

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def first(self, size: int) -> memoryview:
        """Return the first `size` bytes."""
        return self.view[:size]


def _mapped(size: int) -> mmap.mmap:
    """Map memory; its pages are allocated at first use, not all at once.

    Raises:
        MemoryError: There is no memory.
    """
    try:
        buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:  # callers take an OSError for a network failure
        raise MemoryError(f"no memory for a block: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


class BufferPool:
    """Buffers of a whole block, each reused once its last view is gone.

    Any thread may use it. Smaller blocks get separate memory, so a block never takes
    more memory than its size.

    Args:
        size: Bytes of a buffer.
        most_idle: Most idle buffers that are kept.
    """

    def __init__(self, size: int = MAX_BLOCK_SIZE, most_idle: int = _MOST_IDLE) -> None:
        self._size = size
        # Appending and popping are atomic. A lock could deadlock: a finalizer returns a
        # buffer at any moment, in any thread.
        self._idle: collections.deque[mmap.mmap] = collections.deque(maxlen=most_idle)
        self._array = ctypes.c_ubyte * size

    def lend(self, size: int) -> memoryview:
        """Return writable memory of `size` bytes; its content is arbitrary.

        Raises:
            MemoryError: There is no memory.
        """
        if size != self._size:
            return memoryview(bytearray(size))
        try:
            buffer = self._idle.pop()
        except IndexError:
            buffer = _mapped(size)
        # Only the views keep this object alive.
        loan = self._array.from_buffer(buffer)
        weakref.finalize(loan, self._idle.append, buffer).atexit = False
        return memoryview(loan).cast("B")

    def allocate(self, size: int) -> Allocation:
        """Return the memory for a block of `size` bytes."""
        return _LentAllocation(self.lend(size))

    def release_idle(self) -> None:
        """Return the idle buffers to the system."""
        self._idle.clear()

    def idle(self) -> int:
        """Return the number of idle buffers."""
        return len(self._idle)


def as_buffer(data: Buffer | str) -> Buffer:
    """Return data as a buffer; a str is encoded as UTF-8.

    Raises:
        TypeError: It is neither a buffer nor a str.
        UnicodeEncodeError: A str has a lone surrogate.
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
    """Return the bytes of a view; without a copy if the view is of a whole `bytes`."""
    whole = block.obj
    if isinstance(whole, bytes) and len(whole) == block.nbytes:
        return whole
    return bytes(block)


def writable(buffer: Buffer) -> memoryview:
    """Return a writable view of the bytes of a caller's buffer.

    Raises:
        TypeError: It isn't a buffer, is read-only, or isn't contiguous.
    """
    view = memoryview(buffer)
    if view.readonly:
        raise TypeError(f"the {type(buffer).__name__} is read-only: give a writable buffer")
    if not view.c_contiguous:
        raise TypeError("the buffer is not contiguous: give one whose bytes are in one piece")
    return view.cast("B")
