"""Store: the one interface to where blocks are, with its values; Receipt: what a store confirmed.

Calls may block, and any thread may make them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from keepfs.keep.buffers import FreshAllocation
from keepfs.keep.retry import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Buffer

    from keepfs.keep.buffers import Allocation
    from keepfs.keep.locator import KeepLocator


@dataclass(frozen=True, slots=True)
class Call:
    """How one call is to be made.

    Attributes:
        deadline: When it ends whatever happens, on the monotonic clock.
        retries: Rounds after the first.
        request_id: Goes with its requests.
        headers: Further ones that go with them.
        answered: Called with the block's size as soon as a service begins to send it.
        sent: Called with the name of who sent the block, once it is verified.
        backoff: How long to wait between rounds.
        allocate: Makes the memory that a block is read into.
    """

    deadline: float
    retries: int = 0
    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    answered: Callable[[int], None] | None = None
    sent: Callable[[str], None] = lambda _: None
    backoff: Backoff = field(default_factory=Backoff)
    allocate: Callable[[int], Allocation] = FreshAllocation

    def remaining(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self.deadline - time.monotonic())


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


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be confirmed of a block that is stored.

    Attributes:
        copies: Replicas, at least 1.
        classes: Storage classes; None for the cluster's default.
    """

    copies: int = 1
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a store says of a block that it has.

    Attributes:
        size: Bytes.
        locator: A name that the store gave it just now, or None.
    """

    size: int
    locator: str | None = None


class Store(Protocol):
    """Where blocks are."""

    def read(self, locator: KeepLocator, call: Call) -> bytes | memoryview:
        """Return a block, verified.

        Raises:
            KeepReadError: It couldn't be read; `cause` says why.
        """

    def find(self, locator: KeepLocator, call: Call) -> Found:
        """Tell what is known of a block without reading it.

        Raises:
            KeepReadError: It isn't there, or can't be asked for; `cause` says why.
        """

    def write(self, block: Buffer, locator: KeepLocator, wanted: Wanted, call: Call) -> Receipt:
        """Store a block, which must not change meanwhile.

        Raises:
            KeepWriteError: Not stored as wanted; `cause` says why.
        """

    def free_space(self) -> tuple[int, int]:
        """Return the store's bytes: all, and free."""

    def close(self) -> None:
        """End what is under way. Further calls are refused."""
