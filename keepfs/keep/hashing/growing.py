"""Growing: the MD5 of a block while its bytes arrive in memory.

MD5 can't be spread over processors, and each of its steps waits for the one before, so
one block uses a fraction of a core. The C extension `_md5` computes up to three blocks at
once in one thread, in about the time of one. It is optional: without it a block is hashed
by hashlib, in a thread of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import queue
from typing import TYPE_CHECKING, Protocol, cast

from keepfs.keep.threads import NoThreadError, Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

#: Least size of a block, in bytes, that is hashed in another thread than the caller's.
#: Measured with 64 MiB from memory, on two cores: 143 ms instead of 170.
LARGE = 4 * 1024 * 1024
_SOME_ZEROS = bytes(64 * 1024)


class GrowingDigest(Protocol):
    """The MD5 of bytes in memory that become more. For one thread at a time."""

    def extend(self, memory: Buffer, /) -> None:
        """Take the bytes taken before, and more.

        They must not change until `close`. The memory may be another, with the same bytes
        at its beginning.

        Raises:
            ValueError: There are fewer bytes than before, or it is closed.
        """

    def hexdigest(self, size: int = -1, /) -> str:
        """Return the MD5 of all bytes, padded with zeros to `size` bytes. Blocks.

        Raises:
            ValueError: It is closed.
        """

    def close(self) -> None:
        """Release the memory. May wait for what is being hashed; drops what is not yet."""


class DigestInCaller:
    """A growing digest that `extend` computes at once. Blocks."""

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._size = 0

    def extend(self, memory: Buffer, /) -> None:
        """Hash what is new."""
        view = memoryview(memory)
        self._md5.update(view[self._size :])
        self._size = max(self._size, view.nbytes)

    def hexdigest(self, size: int = -1, /) -> str:
        """Return the MD5, padded with zeros to `size` bytes."""
        md5, left = self._md5.copy(), size - self._size
        while left > 0:
            md5.update(_SOME_ZEROS[:left])
            left -= len(_SOME_ZEROS)
        return md5.hexdigest()

    def close(self) -> None:
        """Do nothing: no memory is kept."""


class DigestInThread:
    """A growing digest that a thread of its own computes.

    If no thread can be started, it is computed in the caller's.
    """

    def __init__(self) -> None:
        self._digest = DigestInCaller()
        self._pieces: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        self._thread = Thread(target=self._run, daemon=True)
        with contextlib.suppress(NoThreadError):
            self._thread.start()
        self._has_thread = self._thread.ident is not None

    def extend(self, memory: Buffer, /) -> None:
        """Pass the bytes to the thread."""
        if self._has_thread:
            self._pieces.put(memory)
        else:
            self._digest.extend(memory)

    def hexdigest(self, size: int = -1, /) -> str:
        """Return the MD5 when the thread has ended: nothing can be added any more."""
        self.close()
        return self._digest.hexdigest(size)

    def close(self) -> None:
        """End the thread, when it has hashed what it has."""
        if self._has_thread:
            self._pieces.put(None)
            self._thread.join()
            self._has_thread = False

    def _run(self) -> None:
        for memory in iter(self._pieces.get, None):
            self._digest.extend(memory)


def _of_extension() -> Callable[[], GrowingDigest] | None:
    """Return the extension's type, or None if it wasn't built or doesn't work here."""
    try:
        extension = importlib.import_module("keepfs.keep.hashing._md5")
    except ImportError:
        return None
    return cast("Callable[[], GrowingDigest]", extension.SharedDigest)


#: Makes a growing digest that doesn't block in `extend`, computed by threads that all such
#: digests of the process share; None without the extension.
shared_digest = _of_extension()


def block_digest(size: int) -> GrowingDigest:
    """Return a growing digest for a block of `size` bytes."""
    if size < LARGE:
        return DigestInCaller()
    return DigestInThread() if shared_digest is None else shared_digest()


def md5_of(block: Buffer) -> str:
    """Return the MD5 of a block as 32 hexadecimal digits. Blocks."""
    if shared_digest is None or memoryview(block).nbytes < LARGE:
        return hashlib.md5(block, usedforsecurity=False).hexdigest()
    with contextlib.closing(shared_digest()) as digest:
        digest.extend(block)
        return digest.hexdigest()
