"""Fetches that stall: which of their reservations a waiting fetch may take."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import MAX_BLOCK_SIZE, KeepBlockCache, KeepLocator, KeepReadError
from keepfs.keep.background import Background
from keepfs.keep.caching.in_flight import SILENT, STUCK, Fetch, Reservations
from keepfs.keep.threads import BusyError
from tests.fakes.threads import Running, wait_for, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1024 * 1024
LARGE = 4 * MIB
BUDGET = 4 * LARGE


class Clock:
    """A clock that a test turns, read by many threads."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the seconds that it shows."""
        return self.now


def named(number: int, size: int) -> KeepLocator:
    """Name one of many blocks."""
    return KeepLocator(f"{hashlib.md5(bytes([number]), usedforsecurity=False).hexdigest()}+{size}")


class Service:
    """Sends one block, when the test lets it: first its beginning, then the rest.

    Args:
        cache: Where the block's memory comes from.
        number: Of the block.
        size: Bytes.
    """

    def __init__(self, cache: KeepBlockCache, number: int, size: int = LARGE) -> None:
        self.asked, self.receives = threading.Event(), threading.Event()
        self.begin, self.end = threading.Event(), threading.Event()
        self.name = named(number, size)
        self._cache, self._size = cache, size
        self.reading = Running(
            lambda: cache.get_or_fetch(self.name, self.fetch, timeout=20, claims=True)
        )

    def fetch(self) -> memoryview:
        """Fetch, as a store does."""
        self.asked.set()
        wait_for(self.begin)
        memory = self._cache.allocate_for(self.name, self._size)
        self.receives.set()
        wait_for(self.end)
        return memoryview(memory.first(self._size))

    def let_go(self) -> None:
        """Send everything."""
        self.begin.set()
        self.end.set()


def stalled(cache: KeepBlockCache, count: int = 4) -> list[Service]:
    """Have so many large blocks fetched from services that are silent."""
    services = [Service(cache, number) for number in range(count)]
    for service in services:
        wait_for(service.asked)
    return services


def ended(*services: Service) -> list[int]:
    """Let services send their blocks; return their sizes."""
    for service in services:
        service.let_go()
    return [len(service.reading.result()) for service in services]


def small(cache: KeepBlockCache, number: int, fetch: Callable[[], bytes]) -> memoryview:
    """Read a small block."""
    return cache.get_or_fetch(named(number, 4096), fetch, timeout=20, claims=True)


@pytest.mark.parametrize("is_received", [False, True])
def test_a_small_block_does_not_wait_for_large_ones(*, is_received: bool) -> None:
    cache = KeepBlockCache(BUDGET, clock=Clock())
    services = stalled(cache)
    if is_received:
        for service in services:
            service.begin.set()
            wait_for(service.receives)

    assert len(small(cache, 9, lambda: bytes(4096))) == 4096

    assert ended(*services) == [LARGE] * 4
    assert cache.statistics().in_flight == 0


def test_small_blocks_beyond_the_budget_are_bounded() -> None:
    cache = KeepBlockCache(BUDGET, clock=Clock())
    services = stalled(cache)
    most = 16 * BUDGET // 64 // 4096  # small blocks of 4 KiB
    assert most == 1024
    size = BUDGET // 64  # the largest small block of this cache
    few = [Service(cache, 20 + number, size) for number in range(20)]

    wait_until(lambda: sum(each.asked.is_set() for each in few) == 16)
    wait_until(lambda: cache.statistics().misses == 24)

    assert cache.statistics().in_flight == BUDGET + 16 * size
    assert ended(*services, *few) == [LARGE] * 4 + [size] * 20
    assert cache.statistics().in_flight == 0


def test_a_small_block_neither_waits_for_readers_of_large_ones_nor_evicts_theirs() -> None:
    cache = KeepBlockCache(BUDGET)
    for number in range(4):
        cache.get_or_fetch(named(number, LARGE), lambda: bytes(LARGE), keep_for=60)

    assert len(small(cache, 9, lambda: bytes(4096))) == 4096

    assert cache.statistics().blocks == 4
    assert cache.get_nowait(named(9, 4096).md5sum) is None


