"""Parts: the tree of a mount as one collection, or as several where one would be too large.

Pure. A part has the entries whose numbers in the catalog are within a range. Numbers only
grow, so what is new goes into the last part, and a change touches the part of its file
only. A part that grows over the limit is cut; what is cut off goes into a new part.
"""

from __future__ import annotations

import bisect
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keepfs.fs.upload.snapshot import StoredNode

#: Bytes of a request beside the manifest: attributes, and JSON around them.
_BESIDE = 16 * 1024
_ESCAPED, _WIDE = bytes(range(33)) + b":\\", bytes(range(127, 256))
#: What a file takes beside: the empty block's locator, position and size of a segment.
_FIXED = 80
#: What each further segment takes beside the name: position and size, of 20 digits at most.
_PLACE = 43


def most_text(max_request_size: int) -> int:
    """Return how many bytes of JSON a manifest may take, at most, in one request."""
    return max(1, max_request_size - min(_BESIDE, max_request_size // 4))


def text_size(node: StoredNode) -> int:
    """Return how many bytes a node takes in a manifest's JSON, at most."""
    if node.kind not in {stat.S_IFREG, stat.S_IFDIR}:
        return 0
    path = os.fsencode(node.path)
    # An escape is a backslash, doubled in JSON, and three digits; a byte that is not ASCII
    # may be half of \\uXXXX.
    escaped = len(path) - len(path.translate(None, _ESCAPED))
    wide = len(path) - len(path.translate(None, _WIDE))
    name = len(path) + 4 * escaped + 2 * wide
    blocks = sum(len(str(each.locator)) + 1 for each in node.stored.ranges)
    # The name is once with each part of a block; whole blocks may be joined.
    parts = sum(not each.is_whole for each in node.stored.ranges)
    return 2 * name + blocks + _FIXED + max(0, parts - 1) * (name + _PLACE)


def part_of(firsts: Sequence[int], number: int) -> int:
    """Return the index of the part that has an entry.

    Args:
        firsts: The first number of each part, ascending; that of the first is 0.
        number: The number of the entry.
    """
    return max(0, bisect.bisect_right(firsts, number) - 1)


def cut(firsts: Sequence[int], sizes: Iterable[tuple[int, int]], limit: int) -> list[int]:
    """Return the first number of each part, so that none is larger than the limit.

    Parts that are there stay; one that is too large is cut into several. An entry that
    is larger by itself has a part of its own.

    Args:
        firsts: The present first entries, ascending; [0] at first.
        sizes: Number and size of each entry, in any order.
        limit: Bytes.
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
    """Return the name of a mount's n-th collection: the first has the plain one."""
    return name if number <= 1 else f"{name} ({number})"


def default_name(host: str, mountpoint: str) -> str:
    """Return the name of the collection of a mount."""
    return f"keepfs upload/ of {host}:{mountpoint}"
