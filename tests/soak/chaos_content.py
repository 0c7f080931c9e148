"""Bytes that carry their own identity, for the chaos soak.

Each piece of 64 KiB begins with the label of its content and its own number, so
that bytes in the wrong place, or of another version, are recognised. Standard
library only: the agents import it.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

#: Bytes of a piece.
PIECE = 65536
#: Fewest bytes that can't be the same in two contents.
FEWEST = 100
#: Sizes of small files and blocks.
SIZES = (FEWEST, 3000, 20_000, 70_000, 200_000)


def identified(label: str, size: int) -> bytes:
    """Make that many bytes that name `label` in each piece."""
    filler = random.Random(label).randbytes(min(size, PIECE))  # noqa: S311 - content, not secrets
    pieces = []
    for number in range(-(-size // PIECE)):
        head = f"<{label} #{number}>\n".encode()
        pieces.append((head + filler[len(head) :])[: size - number * PIECE])
    return b"".join(pieces)


def md5_of(data: bytes) -> str:
    """Hash bytes as Keep does."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Recipe:
    """Bytes that are made where they are needed: a label and a size."""

    label: str
    size: int

    def make(self) -> bytes:
        """Make the bytes."""
        return identified(self.label, self.size)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a file was found to have.

    Attributes:
        size: In bytes.
        md5: Of all bytes.
        head: The first bytes, for reports.
    """

    size: int
    md5: str
    head: bytes = b""

    @classmethod
    def of(cls, data: bytes) -> Seen:
        """Describe these bytes."""
        return cls(len(data), md5_of(data), data[:48])

    def __str__(self) -> str:
        return f"{self.size} bytes {self.md5[:8]} {self.head!r}"


@dataclass(frozen=True, slots=True)
class Content:
    """What a file may have.

    Attributes:
        label: Names it in reports.
        source: The bytes, or how to make them; None: the file isn't there.
        size: In bytes.
        md5: Of all bytes.
    """

    label: str
    source: bytes | Recipe | None
    size: int
    md5: str

    @classmethod
    def of(cls, label: str, source: bytes | Recipe) -> Content:
        """Name these bytes."""
        data = source.make() if isinstance(source, Recipe) else source
        return cls(label, source, len(data), md5_of(data))

    def data(self) -> bytes:
        """Return the bytes; none for a file that isn't there."""
        return self.source.make() if isinstance(self.source, Recipe) else self.source or b""

    def is_seen(self, seen: Seen | None) -> bool:
        """Tell whether this is what was found, whole."""
        if seen is None or self.source is None:
            return seen is None and self.source is None
        return (seen.size, seen.md5) == (self.size, self.md5)

    def begins_with(self, seen: Seen | None) -> bool:
        """Tell whether a first part of this, or all, is what was found."""
        if seen is None or self.source is None or seen.size > self.size:
            return False
        return md5_of(self.data()[: seen.size]) == seen.md5

    def __str__(self) -> str:
        return self.label


#: A file that isn't there.
ABSENT = Content("absent", None, -1, "")
