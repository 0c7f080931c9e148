"""Receipt: what a store confirmed of one block it was given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keepfs.keep.locator import KeepLocator


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a store confirmed of one block.

    Attributes:
        locator: The block's name, signed where the store signs.
        copies: Confirmed copies, summed over the services.
        services: Who confirmed them: root URLs, or the local store's name.
        classes: Confirmed copies by storage class; empty where nobody says.
    """

    locator: KeepLocator
    copies: int
    services: tuple[str, ...]
    classes: Mapping[str, int] = field(default_factory=dict, hash=False)
