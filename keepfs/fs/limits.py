"""YieldingLimiter: a limit on threads that stops counting a call once it is stalled.

Otherwise calls to one stalled service would take all slots, and calls to healthy
services would wait behind them. For the trio thread only.
"""

from __future__ import annotations

import trio

#: Seconds after which a call frees its slot. Guessed: a small block takes milliseconds;
#: a large one on a slow link may take longer, and then more calls run concurrently.
DEFAULT_PATIENCE = 2.0


class YieldingLimiter:
    """Limits the calls younger than `patience`, and with a higher limit all calls.

    It has the two methods that `trio.to_thread.run_sync` needs of a limiter.
    Waiting calls get their slots in order of arrival.

    Args:
        most: Most concurrent calls younger than `patience`.
        most_at_all: Most concurrent calls of any age.
        patience: Seconds after which a call counts as stalled.
    """

    def __init__(self, most: int, most_at_all: int, patience: float = DEFAULT_PATIENCE) -> None:
        self._most = most
        self._most_at_all = most_at_all
        self._patience = patience
        #: The start time of each call; the oldest is first.
        self._begun: dict[object, float] = {}
        self._turn = trio.Lock()
        self._released = trio.Event()

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Wait for a slot; if one is free, don't take a turn of the event loop."""
        if not self._turn.locked() and self._until_free() <= 0:
            self._begun[borrower] = trio.current_time()
            return
        async with self._turn:
            while (wait := self._until_free()) > 0:
                self._released = trio.Event()
                with trio.move_on_after(wait):
                    await self._released.wait()
            self._begun[borrower] = trio.current_time()

    def release_on_behalf_of(self, borrower: object) -> None:
        """Free the slot."""
        del self._begun[borrower]
        self._released.set()

    def _until_free(self) -> float:
        """Return the seconds until a slot is free if no call ends before."""
        if len(self._begun) >= self._most_at_all:
            return float("inf")
        young_since = trio.current_time() - self._patience
        young = [begun for begun in self._begun.values() if begun > young_since]
        return 0.0 if len(young) < self._most else young[0] - young_since