def test_a_fetch_that_waits_for_a_reader_continues_when_the_block_is_released() -> None:
    cache = KeepBlockCache(BUDGET, clock=Clock())
    for number in range(4):
        cache.get_or_fetch(named(number, LARGE), lambda: bytes(LARGE), keep_for=60)
    fetch = Running(lambda: len(cache.get_or_fetch(named(9, LARGE), lambda: bytes(LARGE))))
    wait_until(lambda: cache.statistics().misses == 5)

    cache.release(named(2, LARGE).md5sum)

    assert fetch.result() == LARGE
    assert [n for n in range(4) if cache.get_nowait(named(n, LARGE).md5sum) is None] == [2]
    assert cache.statistics().hits == 3


def test_a_silent_fetch_loses_its_reservation_to_a_waiting_one() -> None:
    clock = Clock()
    cache = KeepBlockCache(BUDGET, clock=clock)
    services = stalled(cache)
    clock.now = SILENT

    healthy = Service(cache, 9)
    wait_for(healthy.asked)
    in_flight = cache.statistics().in_flight

    assert ended(healthy) == [LARGE]
    assert in_flight == BUDGET
    assert ended(*services) == [LARGE] * 4
    assert cache.statistics().in_flight == 0


def test_a_fetch_that_receives_keeps_its_reservation() -> None:
    clock = Clock()
    cache = KeepBlockCache(BUDGET, clock=clock)
    services = stalled(cache)
    for service in services:
        service.begin.set()
        wait_for(service.receives)
    clock.now = SILENT

    late = Service(cache, 9)
    wait_until(lambda: cache.statistics().misses == 5)
    begun_early = late.asked.is_set()
    ended(*services)

    assert ended(late) == [LARGE]
    assert not begun_early


def test_one_more_block_is_fetched_while_all_others_stall() -> None:
    clock = Clock()
    cache = KeepBlockCache(128 * MIB, clock=clock)
    whole = 64 * MIB
    services = [Service(cache, number, whole) for number in range(2)]
    for service in services:
        service.begin.set()
        wait_for(service.receives)
    clock.now = STUCK

    one = Service(cache, 9, whole)
    wait_for(one.asked)
    other = Service(cache, 10, whole)
    wait_until(lambda: cache.statistics().misses == 4)
    figures = cache.statistics()
    begun_early = other.asked.is_set()
    assert ended(one) == [whole]
    wait_for(other.asked)  # at once: the others are stuck as before

    assert not begun_early
    assert figures.in_flight == 192 * MIB
    assert ended(other) == [whole]
    assert cache.get_nowait(other.name.md5sum) is not None  # it is read on
    assert ended(*services) == [whole] * 2
    figures = cache.statistics()
    assert figures.in_flight == 0
    assert figures.currsize <= 128 * MIB


def test_a_slow_fetch_that_leaves_memory_does_not_raise_the_limit() -> None:
    clock = Clock()
    cache = KeepBlockCache(BUDGET, clock=clock)
    slow = Service(cache, 0)
    slow.begin.set()
    wait_for(slow.receives)
    clock.now = STUCK + 1

    for number in range(1, 6):
        cache.get_or_fetch(named(number, LARGE), lambda: bytes(LARGE))

    figures = cache.statistics()
    assert figures.currsize + figures.in_flight == BUDGET
    ended(slow)


