"""BlockFolder: files of blocks in a private directory, added whole and read verified.

Layout: `blocks-2/abc/abc…` (the MD5, after its first three digits), and `blocks-2/locks` (see
`fetch_locks`). Several processes of a user may use it at once. A file gets its name when it is
complete (`new_files`); nothing is synced, because a block that is lost or damaged is fetched
again. Paths are opened relative to a descriptor of the directory, and never through a symbolic
link.

The inode records the visits: its access time is the last visit, its modification time the
visit before (0 if there was none). So processes share the visits, and no index is needed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import random
import re
import stat
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keepfs.keep.buffers import BufferPool, FreshAllocation
from keepfs.keep.caching.disk import block_file
from keepfs.keep.caching.disk.accepted_names import AcceptedNames
from keepfs.keep.caching.disk.access_failures import AccessFailures
from keepfs.keep.caching.disk.fetch_locks import FetchLocks
from keepfs.keep.caching.disk.hang_watch import HangWatch
from keepfs.keep.caching.disk.new_files import OPEN_DIRECTORY, NewFiles, opened_directory
from keepfs.keep.caching.disk.open_files import OpenBlock, OpenFiles
from keepfs.messages import of_stores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typing_extensions import Buffer

    from keepfs.keep.buffers import Allocation

_log = logging.getLogger(__name__)

_VERSION = "blocks-2"
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NAME = re.compile(r"[0-9a-f]{32}\Z")
_FAN_OUT = re.compile(r"[0-9a-f]{3}\Z")
#: Bytes of a block of `st_blocks` (stat(2)), and of a page, the least that a file takes.
_SECTOR, _PAGE = 512, 4096
#: Reads within this many nanoseconds are one visit.
_VISIT = 60 * 10**9
#: Buffers of a part that are kept for the next one: 1 MiB each.
_MOST_IDLE = 4
#: Errors of a read that mean damage of the medium, not a directory that can't be used.
_DAMAGE = frozenset((errno.EIO, errno.ELOOP, errno.EISDIR, errno.ENXIO))


@dataclass(frozen=True, slots=True)
class CachedFile:
    """One file of the directory.

    Attributes:
        md5sum: The digest that it is named by.
        length: The bytes that it takes of the disk.
        visited: Its last visit, in nanoseconds since the epoch.
        visited_before: The visit before that; 0 if there was none.
    """

    md5sum: str
    length: int
    visited: int
    visited_before: int


class BlockFolder:
    """The directory of cached blocks. Any thread may use it; every method blocks.

    Args:
        directory: Where `blocks-2` is or will be made; not a symbolic link.
        damaged: Called with the digest and the reason for each damaged file found.
        failed: Called with "list", "read" or "remove", a path and the error for each folder or
            file with which that can't be done; before `damaged` if a damaged file stays.
        makes: Whether the directory is made if it doesn't exist.

    Raises:
        OSError: The directory can't be made, doesn't exist, is a symbolic link or another user's.
    """

    def __init__(
        self,
        directory: Path,
        damaged: Callable[[str, str], None] = lambda *_: None,
        failed: Callable[[str, Path, OSError], None] = lambda *_: None,
        *,
        makes: bool = True,
    ) -> None:
        self._directory = directory
        self._damaged = damaged
        self._failures = AccessFailures(directory / _VERSION, failed)
        self._open = OpenFiles()
        # Whether the file system may have reads that do not wait.
        self._can_try = True
        self._buffers = BufferPool(block_file.MOST_NOWAIT, _MOST_IDLE)
        self._lend = block_file.part_memory(self._buffers)
        self._root = root = self._open_root(makes=makes)
        # Of a folder that nobody uses any more, or after `close`.
        self._close_root = weakref.finalize(self, os.close, root)
        self._close_root.atexit = False
        self._new_files = NewFiles(root)
        #: The reads in progress, of which one may hang.
        self.watch = HangWatch(functools.partial(_warn_of_hang, directory))
        #: The locks of blocks that are being fetched.
        self.locks = FetchLocks(self._root)
        #: The signed names that the services accepted.
        self.names = AcceptedNames(self._root)
        weakref.finalize(self, self.names.close).atexit = False

    def close(self) -> None:
        """Close the directory, and release its locks. Further calls fail with OSError."""
        self.locks.close()
        self.names.close()
        self._open.close_all()
        self._root = -1
        self._close_root()

    def is_in_place(self) -> bool:
        """Return whether the path still leads to this directory, and not through a link."""
        try:
            with opened_directory(None, os.fspath(self._directory)) as parent:
                named = os.stat(_VERSION, dir_fd=parent, follow_symlinks=False)
            return os.path.samestat(named, os.fstat(self._root))
        except OSError:
            return False

    def lacking(self, size: int, least: int | None, part: float, floor: int) -> int:
        """Return the bytes to free on the disk before `size` bytes may be written; <= 0: none.

        Args:
            size: The bytes to be written.
            least: The bytes that stay free; None: `part` of the disk, at least `floor`.
            part: A fraction of the disk.
            floor: Bytes.

        Raises:
            OSError: The disk can't be examined.
        """
        disk = os.statvfs(self._root)
        if least is None:
            least = max(int(part * disk.f_blocks * disk.f_frsize), floor)
        return least + size - disk.f_bavail * disk.f_frsize

    def has(self, md5sum: str) -> bool:
        """Return whether there is a file of this name; it may be damaged."""
        try:
            with self.watch.reading():
                os.stat(_path(md5sum), dir_fd=self._root, follow_symlinks=False)
        except OSError:
            return False
        return True

    def read(
        self,
        md5sum: str,
        allocate: Callable[[int], Allocation] = FreshAllocation,
        *,
        is_visit: bool = True,
    ) -> bytes | memoryview | None:
        """Return a block, every byte verified; None if it isn't there or was damaged.

        Without `is_visit` the read has no effect on what is evicted.
        """
        with contextlib.ExitStack() as stack:
            with self.watch.reading():
                opened = stack.enter_context(self._opened(md5sum, is_visit=is_visit))
            if opened is not None:
                memory = allocate(opened[1].size)  # waits for the memory of others
                with self.watch.reading():
                    return block_file.read_whole(*opened, lambda _: memory)
        return None

    def read_part(self, md5sum: str, begin: int, end: int, size: int) -> memoryview | None:
        """Return verified bytes of a block, reading only the pieces that they are in.

        Args:
            md5sum: The block's digest.
            begin: The offset of the first byte.
            end: The offset after the last byte.
            size: The size that the block should have, in bytes.

        Returns:
            None if the block isn't there, has another size, or was damaged.
        """
        with self.watch.reading():
            opened = self._kept_open(md5sum)
            if opened is None or not opened.has_part(begin, end, size):
                return None
            try:
                return block_file.read_part(opened.file, opened.table, begin, end, self._lend)
            except (OSError, block_file.DamagedError) as error:
                self._judge(md5sum, opened.file, error)
                return None

    def read_on(self, md5sum: str, begin: int) -> bool:
        """Read the next 16 MiB of a block into the page cache; return whether it is there. Blocks.

        Args:
            md5sum: The block's digest.
            begin: The offset of the next byte that a sequential reader needs.
        """
        with self.watch.reading():
            opened = self._kept_open(md5sum)
            if opened is not None:
                with contextlib.suppress(OSError):
                    opened.read_on(begin)
            return opened is not None

    def read_part_nowait(self, md5sum: str, begin: int, end: int, size: int) -> memoryview | None:
        """Return what `read_part` would, if the pages are in the page cache; else None."""
        opened = self._open.get(md5sum) if self._can_try else None
        if opened is None or not opened.has_part(begin, end, size):
            return None
        try:
            return block_file.read_part_nowait(opened.file, opened.table, begin, end, self._lend)
        except io.UnsupportedOperation:
            self._can_try = False
            return None

    def begin_part(self, md5sum: str, begin: int, end: int, size: int) -> bool:
        """Start to read what `read_part_nowait` needs, if the block's file is open; don't wait.

        Returns:
            Whether it was started; False if the part is large, or the file isn't open.
        """
        opened = self._open.get(md5sum) if self._can_try else None
        if opened is None or not opened.has_part(begin, end, size):
            return False
        return block_file.begin_part(opened.file, opened.table, begin, end)

    def is_open(self, md5sum: str) -> bool:
        """Return whether the block's file is kept open, so that it is there. Doesn't wait."""
        return self._open.get(md5sum) is not None

    def close_idle(self) -> None:
        """Close the files that are open between reads of parts, and free their buffers."""
        self._open.close_all()
        self._buffers.release_idle()

    def add(self, md5sum: str, block: Buffer) -> int:
        """Add a verified block; return the bytes that its file takes, 0 if it was there already.

        Raises:
            OSError: It can't be written; nothing is left.
        """
        if self.has(md5sum):
            return 0
        view = memoryview(block).cast("B")
        tail = block_file.tail_of(md5sum, view)
        with contextlib.suppress(FileExistsError):
            os.mkdir(md5sum[:3], 0o700, dir_fd=self._root)
        with opened_directory(self._root, md5sum[:3]) as folder:
            self._new_files.add(folder, md5sum, view, tail)
        return -(-(len(view) + len(tail)) // _PAGE) * _PAGE

    def remove(self, md5sum: str) -> bool:
        """Remove a block; return whether this call removed it."""
        self._open.discard(md5sum)
        return self._unlink(_path(md5sum))

    def remove_names(self) -> None:
        """Remove the records of accepted names; each name needs a request again."""
        for name in self._fan_out():
            with contextlib.suppress(OSError):  # `files` reports a folder that can't be read
                os.stat(f"{name}/names", dir_fd=self._root, follow_symlinks=False)
                self._unlink(f"{name}/names")

    def remove_leftovers(self) -> None:
        """Remove files that a killed process left unfinished, an hour ago or earlier."""
        self._new_files.remove_leftovers()

    def files(self) -> Iterator[CachedFile]:
        """Yield the files of blocks, reading one folder at a time."""
        for name in self._fan_out():
            yield from self._files_in(name)

    def sample(self, least: int) -> tuple[list[CachedFile], float]:
        """Return the files of random folders, and the part of all folders that these are.

        Args:
            least: Files after which no further folder is read; with fewer, all are returned.
        """
        names = self._fan_out()
        random.shuffle(names)
        found: list[CachedFile] = []
        for number, name in enumerate(names, 1):
            found += self._files_in(name)
            if len(found) >= least:
                return found, number / len(names)
        return found, 1.0

    def _fan_out(self) -> list[str]:
        with os.scandir(self._root) as entries:
            return [each.name for each in entries if _FAN_OUT.match(each.name)]

    def _files_in(self, name: str) -> list[CachedFile]:
        found = []
        try:
            with opened_directory(self._root, name) as folder, os.scandir(folder) as entries:
                for each in entries:
                    if _NAME.match(each.name) and each.name.startswith(name):
                        try:
                            status = each.stat(follow_symlinks=False)
                        except OSError as error:
                            self._failures.note("list", _path(each.name), error)
                            continue
                        times = status.st_atime_ns, status.st_mtime_ns
                        length = max(status.st_size, _SECTOR * status.st_blocks)
                        found.append(CachedFile(each.name, length, *times))
        except OSError as error:
            self._failures.note("list", name, error)
        return found

    def _unlink(self, path: str) -> bool:
        try:
            with opened_directory(self._root, path[:3]) as folder:
                os.unlink(path[4:], dir_fd=folder)
        except OSError as error:
            self._failures.note("remove", path, error)
            return False
        return True

    def _kept_open(self, md5sum: str) -> OpenBlock | None:
        """Return a block's open file, and open it if necessary; None if it isn't there."""
        opened = self._open.get(md5sum)
        if opened is None:
            with self._opened(md5sum) as found:
                if found is not None:
                    return self._open.add(md5sum, *found)
        return opened

    @contextlib.contextmanager
    def _opened(
        self, md5sum: str, *, is_visit: bool = True
    ) -> Iterator[tuple[int, block_file.PieceTable] | None]:
        """Open a block's file; yield None if it isn't there or is damaged.

        An error of the file in the body of `with` is suppressed.
        """
        file, table = -1, None
        try:
            try:
                flags = _OPEN_FILE if is_visit else _OPEN_FILE | os.O_NOATIME
                file = os.open(_path(md5sum), flags, dir_fd=self._root)
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                    raise block_file.DamagedError("it isn't a file of this user")  # noqa: TRY301
                table = self._table(file, status.st_size, md5sum)
                if is_visit:
                    _note_visit(file, status)
            except (OSError, block_file.DamagedError) as error:
                self._judge(md5sum, file, error)
            if table is None:
                yield None
                return
            try:
                yield file, table
            except (OSError, block_file.DamagedError) as error:
                self._judge(md5sum, file, error)
        finally:
            if file >= 0:
                os.close(file)

    def _table(self, file: int, length: int, md5sum: str) -> block_file.PieceTable:
        """Return the verified table of a block, from memory if its file has the right length."""
        table = self._open.table(md5sum)
        if table is None or block_file.file_size(table.size) != length:
            table = block_file.read_table(file, length, md5sum)
        return table

    def _judge(self, md5sum: str, file: int, error: Exception) -> None:
        """Report a damaged file, and try to remove it, unless another process replaced it."""
        self._open.discard(md5sum)
        if isinstance(error, OSError) and error.errno not in _DAMAGE:
            self._failures.note("read", _path(md5sum), error)
            return
        try:
            if file >= 0:
                named = os.stat(_path(md5sum), dir_fd=self._root, follow_symlinks=False)
                if not os.path.samestat(named, os.fstat(file)):
                    return
        except OSError:
            return
        if self.remove(md5sum) or self.has(md5sum):
            self._damaged(md5sum, str(error))

    def _open_root(self, *, makes: bool) -> int:
        if makes:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with opened_directory(None, os.fspath(self._directory)) as parent:
            with contextlib.suppress(FileExistsError):
                if makes:
                    os.mkdir(_VERSION, 0o700, dir_fd=parent)
            root = os.open(_VERSION, OPEN_DIRECTORY, dir_fd=parent)
        status = os.fstat(root)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            os.close(root)
            path = self._directory / _VERSION
            raise PermissionError(
                errno.EPERM, "others may write to it: make it yours, with mode 0700", str(path)
            )
        return root


def _warn_of_hang(directory: Path, reason: str) -> None:
    _log.warning("%s", of_stores.DISK_CACHE_FAILED(directory=directory, reason=reason))


def _path(md5sum: str) -> str:
    return f"{md5sum[:3]}/{md5sum}"


def _note_visit(file: int, status: os.stat_result) -> None:
    now = time.time_ns()
    if now - status.st_atime_ns >= _VISIT:
        with contextlib.suppress(OSError):  # a read-only disk
            os.utime(file, ns=(now, status.st_atime_ns))
