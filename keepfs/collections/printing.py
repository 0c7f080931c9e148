r"""Printing: the columns of a manifest as text in normal form.

Directories come depth first, sorted, each once. In a directory the blocks come first, in order
of first use, each once; then the files, sorted. Adjacent segments are joined. This is the order
of the Python SDK's `manifest_text(normalize=True)`. A directory without entries, except the
root, has `0:0:\056`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.collections.escapes import escape
from keepfs.keep.locator import EMPTY_BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.collections.tables import Tables

#: Least bytes of a piece, except for the last one.
_PIECE = 1 << 16
_EMPTY = str(EMPTY_BLOCK).encode()


def print_pieces(tables: Tables) -> Iterator[bytes]:
    """Yield the text in normal form, in pieces of about 64 KiB.

    Equal manifests yield equal pieces. The memory that this needs is proportional to the
    number of blocks of the largest directory.
    """
    waiting: list[bytes] = []
    size = 0
    for token in _tokens(tables):
        waiting.append(token)
        size += len(token)
        if size >= _PIECE:
            yield b"".join(waiting)
            waiting.clear()
            size = 0
    if waiting:
        yield b"".join(waiting)


def _tokens(tables: Tables) -> Iterator[bytes]:
    for directory in tables.depth_first():
        if tables.last_files[directory] > tables.first_files[directory]:
            yield _stream_name(tables, directory)
            yield from _stream(tables, directory)
        elif directory and tables.children[directory] == tables.children[directory + 1]:
            yield b"%b %b 0:0:\\056\n" % (_stream_name(tables, directory), _EMPTY)


def _stream_name(tables: Tables, directory: int) -> bytes:
    return b"./" + escape(tables.path(directory)) if directory else b"."


def _stream(tables: Tables, directory: int) -> Iterator[bytes]:
    blocks, size_of = tables.blocks, tables.segments.size
    files = range(tables.first_files[directory], tables.last_files[directory])
    positions: dict[int, int] = {}
    end = 0
    for file in files:
        for block, _, _ in tables.ranges(file, 0, size_of(file)):
            if block not in positions:
                positions[block] = end
                end += blocks.sizes[block]
                yield b" " + blocks.locators[block]
    if not positions:
        yield b" " + _EMPTY
    for file in files:
        name = escape(tables.files[file])
        start = stop = 0
        for block, offset, length in tables.ranges(file, 0, size_of(file)):
            position = positions[block] + offset
            if position != stop or stop == start:
                if stop > start:
                    yield b" %d:%d:%b" % (start, stop - start, name)
                start = position
            stop = position + length
        yield b" %d:%d:%b" % (start, stop - start, name)
    yield b"\n"
