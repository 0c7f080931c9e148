"""How a stored block leaves the server, right or spoilt.

Keepstore streams a block in pieces and holds the last one back until it knows
the hash of the whole. So a spoilt block that fits one piece is refused, and of
a longer one everything but the last piece is sent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.keepstore.wire import Answer

if TYPE_CHECKING:
    from tests.keepstore.locators import Locator
    from tests.keepstore.wire import Content

#: Bytes of a piece. Seen in the recordings of spoilt blocks.
PIECE = 65536

_MISMATCH = b"checksum mismatch in stored data\n"


@dataclass(frozen=True, slots=True)
class Stream:
    """A stored block on its way out, in pieces, the last of which is held back.

    Attributes:
        content: What is stored.
        md5sum: The hash of that.
        locator: What was asked for.
    """

    content: Content
    md5sum: str
    locator: Locator

    def get(self) -> Answer:
        """Answer a GET with what gets through."""
        size, held = self.locator.size, len(self.content)
        if size < 0:
            return Answer(200, self.content)
        if size == 0:
            return replace(self.head(), body=self.content)
        sent = self._sent()
        if sent:
            return Answer(200, memoryview(self.content)[:sent], length=size)
        if held in {0, size}:
            return Answer(502, _MISMATCH)
        return Answer(200)

    def head(self) -> Answer:
        """Answer a HEAD: the whole block is checked."""
        size, held = self.locator.size, len(self.content)
        is_right = self.md5sum == self.locator.digest
        if size == 0:
            if is_right:
                return Answer(200, length=held)
            return Answer(502, _MISMATCH, length=held or None)
        if is_right and size == held:
            return Answer(200, length=size)
        return Answer(502, _MISMATCH, length=size if size > 0 and self._sent() else None)

    def _sent(self) -> int:
        size, held = self.locator.size, len(self.content)
        # A piece that would pass the size isn't sent; one that ends there only
        # if what has been read so far has the right hash.
        end = held if held <= size else size // PIECE * PIECE
        if end < size:
            return end
        md5sum = self.md5sum if held == size else _md5sum(memoryview(self.content)[:size])
        if md5sum == self.locator.digest:
            return end
        return max(0, end - 1) // PIECE * PIECE


def _md5sum(content: Content | memoryview) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
