"""FetchLocks: if several processes need a block, one of them fetches it.

One file, `locks`, has a lock for each block: the byte at the offset that the block's digest
gives. The locks are those of open file descriptions (`F_OFD_SETLK` of fcntl(2)), so the kernel
releases them when their process ends, however it ends, and no file has to be removed. They
work between processes of one machine. A lock only avoids a second fetch: without it the
result is the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import time
from typing import TYPE_CHECKING

from keepfs.keep.forks import renew_in_children

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME = "locks"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
#: struct flock of Linux: type, whence, start, length, pid (0 for these locks).
_FLOCK = struct.Struct("hhqqi4x")
#: Digits of a digest that make an offset: a positive number of 60 bits.
_DIGITS = 15
#: Seconds between two tries to lock a block that another process holds: first and longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05


class FetchLocks:
    """The locks of the blocks in a directory. Any thread may use it.

    Args:
        root: A descriptor of the directory; used by the constructor only.
    """

    def __init__(self, root: int) -> None:
        self._guard = threading.Lock()
        self._file = -1
        self._is_inherited = False
        with contextlib.suppress(OSError):  # a read-only disk: each process fetches for itself
            self._file = os.open(_NAME, _FLAGS, 0o600, dir_fd=root)
        renew_in_children(self)

    def close(self) -> None:
        """Release all locks."""
        with self._guard:
            file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        self.close()

    def try_lock(self, md5sum: str) -> bool | None:
        """Lock a block without waiting.

        Returns:
            False if another process has the lock; None if locks can't be used.
        """
        try:
            return self._set(md5sum, fcntl.F_WRLCK)
        except BlockingIOError:  # EAGAIN; EACCES is of a security module: locks can't be used
            return False
        except OSError:
            return None

    def unlock(self, md5sum: str) -> None:
        """Release the lock of a block."""
        with contextlib.suppress(OSError):
            self._set(md5sum, fcntl.F_UNLCK)

    def renew_after_fork(self) -> None:
        """Have separate locks in a forked child: those of the inherited file are the parent's."""
        self._guard = threading.Lock()
        self._is_inherited = True

    def _set(self, md5sum: str, kind: int) -> bool | None:
        wanted = _FLOCK.pack(kind, os.SEEK_SET, int(md5sum[:_DIGITS], 16), 1, 0)
        with self._guard:
            if self._is_inherited:
                self._open_again()
            if self._file < 0:
                return None
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, wanted)
            return True

    def _open_again(self) -> None:
        """Replace the file that a parent process opened; its locks stay the parent's."""
        self._is_inherited = False
        inherited, self._file = self._file, -1
        if inherited >= 0:
            with contextlib.suppress(OSError):
                self._file = os.open(f"/proc/self/fd/{inherited}", os.O_RDWR | os.O_CLOEXEC)
            os.close(inherited)


class FetchClaim:
    """The right to fetch a block, or the result of a wait for another process's fetch.

    Args:
        locks: The locks; None: the claim has no effect.
        md5sum: The block's digest.

    Attributes:
        has_waited: Whether another process was fetching the block.
        is_passed_on: Whether another thread releases the claim.
    """

    def __init__(self, locks: FetchLocks | None, md5sum: str) -> None:
        self._locks = locks
        self._md5sum = md5sum
        self._is_held = False
        self.has_waited = False
        self.is_passed_on = False

    def wait(self, is_there: Callable[[], bool], timeout: float) -> None:
        """Lock the block, or wait until another process has fetched it. Blocks.

        Ends without the lock when the block is there, after `timeout` seconds, or if locks
        can't be used.

        Args:
            is_there: Returns whether the block has been fetched.
            timeout: Seconds; not negative.
        """
        until, pause = time.monotonic() + timeout, _FIRST_PAUSE
        while self._locks is not None:
            locked = self._locks.try_lock(self._md5sum)
            self._is_held = bool(locked)
            if locked or locked is None:
                return
            self.has_waited = True
            left = until - time.monotonic()
            if left <= 0 or is_there():
                return
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._is_held and self._locks is not None:
            self._is_held = False
            self._locks.unlock(self._md5sum)
