"""Block stores for tests: one in a dict, one that fails as told, one that waits at gates.

What every block store promises is in `tests/contracts/block_store.py`;
`DictStore` is held to it as the real ones are. All may be called from any
thread.
"""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING, Literal, TypeAlias

from keepfs.keep import (
    MAX_BLOCK_SIZE,
    Cause,
    KeepLocator,
    KeepReadError,
    KeepWriteError,
    NotFoundError,
    Receipt,
)
from keepfs.keep.locator import EMPTY_BLOCK
from tests.fakes.threads import PATIENCE

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from keepfs.fs.block_store import BlockParts, BlockStore
    from keepfs.keep import KeepRequestError

#: The calls that may wait or fail.
Call: TypeAlias = Literal["get_block", "put_block", "head_block", "probe_block"]


class DictStore:
    """Blocks in a dict.

    What was read once is answered by `cached_block` from then on, until
    `forget_cached`.

    Args:
        capacity: Bytes it takes; a put beyond them fails as a full disk does.

    Attributes:
        blocks: What is stored, by digest; a test may change it at will.
        calls: Every get, put, head and probe, in order, with the block's digest.
        name: What receipts call it.
    """

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.capacity = capacity
        self.blocks: dict[str, bytes] = {}
        self.calls: list[tuple[Call, str]] = []
        self.name = "dict:"
        self._cached: set[str] = set()
        self.disk_parts: BlockParts | None = None
        self._lock = threading.Lock()

    def cached_block(
        self, locator: KeepLocator, keep_for: float | None = 0.0
    ) -> memoryview | None:
        """Return a block that was read before, else None; nothing is thrown out here."""
        del keep_for
        if _is_empty(locator):
            return memoryview(b"")
        with self._lock:
            if locator.permission_expired() or locator.md5sum not in self._cached:
                return None
        return memoryview(self._block(locator))

    def release(self, locator: KeepLocator) -> None:
        """Do nothing: nothing is evicted here."""

    def has_room(self, size: int) -> bool:
        """Tell whether a block is one of the store's size."""
        return size <= MAX_BLOCK_SIZE

    def services_of(self, locator: KeepLocator) -> tuple[str, ...]:
        """Name the store, for a block that was read or put."""
        called = {("get_block", locator.md5sum), ("put_block", locator.md5sum)}
        with self._lock:
            return (self.name,) if called.intersection(self.calls) else ()

    def get_block(self, locator: KeepLocator) -> memoryview:
        """Return a block."""
        if _is_empty(locator):
            return memoryview(b"")
        with self._lock:
            self.calls.append(("get_block", locator.md5sum))
            block = self._block(locator)
            self._cached.add(locator.md5sum)
        return memoryview(block)

    def head_block(self, locator: KeepLocator) -> int:
        """Return a block's size."""
        if _is_empty(locator):
            return 0
        with self._lock:
            self.calls.append(("head_block", locator.md5sum))
            return len(self._block(locator))

    def lookup_wait(self, most: float) -> float:
        """Let lookups wait as long as they may."""
        return most

    def probe_block(self, locator: KeepLocator, wait: float) -> int | None:  # noqa: ARG002
        """Return a block's size; from now on it is answered by `cached_block`."""
        if _is_empty(locator):
            return 0
        with self._lock:
            self.calls.append(("probe_block", locator.md5sum))
            size = len(self._block(locator))
            self._cached.add(locator.md5sum)
        return size

    def put_block(
        self, block: Buffer, copies: int, *, locator: KeepLocator | None = None
    ) -> Receipt:
        """Keep a copy of a block; as many copies as wanted are confirmed."""
        content = bytes(block)
        if len(content) > MAX_BLOCK_SIZE:
            raise KeepWriteError(f"a block of {len(content)} bytes")
        named, locator = locator, KeepLocator.of_block(content)
        if named not in {None, locator}:
            raise KeepWriteError(f"{named} isn't the name of {locator}")
        with self._lock:
            self.calls.append(("put_block", locator.md5sum))
            others = sum(len(it) for md5, it in self.blocks.items() if md5 != locator.md5sum)
            if others + len(content) > self.capacity:
                raise KeepWriteError(f"no room for {locator}", cause=Cause.FULL)
            self.blocks[locator.md5sum] = content
        return Receipt(locator, copies=copies, services=(self.name,))

    def free_space(self) -> tuple[int, int]:
        """Return the capacity, and what is left of it."""
        with self._lock:
            return self.capacity, self.capacity - sum(map(len, self.blocks.values()))

    def forget_cached(self) -> None:
        """Make every further `cached_block` answer None until the block is read again."""
        with self._lock:
            self._cached.clear()

    def _block(self, locator: KeepLocator) -> bytes:
        block = self.blocks.get(locator.md5sum)
        if block is None:
            raise NotFoundError(f"{locator.stripped()} not found")
        if locator.size not in {None, len(block)}:
            raise KeepReadError(f"{locator.stripped()} has another size", cause=Cause.CORRUPT)
        return block


