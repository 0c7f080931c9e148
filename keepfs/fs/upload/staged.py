"""StagedBytes: the bytes of one slot, in memory that isn't moved while views of it exist.

While they are written in order, their MD5 is computed in other threads, so that a
close waits for the last few bytes only. For the trio thread only, except `zeros` and
the functions that `digest_with_zeros` returns.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

from keepfs.keep.hashing import growing
from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.fs.bridge import AsyncBlocks

#: Least bytes to hash in a thread: to hash them takes ten times as long as the hand-over
#: to the thread and back.
_PIECE = 1024 * 1024
#: First size of allocated memory, in bytes, and the factor by which it grows.
_FIRST, _GROWTH = 256, 4


@functools.cache
def _block_of_zeros() -> memoryview:
    """Return a block of zeros. It takes no memory: the kernel maps one page for all of it."""
    return memoryview(bytes(MAX_BLOCK_SIZE))


def zeros(size: int) -> memoryview:
    """Return `size` zero bytes, at most 64 MiB. Any thread may call it."""
    return _block_of_zeros()[:size]


class StagedBytes:
    """Bytes that are extended and changed in place.

    Args:
        blocks: Runs the hashing in threads.
        capacity: Most bytes.
        lend: Lends memory of `capacity` bytes; None: allocate it.

    Attributes:
        size: The number of bytes.
    """

    def __init__(
        self, blocks: AsyncBlocks, capacity: int, lend: Callable[[int], memoryview] | None = None
    ) -> None:
        self.size = 0
        self._blocks = blocks
        self._capacity = capacity
        self._lend = lend
        self._memory = memoryview(bytearray())
        self._is_lent = False
        self._digest: _Digest | None = _Digest()

    @property
    def view(self) -> memoryview:
        """A view of the bytes; writes change its content."""
        return self._memory[: self.size]

    def footprint(self, size: int) -> int:
        """Return the memory that `size` bytes would take, in bytes."""
        return max(self._room_for(size), len(self._memory))

    def write(self, begin: int, content: memoryview | bytes | bytearray) -> None:
        """Write bytes at `begin`; fill a gap before them with zeros."""
        end = begin + len(content)
        self._make_room(max(end, self.size))
        if begin > self.size:
            self._memory[self.size : begin] = zeros(begin - self.size)
        self._forget_hashed(min(begin, self.size))
        self._memory[begin:end] = content
        self.size = max(self.size, end)
        self._hash_on()

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes."""
        self._forget_hashed(size)
        self.size = min(self.size, size)

    def copy(self) -> StagedBytes:
        """Return a copy, for further writes while these bytes are sent."""
        other = StagedBytes(self._blocks, self._capacity, self._lend)
        other.write(0, self.view)
        return other

    def digest_with_zeros(self, size: int) -> Callable[[], str]:
        """Return a function that computes the MD5 of the bytes, padded with zeros to `size`.

        Call the function in a thread, before the bytes change again.
        """
        view, digest = self.view, self._digest or _Digest()
        digest.claimed = self.size
        return lambda: digest.finish(view, size)

    def forget_digest(self) -> None:
        """Drop the MD5, so that the next store hashes all bytes: the last store failed."""
        self._digest = None

    def _room_for(self, size: int) -> int:
        """Return the memory to allocate for `size` bytes."""
        have = len(self._memory)
        if size <= have:
            return have
        grown = max(_FIRST, have * _GROWTH, size)
        # Beyond a quarter of the capacity it is likely to become a whole block.
        return self._capacity if grown * _GROWTH > self._capacity else grown

    def _make_room(self, size: int) -> None:
        if size <= len(self._memory):
            return
        room = self._room_for(size)
        self._is_lent = self._lend is not None and room == self._capacity
        memory = self._lend(room) if self._is_lent and self._lend else memoryview(bytearray(room))
        memory[: self.size] = self.view
        self._memory = memory

    def _forget_hashed(self, begin: int) -> None:
        """Drop the MD5 if bytes from `begin` on, which are about to change, are in it."""
        if self._digest is not None and begin < self._digest.claimed:
            # Don't restart it: random writes would hash all bytes each time.
            self._digest = None

    def _hash_on(self) -> None:
        digest = self._digest
        if digest is None or digest.is_running or self.size - digest.claimed < _PIECE:
            return
        view = self.view
        digest.claimed = self.size
        if digest.is_shared:
            digest.update(view)
            return
        digest.is_running = True

        def ended() -> None:
            digest.is_running = False
            if digest is self._digest:
                self._hash_on()

        self._blocks.hash(lambda: digest.update(view), ended)


class _Digest:
    """An MD5 of bytes that are written in order.

    A thread may hash claimed bytes at any time, so they must not change, unless
    the digest is dropped.

    Attributes:
        claimed: The number of bytes that are hashed, or may be hashed at any time.
        is_running: Whether `update` was called in a thread and hasn't returned.
        is_shared: Whether `update` doesn't block: threads of a C extension hash.
    """

    def __init__(self) -> None:
        self.claimed = 0
        self.is_running = False
        self.is_shared = growing.shared_digest is not None
        self._md5 = (growing.shared_digest or growing.DigestInCaller)()
        self._updated = 0
        self._lock = threading.Lock()

    def update(self, view: memoryview) -> None:
        """Hash the bytes of the view that aren't hashed yet. Blocks, unless `is_shared`."""
        with self._lock:
            if len(view) > self._updated:
                self._md5.extend(view)
                self._updated = len(view)

    def finish(self, view: memoryview, size: int) -> str:
        """Return the MD5 of the bytes of the view, padded with zeros to `size`. Blocks."""
        self.update(view)
        if self.is_shared:
            return self._md5.hexdigest(size)
        with self._lock:
            return self._md5.hexdigest(size)
