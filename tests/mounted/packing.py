"""Collections for tests: a tree of files packed into blocks, as arv-put packs it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from keepfs.collections.builder import ManifestBuilder
from keepfs.keep import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keepfs.collections.manifest import Manifest


def packed(
    source: Path, put: Callable[[bytes], str], block_size: int = MAX_BLOCK_SIZE
) -> Manifest:
    """Store the files of a directory one after another, and return their manifest.

    Args:
        source: Directories and regular files.
        put: Stores a block and returns its locator.
        block_size: Bytes of each block but the last.
    """
    paths: list[str] = []
    builder = ManifestBuilder()
    for folder, _, names in os.walk(source):
        below = os.path.relpath(folder, source)
        prefix = "" if below == "." else f"{below}/"
        if prefix:
            builder.add_directory(below)
        paths += [prefix + name for name in names]
    text = bytearray()
    places: list[tuple[str, int, int]] = []
    for path in sorted(paths):
        content = (source / path).read_bytes()
        places.append((path, len(text), len(text) + len(content)))
        text += content
    starts = range(0, len(text), block_size)
    locators = [put(bytes(text[start : start + block_size])) for start in starts]
    for path, begin, end in places:
        ranges = []
        for number in range(begin // block_size, -(-end // block_size)):
            first = max(begin, number * block_size)
            last = min(end, (number + 1) * block_size)
            if last > first:
                ranges.append((locators[number], first - number * block_size, last - first))
        builder.add_file(path, ranges)
    return builder.build()
