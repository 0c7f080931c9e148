"""Receipt: what a store confirmed of one block it was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keepfs.keep.locator import KeepLocator


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a store confirmed of one block.

    Attributes:
        locator: The block's name, signed where the store signs.
        copies: Confirmed copies, summed over the services.
        services: Who confirmed them: root URLs, or the local store's name.
    """

    locator: KeepLocator
    copies: int
    services: tuple[str, ...]
