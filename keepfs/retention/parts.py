"""Parts: divides the tree of a mount into several collections if one would be too large.

All functions are pure. A part has the entries whose numbers in the catalog are within a
range. Numbers only grow, so new entries go into the last part, and a change affects only
the part of its file. A part that exceeds the limit is cut; its later entries go into a new
part.
"""

from __future__ import annotations

import bisect
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keepfs.fs.upload.snapshot import StoredNode

#: Bytes of a request besides the manifest: the attributes and their JSON.
_BESIDE = 16 * 1024
_ESCAPED, _WIDE = bytes(range(33)) + b":\\", bytes(range(127, 256))
#: Further bytes of a file: the empty block's locator, position and size of a segment.
_FIXED = 80
#: What each further segment takes beside the name: position and size, of 20 digits at most.
_PLACE = 43


def most_text(max_request_size: int) -> int:
    """Return the most bytes that the JSON of a manifest may have in one request."""
    return max(1, max_request_size - min(_BESIDE, max_request_size // 4))


def text_size(node: StoredNode) -> int:
    """Return the most bytes that a node takes in the JSON of a manifest.

    More are possible if files of one directory have the same blocks in another order: the
    name is then written once for each change of the order. The server then refuses the
    request, and the collection is divided.
    """
    if node.kind not in {stat.S_IFREG, stat.S_IFDIR}:
        return 0
    path = os.fsencode(node.path)
    # An escape is a backslash, doubled in JSON, and three digits; a byte that is not ASCII
    # may be half of \\uXXXX.
    escaped = len(path) - len(path.translate(None, _ESCAPED))
    wide = len(path) - len(path.translate(None, _WIDE))
    name = len(path) + 4 * escaped + 2 * wide
    blocks = sum(len(str(each.locator)) + 1 for each in node.stored.ranges)
    # The name is once with each sequence of blocks. A part of a block may begin and end one, and
    # so may a block that the file has already.
    digests = [each.locator.md5sum for each in node.stored.ranges]
    breaks = sum(not each.is_whole for each in node.stored.ranges)
    breaks += 2 * (len(digests) - len(set(digests)))
    sequences = min(len(digests), 1 + breaks)
    return 2 * name + blocks + _FIXED + max(0, sequences - 1) * (name + _PLACE)


def part_of(firsts: Sequence[int], number: int) -> int:
    """Return the index of the part that has an entry.

    Args:
        firsts: The first number of each part, ascending; that of the first is 0.
        number: The number of the entry.
    """
    return max(0, bisect.bisect_right(firsts, number) - 1)


def cut(firsts: Sequence[int], sizes: Iterable[tuple[int, int]], limit: int) -> list[int]:
    """Return the first number of each part, so that none is larger than the limit.

    Existing parts stay; one that is too large is cut into several. An entry larger than
    the limit gets a separate part.

    Args:
        firsts: The first numbers of the existing parts, ascending; [0] without any.
        sizes: Number and size of each entry, in any order.
        limit: The most bytes of a part.
    """
    found = list(firsts)
    current, filled = -1, 0
    for number, size in sorted(sizes):
        part = part_of(firsts, number)
        if part != current:
            current, filled = part, 0
        elif filled + size > limit:
            found.append(number)
            filled = 0
        filled += size
    return sorted(found)


def numbered(name: str, number: int) -> str:
    """Return the name of a mount's n-th collection; the first has no number in it."""
    return name if number <= 1 else f"{name} ({number})"


def default_name(host: str, mountpoint: str) -> str:
    """Return the default name of a mount's collection."""
    return f"keepfs upload/ of {host}:{mountpoint}"
