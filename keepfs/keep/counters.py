"""Counters of a client: numbers that only grow. Any thread may add to them and read them.

Each number is increased by one part only. `keepfs.mount.figure_sources` reads them.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter as _Tally
from dataclasses import dataclass, field
from typing import NamedTuple

#: Upper bounds of the classes of a `Histogram`, in seconds. From the answer of a cached
#: request (some 0.1 ms) to the default deadline of a request (600 s), about 2.5 apart.
BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)


class HistogramCounts(NamedTuple):
    """The content of a `Histogram` at one time.

    Attributes:
        counts: Values in each class: up to each of `BOUNDS`, then those above the last.
        total: The sum of all values, in seconds.
    """

    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    total: float = 0.0

    @property
    def number(self) -> int:
        """The number of values."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """The mean value, in seconds; 0.0 without values."""
        return self.total / self.number if self.number else 0.0

    def quantile(self, fraction: float) -> float:
        """Return the upper bound of the class that has this quantile, in seconds.

        Infinite if it is above the last bound; 0.0 without values.

        Args:
            fraction: From 0 to 1.
        """
        wanted, below = fraction * self.number, 0
        for bound, count in zip((*BOUNDS, float("inf")), self.counts, strict=True):
            below += count
            if count and below >= wanted:
                return bound
        return 0.0


class Histogram:
    """Durations, counted by classes. One thread adds; any thread may read."""

    __slots__ = ("_counts", "_total")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._total = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._total += seconds

    def get(self) -> HistogramCounts:
        """Return the counts."""
        return HistogramCounts(tuple(self._counts), self._total)


class Counter:
    """A number that any thread may increase."""

    def __init__(self, value: int = 0) -> None:
        self._value = value
        self._lock = threading.Lock()

    def add(self, amount: int) -> None:
        """Add `amount`."""
        with self._lock:
            self._value += amount

    def get(self) -> int:
        """Return the number."""
        return self._value


class Sum(Counter):
    """The sum of the numbers of a `CounterByName`, plus what is added to this counter."""

    def __init__(self, parts: CounterByName) -> None:
        super().__init__()
        self._parts = parts

    def get(self) -> int:
        """Return the sum, including what was added to this counter."""
        return super().get() + sum(self._parts.get().values())


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
class LastFailure:
    """The last failure of a service.

    Attributes:
        at: When, on the monotonic clock, in seconds.
        reason: One line, without the token.
    """

    at: float
    reason: str


class FailureCounter:
    """Failed requests by service root and cause, and the last failure of each service."""

    def __init__(self) -> None:
        self._values: _Tally[tuple[str, str]] = _Tally()
        self._last: dict[str, LastFailure] = {}
        self._lock = threading.Lock()

    def add(self, name: str, cause: str, reason: str) -> None:
        """Count a failure.

        Args:
            name: The service's root.
            cause: The name of its `Cause`, in lower case.
            reason: One line.
        """
        with self._lock:
            self._values[name, cause] += 1
            self._last[name] = LastFailure(time.monotonic(), reason)

    def get(self) -> dict[str, int]:
        """Return the numbers by root."""
        found: _Tally[str] = _Tally()
        for (name, _), number in self.by_cause().items():
            found[name] += number
        return dict(found)

    def by_cause(self) -> dict[tuple[str, str], int]:
        """Return the numbers by root and cause."""
        with self._lock:
            return dict(self._values)

    def last(self) -> dict[str, LastFailure]:
        """Return the last failure of each root that had one."""
        with self._lock:
            return dict(self._last)


class AnswerHistograms:
    """The times to the heads of answers, by service root and method."""

    def __init__(self) -> None:
        self._histograms: dict[tuple[str, str], Histogram] = {}
        self._lock = threading.Lock()

    def add(self, name: str, method: str, seconds: float) -> None:
        """Count an answer."""
        with self._lock:
            found = self._histograms.get((name, method))
            if found is None:
                found = self._histograms[name, method] = Histogram()
            found.add(seconds)

    def get(self) -> dict[tuple[str, str], HistogramCounts]:
        """Return the counts by root and method."""
        with self._lock:
            return {key: each.get() for key, each in self._histograms.items()}


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters of one client.

    Attributes:
        puts: Calls that stored a block.
        gets: Calls that read a block, or a part of it from the disk. `cached_block` and
            `get_from_cache` aren't counted.
        hits: Those of `gets` answered from memory, by another call's fetch, or with a part
            from the disk.
        misses: Those of `gets` that fetched the block, from the disk or the services.
        retries: Rounds of requests after the first of a call.
        requests: Requests sent, by service root.
        sent: Bytes of blocks sent, counted once for each PUT that succeeded, by root.
        received: Bytes of verified blocks received, by root.
        failures: Requests that failed, by root and cause; a block that a service does not
            have is one of them.
        answers: Times from the start of a request to the head of its answer. For a PUT they
            include the sending of the block.
        bad_copies: Copies whose content doesn't match the locator, or that the service
            reports as damaged, by root; with a local store, damaged files.
        upload: The sum of `sent`.
        download: The sum of `received`.
    """

    puts: Counter = field(default_factory=Counter)
    gets: Counter = field(default_factory=Counter)
    hits: Counter = field(default_factory=Counter)
    misses: Counter = field(default_factory=Counter)
    retries: Counter = field(default_factory=Counter)
    requests: CounterByName = field(default_factory=CounterByName)
    sent: CounterByName = field(default_factory=CounterByName)
    received: CounterByName = field(default_factory=CounterByName)
    failures: FailureCounter = field(default_factory=FailureCounter)
    answers: AnswerHistograms = field(default_factory=AnswerHistograms)
    bad_copies: CounterByName = field(default_factory=CounterByName)
    upload: Counter = field(init=False)
    download: Counter = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "upload", Sum(self.sent))
        object.__setattr__(self, "download", Sum(self.received))
