"""Counters of a client: numbers that only grow."""

from __future__ import annotations

import threading
from collections import Counter as _Tally
from dataclasses import dataclass, field


class Counter:
    """A number that any thread may increase."""

    def __init__(self, value: int = 0) -> None:
        self._value = value
        self._lock = threading.Lock()

    def add(self, amount: int) -> None:
        """Add to it."""
        with self._lock:
            self._value += amount

    def get(self) -> int:
        """Return it."""
        return self._value


class CounterByName:
    """A number for each name, such as a service's root."""

    def __init__(self) -> None:
        self._values: _Tally[str] = _Tally()
        self._lock = threading.Lock()

    def add(self, name: str, amount: int = 1) -> None:
        """Add to the number of this name."""
        with self._lock:
            self._values[name] += amount

    def get(self) -> dict[str, int]:
        """Return a copy of all numbers."""
        with self._lock:
            return dict(self._values)


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters of one client.

    Attributes:
        upload: Bytes of blocks sent, counted once for each PUT that succeeded.
        download: Bytes of verified blocks received.
        puts: Calls that stored a block.
        gets: Calls that read a block, from the cache too.
        hits: Those of `gets` answered from memory, or by another call's fetch.
        misses: Those of `gets` that fetched the block.
        requests: Requests sent, by service root.
        failures: Requests that failed, by service root.
        bad_copies: Copies received whose content doesn't match the locator, by
            service root.
    """

    upload: Counter = field(default_factory=Counter)
    download: Counter = field(default_factory=Counter)
    puts: Counter = field(default_factory=Counter)
    gets: Counter = field(default_factory=Counter)
    hits: Counter = field(default_factory=Counter)
    misses: Counter = field(default_factory=Counter)
    requests: CounterByName = field(default_factory=CounterByName)
    failures: CounterByName = field(default_factory=CounterByName)
    bad_copies: CounterByName = field(default_factory=CounterByName)