def test_a_fetch_without_its_reservation_waits_when_its_block_arrives() -> None:
    clock = Clock()
    cache = KeepBlockCache(BUDGET, clock=clock)
    services = stalled(cache)
    clock.now = SILENT
    others = [Service(cache, 10 + number) for number in range(4)]
    for other in others:
        wait_for(other.asked)
        other.begin.set()
        wait_for(other.receives)

    services[0].begin.set()
    ahead = services[0].receives.is_set()
    in_flight = cache.statistics().in_flight
    ended(others[0])
    wait_for(services[0].receives)

    assert not ahead
    assert in_flight == BUDGET
    ended(*services, *others[1:])
    assert cache.statistics().in_flight == 0


def test_memory_for_an_ended_fetch_is_outside_the_budget() -> None:
    cache = KeepBlockCache(BUDGET)

    memory = cache.allocate_for(named(1, 4096), 4096)

    assert len(memory.first(4096)) == 4096
    assert cache.statistics().in_flight == 0


def test_a_block_without_a_size_keeps_only_the_bytes_it_has() -> None:
    cache = KeepBlockCache(256 * MIB)
    name = KeepLocator(named(1, 1).md5sum)
    figures: list[int] = []

    def fetch() -> memoryview:
        figures.append(cache.statistics().in_flight)
        memory = cache.allocate_for(name, 10)
        figures.append(cache.statistics().in_flight)
        return memoryview(memory.first(10))

    cache.get_or_fetch(name, fetch, claims=True)

    assert figures == [64 * MIB, 10]
    assert cache.statistics().in_flight == 0


# --- no thread to fetch in ---


def test_a_get_that_joined_a_fetch_without_a_thread_fetches_the_block() -> None:
    cache = KeepBlockCache(BUDGET)
    name = named(1, 3)
    joiners: list[Running[memoryview]] = []

    def refuse(_work: Callable[[], None]) -> None:
        joiners.extend(Running(lambda: cache.get_or_fetch(name, lambda: b"foo")) for _ in range(3))
        wait_until(lambda: cache.statistics().joined == 3)
        raise BusyError("as many are at work as may be")

    with pytest.raises(BusyError):
        cache.begin(name, bytes, refuse)

    assert [bytes(joiner.result()) for joiner in joiners] == [b"foo"] * 3
    assert cache.statistics().in_flight == 0


def test_a_wait_for_the_size_ends_if_the_fetch_gets_no_thread() -> None:
    cache = KeepBlockCache(BUDGET)
    name = named(1, 3)
    waiting: list[Running[int | None]] = []

    def refuse(_work: Callable[[], None]) -> None:
        begun = cache.begin(name, bytes, refuse)
        assert isinstance(begun, Fetch)
        waiting.append(Running(lambda: begun.wait_for_size(60)))
        raise BusyError("as many are at work as may be")

    with pytest.raises(BusyError):
        cache.begin(name, bytes, refuse)

    assert waiting[0].result() is None
    assert bytes(cache.get_or_fetch(name, lambda: b"foo")) == b"foo"


def test_work_is_refused_if_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    background = Background(2)

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(BusyError, match="no thread can be started"):
            background.spawn(lambda: None)

    assert background.wait_until_idle(0)
    done = threading.Event()
    background.spawn(done.set)
    wait_for(done)


def test_a_fetch_fails_at_the_deadline_of_its_caller() -> None:
    cache = KeepBlockCache(BUDGET, clock=Clock())
    services = stalled(cache)

    with pytest.raises(KeepReadError, match="fetches of other blocks take too long"):
        cache.get_or_fetch(named(9, LARGE), lambda: bytes(LARGE), timeout=0.01, claims=True)

    assert ended(*services) == [LARGE] * 4


def test_the_size_of_a_fetch_is_the_announced_one_then_that_of_the_block() -> None:
    fetch = Fetch(named(1, LARGE), 0)

    assert fetch.wait_for_size(0.0) is None
    fetch.announce(3)
    assert fetch.wait_for_size(0.0) == 3
    fetch.block = memoryview(b"four")
    fetch.end()
    assert fetch.wait_for_size(0.0) == 4


