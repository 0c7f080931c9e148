"""What a client has done, in numbers that only grow."""

from __future__ import annotations

import threading
from collections import Counter as _Tally
from dataclasses import dataclass, field


class Counter:
    """A number that any thread may add to."""

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
    """Numbers by a name, such as a service's root."""

    def __init__(self) -> None:
        self._values: _Tally[str] = _Tally()
        self._lock = threading.Lock()

    def add(self, name: str, amount: int = 1) -> None:
        """Add to the one of this name."""
        with self._lock:
            self._values[name] += amount

    def get(self) -> dict[str, int]:
        """Return a copy of them all."""
        with self._lock:
            return dict(self._values)


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters of one client.

    Attributes:
        upload: Bytes of blocks sent, once for each PUT that succeeded.
        download: Bytes of verified blocks received.
        puts: Calls that stored.
        gets: Calls that read a block, from the cache too.
        hits: Of these, answered from memory, or by another's fetch.
        misses: Of these, those that fetched.
        requests: Requests sent, by service root.
        failures: Requests that failed, by service root.
        bad_copies: Copies that weren't the block they were asked for, by the
            root of the service that sent them.
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
