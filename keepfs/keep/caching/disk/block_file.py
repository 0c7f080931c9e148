"""The format of a cached block's file, and reading it with every byte verified.

    bytes of the block | checksum of each piece, 8 bytes each | footer, 56 bytes

A piece is 16 KiB, the last one may be shorter. Its checksum is XXH3 (64 bits) with a
seed made of the block's MD5 and the number of the piece, so a piece of another block
or of another place does not match. The footer names the block and its size, and has a
checksum (XXH3, 128 bits) of itself and the table. Integers are little-endian.

The checksums detect damage. They are no defence against an attacker: only the user may
write to the directory. XXH3 takes 0.01 ms a MiB on the machine of docs/performance.md,
BLAKE2b 0.76 ms.
"""

from __future__ import annotations

import array
import errno
import io
import os
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from keepfs.keep.buffers import Allocation, BufferPool

#: Bytes of a piece: a random read costs one, and a disk sends 16 KiB almost as fast as 4.
PIECE = 16 * 1024
#: Magic number, MD5, size of the block, size of a piece, reserved, checksum.
_FOOTER = struct.Struct("<8s16sQII16s")
_MAGIC = b"KEEPFSB1"
#: Bytes of one checksum in the table.
_SUM = 8
#: Most bytes that are read and verified in the event loop: the largest read of the kernel, which
#: takes about 100 µs. And the flag of preadv2(2), which the usual file systems support.
MOST_NOWAIT, _NOWAIT = 1024 * 1024 + 2 * PIECE, getattr(os, "RWF_NOWAIT", 0)
#: Most bytes that `begin_part` has the kernel read. With more, a thread's share of the time is
#: small.
MOST_BEGUN = 128 * 1024
#: Least bytes of a part whose memory comes from the pool; malloc reuses smaller ones.
_LEAST_POOLED = 128 * 1024
#: Bytes of one read of a whole block.
_CHUNK = 4 * 1024 * 1024


class DamagedError(Exception):
    """A file isn't the intact file of its block; the message has the reason."""


@dataclass(frozen=True, slots=True)
class PieceTable:
    """The verified checksums of a block's pieces.

    Attributes:
        size: Bytes of the block.
        seed: The first 64 bits of the block's MD5; the seed of piece n is `seed ^ n`.
        sums: The checksum of each piece, in order; 8 bytes each.
    """

    size: int
    seed: int
    sums: memoryview

    def check(self, first: int, content: memoryview) -> None:
        """Verify pieces.

        Args:
            first: The number of the first piece.
            content: The bytes of whole pieces.

        Raises:
            DamagedError: A piece doesn't match its checksum.
        """
        digest = xxhash.xxh3_64_intdigest
        for number, begin in enumerate(range(0, len(content), PIECE), first):
            if digest(content[begin : begin + PIECE], self.seed ^ number) != self.sums[number]:
                raise DamagedError(f"piece {number} doesn't match its checksum")


