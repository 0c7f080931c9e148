"""Store: the interface of all block stores, and the values of its calls.

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
    """Observes the read of one block, and provides its memory. This class ignores the events.

    A store calls the methods in the thread that receives the block. If several services
    are asked for it, these are several threads. A service that fails after it began to
    send the block is followed by another, so each method can be called more than once.
    An exception of a method ends the read.
    """

    def began(self, size: int) -> None:
        """Handle the start of the transfer of `size` bytes. Must not block.

        A local store does not call it.
        """

    def allocate(self, size: int) -> Allocation:
        """Return memory for at least `size` bytes, into which the block is received.

        May block until memory is free.

        Raises:
            KeepReadError: No memory became free in time.
        """
        return FreshAllocation(size)

    def received_from(self, name: str) -> None:
        """Handle the end of the read: the block was received and verified.

        Args:
            name: The root URL of the service, or the name of the local store.
        """


@dataclass(frozen=True, slots=True)
class CallOptions:
    """The options of one call of a `Store`, the same for all its requests.

    Attributes:
        deadline: The end of the call, on the monotonic clock, in seconds.
        retries: Rounds after the first.
        request_id: Sent with the requests.
        headers: Further headers of the requests.
        backoff: The waits between rounds.
        observer: Observes a read. Other calls do not use it.
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
    """What a store confirmed for one put.

    Attributes:
        locator: The block's locator, signed if the store signs.
        copies: Confirmed copies, summed over the services.
        services: The services that confirmed them: root URLs, or the local store's name.
        classes: Confirmed copies by storage class; empty if the services report none.
    """

    locator: KeepLocator
    copies: int
    services: tuple[str, ...]
    classes: Mapping[str, int] = field(default_factory=dict, hash=False)

    def names_block_of(self, other: Receipt) -> bool:
        """Return whether both are for the same block; signatures are ignored."""
        return self.locator.stripped() == other.locator.stripped()


@dataclass(frozen=True, slots=True)
class Wanted:
    """The confirmations that a put requires.

    Attributes:
        copies: Replicas, at least 1.
        classes: Storage classes; None: the cluster's defaults.
    """

    copies: int = 1
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The size and name that a store reports for a block.

    Attributes:
        size: Bytes.
        locator: The locator in the store's answer, or None.
    """

    size: int
    locator: str | None = None


class Store(Protocol):
    """A store of blocks."""

    def read(self, locator: KeepLocator, call: CallOptions) -> bytes | memoryview:
        """Return a block, verified.

        Raises:
            KeepReadError: It couldn't be read; `cause` has the reason.
        """

    def find(self, locator: KeepLocator, call: CallOptions) -> Found:
        """Return the size of a block without receiving it.

        Raises:
            KeepReadError: The store doesn't have it, or can't be asked; `cause` has the
                reason.
        """

    def write(
        self, block: Buffer, locator: KeepLocator, wanted: Wanted, call: CallOptions
    ) -> Receipt:
        """Store a block, which must not change meanwhile.

        Raises:
            KeepWriteError: The required copies aren't confirmed; `cause` has the reason.
        """

    def free_space(self) -> tuple[int, int]:
        """Return the capacity and the free space of the store, in bytes."""

    def close(self) -> None:
        """End the calls in progress; a store of services refuses further calls."""
