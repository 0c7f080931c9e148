"""Ledger: what a mount records of its collections, as a value with a text for the catalog."""

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
        first: The least number of an entry of the catalog that is in it.
        uuid: The uuid of the collection; empty until it is created.
        hash: Portable data hash of what was put into it last.
        pending: Hash of an update that was begun; its outcome is unknown until `hash` is
            the same.
    """

    first: int = 0
    uuid: str = ""
    hash: str = ""
    pending: str = ""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The collections of a mount.

    Attributes:
        mount: Identifies the mount: a property of its collections.
        parts: By their first numbers, ascending.
        ttl: BlobSigningTTL in seconds, as far as it is known; else 0.
        last_number: The highest that a collection's name has; 0 without any.
    """

    mount: str = field(default_factory=lambda: secrets.token_hex(16))
    parts: tuple[Part, ...] = ()
    ttl: float = 0.0
    last_number: int = 0

    @classmethod
    def of(cls, text: str) -> Ledger:
        """Read one; an empty text is that of a new mount.

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
        """Write it."""
        return json.dumps(dataclasses.asdict(self))

    def with_part(self, part: Part) -> Ledger:
        """Return the same ledger with a part, in place of the one that begins there."""
        others = [each for each in self.parts if each.first != part.first]
        parts = tuple(sorted([*others, part], key=lambda each: each.first))
        return dataclasses.replace(self, parts=parts)

    def part_at(self, first: int) -> Part:
        """Return the part that begins at a number; a new one if there is none."""
        return next((each for each in self.parts if each.first == first), Part(first))
