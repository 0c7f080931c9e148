"""StagedBytes: the bytes of one slot, in memory that doesn't move while it is looked at.

Their MD5 is computed as they come, in worker threads, as long as they come in
order: so that who closes the file waits for the last few only. For the trio
thread only, but for `digest_with_zeros` and `zeros`.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from typing import TYPE_CHECKING

from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.fs.bridge import AsyncBlocks

#: Bytes that are worth a thread's time: hashing them takes ten times as long
#: as the way to the thread and back.
_PIECE = 1024 * 1024
#: Bytes that memory of one's own has at first, and the factor by which it grows.
_FIRST, _GROWTH = 256, 4


@functools.cache
def _block_of_zeros() -> memoryview:
    """Make a block of zeros. The kernel maps one page for all of it, so it takes no memory."""
    return memoryview(bytes(MAX_BLOCK_SIZE))


def zeros(size: int) -> memoryview:
    """Return that many zero bytes, at most a block's. Any thread may call it."""
    return _block_of_zeros()[:size]


class StagedBytes:
    """Bytes that grow, and are changed, in place.

    Args:
        blocks: Whose threads hash.
        capacity: Most bytes there will ever be.
        lend: Lends memory of `capacity` bytes; None to make it.

    Attributes:
        size: How many there are.
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
        """The bytes there are; they change with them."""
        return self._memory[: self.size]

    def footprint(self, size: int) -> int:
        """Return the bytes of memory that so many bytes take."""
        return max(self._room_for(size), len(self._memory))

    def write(self, begin: int, content: memoryview | bytes | bytearray) -> None:
        """Put bytes at `begin`; zeros fill the gap before them, if there is one."""
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
        """Make a copy, for who writes on while these are sent."""
        other = StagedBytes(self._blocks, self._capacity, self._lend)
        other.write(0, self.view)
        return other

    def digest_with_zeros(self, size: int) -> Callable[[], str]:
        """Return what computes the MD5 of the bytes there are, and zeros up to `size`.

        To be called in a thread, before the bytes change again.
        """
        view, digest = self.view, self._digest or _Digest()
        digest.claimed = self.size
        return lambda: digest.finish(view, size)

    def forget_digest(self) -> None:
        """Have the next store hash everything: the last one failed, for whatever reason."""
        self._digest = None

    def _room_for(self, size: int) -> int:
        """Choose how much memory to have for so many bytes."""
        have = len(self._memory)
        if size <= have:
            return have
        grown = max(_FIRST, have * _GROWTH, size)
        # Beyond a quarter it is likely to be a whole block in the end.
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
        """Note that bytes from `begin` on change: what was hashed of them is void."""
        if self._digest is not None and begin < self._digest.claimed:
            # Not begun anew: who writes here and there would have all hashed each time.
            self._digest = None

    def _hash_on(self) -> None:
        digest = self._digest
        if digest is None or digest.is_running or self.size - digest.claimed < _PIECE:
            return
        view = self.view
        digest.claimed, digest.is_running = self.size, True

        def ended() -> None:
            digest.is_running = False
            if digest is self._digest:
                self._hash_on()

        self._blocks.hash(lambda: digest.update(view), ended)


class _Digest:
    """An MD5 of bytes that come in order.

    What is claimed may be hashed at any time, by any thread; so it doesn't
    change any more, or the digest is given up.
    """

    def __init__(self) -> None:
        self.claimed = 0
        self.is_running = False
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._hashed = 0
        self._lock = threading.Lock()

    def update(self, view: memoryview) -> None:
        """Hash what isn't yet of the bytes there are by now. Blocks."""
        with self._lock:
            if len(view) > self._hashed:
                self._md5.update(view[self._hashed :])
                self._hashed = len(view)

    def finish(self, view: memoryview, size: int) -> str:
        """Return the digest of the bytes there are, and zeros up to `size`. Blocks."""
        self.update(view)
        with self._lock:
            md5 = self._md5.copy()
        md5.update(zeros(size - len(view)))
        return md5.hexdigest()
