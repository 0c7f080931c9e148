"""Part files: names for files and folders that are not complete yet.

A complete file gets its own name by a rename, so that a reader never sees half of it.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: Most bytes of the name that are repeated: with the rest, the name of a part file has 223 bytes
#: at most, and a name may have 255.
_MOST_REPEATED = 200


def part_path(path: Path) -> Path:
    """Return a new name for the part file of `path`: `.NAME.RANDOM.part`, in its directory.

    Two processes that write one file get different names, so that they do not mix their bytes.
    A long NAME is cut between two characters.
    """
    begin = path.name
    while len(os.fsencode(begin)) > _MOST_REPEATED:
        begin = begin[:-1]
    return path.with_name(f".{begin}.{secrets.token_hex(8)}.part")