def test_each_wait_for_the_size_raises_a_copy_of_the_failure() -> None:
    fetch = Fetch(named(1, LARGE), 0)
    fetch.failure = KeepReadError("gone")
    fetch.end()

    with pytest.raises(KeepReadError, match="gone") as caught:
        fetch.wait_for_size(0.0)

    assert caught.value is not fetch.failure


def test_the_cache_announces_a_size_to_the_fetch_of_that_block() -> None:
    cache = KeepBlockCache(BUDGET)
    begun = cache.begin(named(1, LARGE), bytes, lambda _work: None)
    assert isinstance(begun, Fetch)

    cache.announce(named(2, LARGE), 7)
    assert begun.wait_for_size(0.0) is None
    cache.announce(named(1, LARGE), 5)

    assert begun.wait_for_size(0.0) == 5


def test_a_failed_fetch_raises_nothing_in_its_thread() -> None:
    cache = KeepBlockCache(BUDGET)
    work: list[Callable[[], None]] = []

    def fail() -> bytes:
        raise KeepReadError("gone")

    begun = cache.begin(named(1, LARGE), fail, work.append)
    work[0]()

    assert isinstance(begun, Fetch)
    assert str(begun.failure) == "gone"


def test_a_fetch_releases_the_bytes_that_it_does_not_need() -> None:
    held = Reservations(BUDGET, Clock())
    fetch = Fetch(named(1, LARGE), 0)
    held.add(fetch)

    assert not held.receive(Fetch(named(2, LARGE), 0), 1)
    assert not held.receive(fetch, LARGE + 1)
    assert not held.receive(fetch, LARGE)
    assert held.receive(fetch, LARGE - 1)
    assert (held.size, fetch.size) == (LARGE - 1, LARGE - 1)


def test_the_longest_silent_fetch_that_claims_its_memory_loses_its_reservation() -> None:
    clock = Clock()
    held = Reservations(BUDGET, clock)
    patient, first, second, last = (
        Fetch(named(number, LARGE), 0, claims=number > 0) for number in range(4)
    )
    for fetch in (patient, first, second, last):
        held.add(fetch)
        clock.now += 0.25

    assert held.take_back(LARGE) == pytest.approx(SILENT + 0.25 - clock.now)
    clock.now = SILENT + 0.25

    assert held.take_back(LARGE) == 0.0
    assert [fetch in held for fetch in (patient, first, second, last)] == [True, False, True, True]
    assert held.take_back(LARGE) == 0.0
    assert second in held


def test_if_no_fetch_may_lose_its_reservation_the_wait_is_until_they_are_stuck() -> None:
    clock = Clock()
    held = Reservations(BUDGET, clock)
    held.add(Fetch(named(1, BUDGET), 0))
    clock.now = STUCK - 0.5

    assert held.take_back(2 * BUDGET) == 0.5
    clock.now = STUCK
    assert held.take_back(2 * BUDGET) is None
    assert held.take_back(BUDGET) == 0.0


def test_a_fetch_added_while_others_are_stuck_does_not_count_as_stuck() -> None:
    clock = Clock()
    held = Reservations(2 * MAX_BLOCK_SIZE, clock)
    one, other, late = (Fetch(named(number, MAX_BLOCK_SIZE), 0) for number in range(3))
    held.add(one)
    held.add(other)
    clock.now = STUCK
    held.add(late)
    assert held.limit() == 3 * MAX_BLOCK_SIZE

    held.discard(other)
    clock.now = 3 * STUCK

    assert held.limit() == 2 * MAX_BLOCK_SIZE


def test_the_last_fetch_loses_its_reservation_exactly_after_the_silence() -> None:
    clock = Clock()
    held = Reservations(BUDGET, clock)
    fetch = Fetch(named(1, BUDGET), 0, claims=True)
    held.add(fetch)

    clock.now = SILENT - 0.5
    assert held.take_back(BUDGET) == 0.5
    assert fetch in held
    clock.now = SILENT
    assert held.take_back(BUDGET) == 0.0
    assert fetch not in held
