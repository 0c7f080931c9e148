"""Ledger: the record of a mount's collections, a value that the catalog stores as a text."""

from __future__ import annotations

import dataclasses
import json
import secrets
from dataclasses import dataclass, field

#: The ledger's key among the texts of a catalog.
KEY = "retention"


@dataclass(frozen=True, slots=True)
class Part:
    """One collection of a mount.

    Attributes:
        first: The number of the first catalog entry in it.
        uuid: The uuid of the collection; empty until it is created.
        hash: The portable data hash of the contents that the mount last gave it.
        pending: The hash of the contents of an update whose outcome is unknown; else empty.
    """

    first: int = 0
    uuid: str = ""
    hash: str = ""
    pending: str = ""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The collections of a mount.

    Attributes:
        mount: The id of the mount: 32 random hex digits, a property of its collections.
        parts: The parts, sorted by their first numbers.
        ttl: BlobSigningTTL in seconds; 0 if unknown.
        last_number: The highest number of a created collection; see `parts.numbered`. 0
            without any.
    """

    mount: str = field(default_factory=lambda: secrets.token_hex(16))
    parts: tuple[Part, ...] = ()
    ttl: float = 0.0
    last_number: int = 0

    @classmethod
    def of(cls, text: str) -> Ledger:
        """Parse the text of a ledger; an empty text gives a new one.

        Raises:
            ValueError: The text is damaged.
        """
        if not text:
            return cls()
        try:
            given = json.loads(text)
            parts = tuple(Part(**each) for each in given.pop("parts"))
            return cls(parts=parts, **given)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the record of collections is damaged: {error}") from error

    def as_text(self) -> str:
        """Return the text that `of` parses."""
        return json.dumps(dataclasses.asdict(self))

    def with_part(self, part: Part) -> Ledger:
        """Return a copy with a part, which replaces one with the same first number."""
        others = [each for each in self.parts if each.first != part.first]
        parts = tuple(sorted([*others, part], key=lambda each: each.first))
        return dataclasses.replace(self, parts=parts)

    def part_at(self, first: int) -> Part:
        """Return the part with this first number; a new one if there is none."""
        return next((each for each in self.parts if each.first == first), Part(first))