class _StoreInFront:
    """Another store, with something done before each call that may wait or fail.

    Args:
        store: Answers the calls.
    """

    disk_parts: BlockParts | None = None

    def __init__(self, store: BlockStore) -> None:
        self._store = store

    def _before(self, call: Call) -> None:
        """Do what this store adds; may raise."""
        raise NotImplementedError

    def cached_block(
        self, locator: KeepLocator, keep_for: float | None = 0.0
    ) -> memoryview | None:
        """Return what the store has in memory, which neither waits nor fails."""
        return self._store.cached_block(locator, keep_for)

    def release(self, locator: KeepLocator) -> None:
        """Pass it to the store."""
        self._store.release(locator)

    def has_room(self, size: int) -> bool:
        """Ask the store."""
        return self._store.has_room(size)

    def services_of(self, locator: KeepLocator) -> tuple[str, ...]:
        """Ask the store."""
        return self._store.services_of(locator)

    def get_block(self, locator: KeepLocator) -> memoryview:
        """Return a block from the store."""
        self._before("get_block")
        return self._store.get_block(locator)

    def head_block(self, locator: KeepLocator) -> int:
        """Return a block's size from the store."""
        self._before("head_block")
        return self._store.head_block(locator)

    def lookup_wait(self, most: float) -> float:
        """Ask the store."""
        return self._store.lookup_wait(most)

    def probe_block(self, locator: KeepLocator, wait: float) -> int | None:
        """Begin to fetch a block from the store."""
        self._before("probe_block")
        return self._store.probe_block(locator, wait)

    def put_block(
        self, block: Buffer, copies: int, *, locator: KeepLocator | None = None
    ) -> Receipt:
        """Put a block into the store."""
        self._before("put_block")
        return self._store.put_block(block, copies, locator=locator)

    def free_space(self) -> tuple[int, int]:
        """Ask the store."""
        return self._store.free_space()


class FailingStore(_StoreInFront):
    """Another store, but for the calls that it was told to fail.

    Args:
        store: Answers the others.
    """

    def __init__(self, store: BlockStore) -> None:
        super().__init__(store)
        self._failures: dict[Call, list[KeepRequestError]] = collections.defaultdict(list)
        self._broken: dict[Call, KeepRequestError] = {}
        self._lock = threading.Lock()

    def fail_next(self, call: Call, *errors: KeepRequestError) -> None:
        """Fail the next of these calls with the first error, the one after with the second, ..."""
        with self._lock:
            self._failures[call].extend(errors)

    def fail_always(self, call: Call, error: KeepRequestError) -> None:
        """Fail all of these calls, until `heal`."""
        with self._lock:
            self._broken[call] = error

    def heal(self) -> None:
        """Fail no more."""
        with self._lock:
            self._failures.clear()
            self._broken.clear()

    def _before(self, call: Call) -> None:
        with self._lock:
            if self._failures[call]:
                raise self._failures[call].pop(0).fresh()
            if call in self._broken:
                raise self._broken[call].fresh()


class GatedStore(_StoreInFront):
    """Another store, behind gates: a call whose gate is shut waits until it is opened.

    Args:
        store: Answers, once the gate lets the call through.
    """

    def __init__(self, store: BlockStore) -> None:
        super().__init__(store)
        self._gates: dict[Call, threading.Event] = {
            "get_block": threading.Event(),
            "put_block": threading.Event(),
            "head_block": threading.Event(),
            "probe_block": threading.Event(),
        }
        for gate in self._gates.values():
            gate.set()
        self._waiting = collections.Counter[Call]()
        self._changed = threading.Condition()

    def shut(self, call: Call) -> None:
        """Let no further call of this kind through."""
        self._gates[call].clear()

    def open(self, call: Call) -> None:
        """Let them through again, those that wait first."""
        self._gates[call].set()

    def wait_for_callers(self, call: Call, count: int = 1) -> None:
        """Wait until so many callers stand at the gate.

        Raises:
            TimeoutError: They didn't come.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting[call] >= count, PATIENCE):
                raise TimeoutError(f"{self._waiting[call]} of {count} callers came to {call}")

    def waiting(self, call: Call) -> int:
        """Tell how many callers stand at the gate."""
        with self._changed:
            return self._waiting[call]

    def probe_block(self, locator: KeepLocator, wait: float) -> int | None:
        """Ask the store; behind a shut gate nobody says anything, for however long one waits."""
        is_open = self._gates["probe_block"].is_set()
        return self._store.probe_block(locator, wait) if is_open else None

    def _before(self, call: Call) -> None:
        with self._changed:
            self._waiting[call] += 1
            self._changed.notify_all()
        try:
            if not self._gates[call].wait(PATIENCE):
                raise TimeoutError(f"the gate of {call} was never opened")
        finally:
            with self._changed:
                self._waiting[call] -= 1


def _is_empty(locator: KeepLocator) -> bool:
    return locator.md5sum == EMPTY_BLOCK.md5sum and not locator.size
