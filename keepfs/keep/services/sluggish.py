"""Sluggish: the services that were recently silent or slow, which are used last."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

#: Seconds for which a silent or slow service is moved to the end of the order. Guessed.
_SLUGGISH = 30.0


class Rooted(Protocol):
    """A service with its base URL."""

    root: str


_Service = TypeVar("_Service", bound=Rooted)


class Sluggish:
    """Services that were silent or slow, by root. Any thread may use it.

    For 30 s they are moved to the end of the order. Otherwise each call would wait for
    them again.

    Args:
        clock: Replaces `time.monotonic`, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._lock = threading.Lock()

    def note(self, sluggish: Collection[str], answered: Collection[str]) -> None:
        """Record which services were silent or slow, and which are so no more."""
        if not sluggish and not self._until:
            return
        with self._lock:
            now = self._clock()
            until = {root: end for root, end in self._until.items() if end > now}
            until |= dict.fromkeys(sluggish, now + _SLUGGISH)
            for root in answered:
                until.pop(root, None)
            self._until = until  # replaced as a whole: other threads may be reading it

    def __contains__(self, root: object) -> bool:
        """Return whether a service was recently silent or slow."""
        return isinstance(root, str) and self._until.get(root, 0.0) > self._clock()

    def last(self, services: Iterable[_Service]) -> list[_Service]:
        """Return the services with recently silent or slow ones moved to the end."""
        found = list(services)
        if self._until:
            found.sort(key=lambda service: service.root in self)
        return found