def pieces_of(size: int) -> int:
    """Return the number of pieces of a block of `size` bytes."""
    return -(-size // PIECE)


def file_size(size: int) -> int:
    """Return the bytes of the file of a block of `size` bytes."""
    return size + _SUM * pieces_of(size) + _FOOTER.size


def tail_of(md5sum: str, block: Buffer) -> bytes:
    """Return the bytes after a block in its file: the table and the footer."""
    view = memoryview(block).cast("B")
    seed = _seed(md5sum)
    digest = xxhash.xxh3_64_intdigest
    sums = [
        digest(view[begin : begin + PIECE], seed ^ number)
        for number, begin in enumerate(range(0, len(view), PIECE))
    ]
    table = struct.pack(f"<{len(sums)}Q", *sums)
    named = struct.pack("<8s16sQII", _MAGIC, bytes.fromhex(md5sum), len(view), PIECE, 0)
    return table + named + xxhash.xxh3_128_digest(table + named)


def read_table(file: int, length: int, md5sum: str) -> PieceTable:
    """Read and verify the table of a file. Blocks.

    Args:
        file: The file's descriptor.
        length: The file's length, in bytes.
        md5sum: The digest that the file is named by.

    Raises:
        DamagedError: It isn't the whole file of this block.
        OSError: It can't be read.
    """
    count = pieces_of_file(length)
    size = length - _FOOTER.size - _SUM * count
    tail = os.pread(file, _SUM * count + _FOOTER.size, size) if size >= 0 else b""
    if len(tail) != _SUM * count + _FOOTER.size:
        raise DamagedError("the file is cut off")
    magic, md5, named_size, piece, _, checksum = _FOOTER.unpack_from(tail, _SUM * count)
    if magic != _MAGIC or piece != PIECE:
        raise DamagedError("the file isn't one of this cache, or is cut off")
    if checksum != xxhash.xxh3_128_digest(memoryview(tail)[:-16]):
        raise DamagedError("the table of checksums is damaged")
    if md5.hex() != md5sum:
        raise DamagedError(f"the file has the block {md5.hex()}")
    if named_size != size:
        raise DamagedError("the file has another length than its block")
    sums = array.array("Q", tail[: _SUM * count])
    if sys.byteorder == "big":
        sums.byteswap()
    return PieceTable(size, _seed(md5sum), memoryview(sums).toreadonly())


def pieces_of_file(length: int) -> int:
    """Return the number of pieces in a file of `length` bytes; see `file_size`."""
    return max(0, -(-(length - _FOOTER.size) // (PIECE + _SUM)))


def read_part(
    file: int, table: PieceTable, begin: int, end: int, lend: Callable[[int], memoryview]
) -> memoryview:
    """Return bytes of a block, after all pieces they are in were verified. Blocks.

    Args:
        file: The file's descriptor.
        table: The file's table.
        begin: The offset of the first byte.
        end: The offset after the last byte, at most the block's size.
        lend: Lends memory of a size; see `part_memory`.

    Raises:
        DamagedError: A piece is damaged or missing.
        OSError: The file can't be read.
    """
    start, stop = _pieces_around(table, begin, end)
    content = lend(stop - start)
    if os.preadv(file, [content], start) != len(content):
        raise DamagedError("the file is cut off")
    table.check(start // PIECE, content)
    return content[begin - start : end - start]


def read_part_nowait(
    file: int, table: PieceTable, begin: int, end: int, lend: Callable[[int], memoryview]
) -> memoryview | None:
    """Return a small part of a block like `read_part`, if its pages are in the page cache.

    If they aren't, recent kernels begin to read them, as `begin_part` does.

    Returns:
        None if the pages aren't in memory, or the part is large or damaged: use `read_part`.

    Raises:
        io.UnsupportedOperation: The file system, or the Python, has no reads that do not wait.
    """
    start, stop = _pieces_around(table, begin, end)
    if stop - start > MOST_NOWAIT:
        return None
    if not _NOWAIT:
        raise io.UnsupportedOperation("RWF_NOWAIT")
    content = lend(stop - start)
    try:
        if os.preadv(file, [content], start, _NOWAIT) != len(content):
            return None
        table.check(start // PIECE, content)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EINVAL}:
            raise io.UnsupportedOperation("RWF_NOWAIT") from error
        return None
    except DamagedError:
        return None
    return content[begin - start : end - start]


def begin_part(file: int, table: PieceTable, begin: int, end: int) -> bool:
    """Have the kernel read a small part of a block into the page cache; don't wait for it.

    It blocks if the queue of the disk is full.

    Returns:
        Whether it was begun; False if the part is large: use `read_part`.
    """
    start, stop = _pieces_around(table, begin, end)
    if stop - start > MOST_BEGUN:
        return False
    try:
        os.posix_fadvise(file, start, stop - start, os.POSIX_FADV_WILLNEED)
    except OSError:
        return False
    return True


def part_memory(pool: BufferPool) -> Callable[[int], memoryview]:
    """Return a function that lends memory for parts, of a pool whose buffers have `MOST_NOWAIT`.

    Fresh memory for each MiB takes as long as the copy, since the kernel clears its pages.
    """

    def lend(size: int) -> memoryview:
        if _LEAST_POOLED <= size <= MOST_NOWAIT:
            return pool.lend(MOST_NOWAIT)[:size]
        return memoryview(bytearray(size))

    return lend


def _pieces_around(table: PieceTable, begin: int, end: int) -> tuple[int, int]:
    return begin // PIECE * PIECE, min(table.size, pieces_of(end) * PIECE)


def read_whole(
    file: int, table: PieceTable, allocate: Callable[[int], Allocation]
) -> bytes | memoryview:
    """Return a block, verified. Blocks.

    Args:
        file: The file's descriptor.
        table: The file's table.
        allocate: Allocates the memory of the block.

    Raises:
        DamagedError: A piece is damaged or missing.
        OSError: The file can't be read.
    """
    allocation = allocate(table.size)
    view = allocation.view[: table.size]
    try:
        for begin in range(0, table.size, _CHUNK):
            with view[begin : begin + _CHUNK] as chunk:
                if os.preadv(file, [chunk], begin) != len(chunk):
                    raise DamagedError("the file is cut off")
                table.check(begin // PIECE, chunk)
    finally:
        view.release()
    return allocation.first(table.size)


def _seed(md5sum: str) -> int:
    return int(md5sum[:16], 16)
