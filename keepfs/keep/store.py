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
    from collections.abc import Mapping

    from typing_extensions import Buffer

    from keepfs.keep.buffers import Allocation
    from keepfs.keep.locator import KeepLocator


class ReadObserver:
    """Follows the read of one block, and provides its memory. This one does nothing more.

    A store calls the methods in the thread that receives the block. Where several services
    are asked for it, that is several threads, and a service that fails after it began to
    send the block is followed by another: each method can be called more than once. What
    a method raises ends the read.
    """

    def began(self, size: int) -> None:
        """Note that a service begins to send the block, of `size` bytes. Must not block.

        A local store does not call it.
        """

    def allocate(self, size: int) -> Allocation:
        """Return memory for at least `size` bytes, which the block is received into.

        May block until there is memory.

        Raises:
            KeepReadError: There is none in time.
        """
        return FreshAllocation(size)

    def received_from(self, name: str) -> None:
        """Note the name of the service that sent the block, now that it is verified.

        Args:
            name: The root URL of the service, or the name of the local store.
        """


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How one call of a `Store` is to be made: the same for all requests that it takes.

    Attributes:
        deadline: When the call ends whatever happens: seconds on the monotonic clock.
        retries: Rounds after the first.
        request_id: Goes with the requests.
        headers: Further headers of the requests.
        backoff: How long to wait between rounds.
        observer: Follows a read. Other calls do not use it.
    """

    deadline: float
    retries: int = 0
    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    backoff: Backoff = field(default_factory=Backoff)
    observer: ReadObserver = field(default_factory=ReadObserver)

    def remaining(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    def observed_by(self, observer: ReadObserver) -> CallOptions:
        """Return the same options with another observer."""
        return CallOptions(
            self.deadline, self.retries, self.request_id, self.headers, self.backoff, observer
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a store confirmed of one block.

    Attributes:
        locator: The block's name, signed where the store signs.
        copies: Confirmed copies, summed over the services.
        services: The services that confirmed them: root URLs, or the local store's name.
        classes: Confirmed copies by storage class; empty where nobody says.
    """

    locator: KeepLocator
    copies: int
    services: tuple[str, ...]
    classes: Mapping[str, int] = field(default_factory=dict, hash=False)

    def names_block_of(self, other: Receipt) -> bool:
        """Tell whether both are of one block, whatever the signatures are."""
        return self.locator.stripped() == other.locator.stripped()


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
    """The size and name that a store reports for a block.

    Attributes:
        size: Bytes.
        locator: A name that the store gave it just now, or None.
    """

    size: int
    locator: str | None = None


class Store(Protocol):
    """Where blocks are."""

    def read(self, locator: KeepLocator, call: CallOptions) -> bytes | memoryview:
        """Return a block, verified.

        Raises:
            KeepReadError: It couldn't be read; `cause` says why.
        """

    def find(self, locator: KeepLocator, call: CallOptions) -> Found:
        """Tell what is known of a block without reading it.

        Raises:
            KeepReadError: It isn't there, or can't be asked for; `cause` says why.
        """

    def write(
        self, block: Buffer, locator: KeepLocator, wanted: Wanted, call: CallOptions
    ) -> Receipt:
        """Store a block, which must not change meanwhile.

        Raises:
            KeepWriteError: Not stored as wanted; `cause` says why.
        """

    def free_space(self) -> tuple[int, int]:
        """Return the store's bytes: all, and free."""

    def close(self) -> None:
        """End what is under way. Further calls are refused."""
