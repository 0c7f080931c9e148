"""The block cache: bounded in bytes, one fetch per block, blocks kept for their readers."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import signal
import threading
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from keepfs.keep import KeepBlockCache, KeepLocator, KeepReadError, NotFoundError
from tests.fakes.clock import FakeClock
from tests.fakes.threads import Running, wait_for, wait_until

if TYPE_CHECKING:
    from types import FrameType

LIMIT = 30


def block_of(number: int, size: int) -> bytes:
    """Make one of many blocks."""
    return bytes([number]) * size


def named(number: int, size: int | None = None, hint: str = "") -> KeepLocator:
    """Name one of many blocks; its digest is its number's alone."""
    md5sum = hashlib.md5(bytes([number]), usedforsecurity=False).hexdigest()
    return KeepLocator(md5sum + ("" if size is None else f"+{size}") + hint)


def put(cache: KeepBlockCache, number: int, size: int) -> None:
    """Have a block in the cache."""
    cache.get_or_fetch(named(number, size), lambda: block_of(number, size))


def cached(cache: KeepBlockCache, *numbers: int) -> list[int]:
    """Tell which of these blocks are in the cache."""
    return [n for n in numbers if cache.get_nowait(named(n).md5sum) is not None]


def never() -> NoReturn:
    """Be a fetch that nobody may make."""
    raise AssertionError("this block was to come from the cache")


class GatedFetch:
    """A fetch that says when it has begun, and ends when it is let.

    Args:
        result: What it brings, or fails with.
    """

    def __init__(self, result: bytes | BaseException) -> None:
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.calls = 0
        self._result = result

    def __call__(self) -> bytes:
        """Fetch."""
        self.calls += 1
        self.begun.set()
        wait_for(self.gate)
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result


# --- one thread ---


def test_a_block_is_fetched_once() -> None:
    cache = KeepBlockCache()

    first = cache.get_or_fetch(named(1, 3), lambda: b"foo")
    again = cache.get_or_fetch(named(1, 3), never)

    assert bytes(first) == bytes(again) == b"foo"
    statistics = cache.statistics()
    assert (statistics.hits, statistics.misses, statistics.joined) == (1, 1, 0)


def test_a_block_is_found_by_its_digest_with_any_hints() -> None:
    cache = KeepBlockCache()
    put(cache, 1, 3)

    block = cache.get_or_fetch(named(1, None, "+Zfoo"), never)

    assert bytes(block) == block_of(1, 3)


def test_a_cached_block_is_no_copy_and_cannot_be_written_to() -> None:
    content = bytearray(b"foo")
    cache = KeepBlockCache()

    cache.get_or_fetch(named(1, 3), lambda: memoryview(content))
    block = cache.get_nowait(named(1).md5sum)

    assert block is not None
    assert block.readonly
    assert block.obj is content


def test_a_block_that_is_not_cached_is_reported_without_a_fetch() -> None:
    cache = KeepBlockCache()

    assert cache.get_nowait(named(1).md5sum) is None
    assert cache.statistics().misses == 0


def test_a_block_without_bytes_is_kept_too() -> None:
    cache = KeepBlockCache(LIMIT)

    put(cache, 1, 0)

    assert cached(cache, 1) == [1]
    assert cache.statistics().currsize == 0


def test_a_block_fetched_twice_stays_before_one_fetched_once() -> None:
    cache = KeepBlockCache(LIMIT)
    for number in (1, 2, 3):
        put(cache, number, 10)
    cache.get_nowait(named(1).md5sum)
    cache.get_or_fetch(named(2), never)

    put(cache, 4, 10)

    assert cached(cache, 1, 2, 3, 4) == [1, 2, 4]


def test_no_more_blocks_are_evicted_than_needed() -> None:
    cache = KeepBlockCache(LIMIT)
    for number in (1, 2, 3):
        put(cache, number, 10)

    put(cache, 4, 11)

    assert len(cached(cache, 1, 2, 3, 4)) == 2
    assert cache.statistics().currsize == 21


def test_a_failed_fetch_is_not_kept() -> None:
    cache = KeepBlockCache()

    def fail() -> NoReturn:
        raise NotFoundError("no such block")

    with pytest.raises(NotFoundError):
        cache.get_or_fetch(named(1, 3), fail)

    statistics = cache.statistics()
    assert (statistics.blocks, statistics.currsize, statistics.in_flight) == (0, 0, 0)
    assert bytes(cache.get_or_fetch(named(1, 3), lambda: b"foo")) == b"foo"


def test_a_block_larger_than_the_budget_is_returned_but_not_kept() -> None:
    cache = KeepBlockCache(LIMIT)
    put(cache, 1, 10)

    block = cache.get_or_fetch(named(2, 31), lambda: block_of(2, 31))

    assert len(block) == 31
    assert cached(cache, 1, 2) == []
    assert cache.statistics().in_flight == 0


def test_a_block_as_large_as_the_budget_is_kept() -> None:
    cache = KeepBlockCache(LIMIT)
    put(cache, 1, 1)

    put(cache, 2, LIMIT)

    assert cached(cache, 1, 2) == [2]


def test_a_block_of_unknown_size_reserves_the_largest_size() -> None:
    cache = KeepBlockCache(LIMIT)
    put(cache, 1, 10)
    at_fetch = []

    def fetch() -> bytes:
        at_fetch.append(cache.statistics())
        return block_of(2, 10)

    cache.get_or_fetch(named(2), fetch)

    assert (at_fetch[0].in_flight, at_fetch[0].currsize) == (64 * 1024 * 1024, 0)
    assert cached(cache, 2) == [2]


def test_a_cleared_cache_is_empty() -> None:
    cache = KeepBlockCache()
    put(cache, 1, 3)

    cache.clear()

    assert cached(cache, 1) == []
    assert cache.statistics().currsize == 0


def test_the_default_budget_is_the_sdks() -> None:
    assert KeepBlockCache().statistics().maxsize == 256 * 1024 * 1024


class CacheModel(RuleBasedStateMachine):
    """Whatever is asked for, the bytes are right, and no more are held than there may be."""

    NUMBERS = st.integers(0, 7)
    SIZES = st.integers(0, LIMIT + 3)

    def __init__(self) -> None:
        super().__init__()
        self.cache = KeepBlockCache(LIMIT)
        self.last: dict[int, bytes] = {}  # what was fetched last of each

    @rule(number=NUMBERS, size=SIZES, hinted=st.none() | SIZES)
    def fetch(self, number: int, size: int, hinted: int | None) -> None:
        """Ask for a block; its locator may tell no size, or a wrong one."""
        held = self.cache.statistics()

        def fetch() -> bytes:
            self.last[number] = block_of(number, size)
            return self.last[number]

        found = self.cache.get_or_fetch(named(number, hinted), fetch)

        assert bytes(found) == self.last[number]
        missed = self.cache.statistics().misses > held.misses
        room = max(size, LIMIT + 1 if hinted is None else hinted)
        if missed and held.currsize + room <= LIMIT:
            assert self.cache.statistics().blocks == held.blocks + 1
        if len(found) <= LIMIT:
            self.cache.get_or_fetch(named(number), never)

    @rule(number=NUMBERS, size=SIZES)
    def fetch_in_vain(self, number: int, size: int) -> None:
        """Ask for a block that can't be had, unless it is there."""

        def fail() -> NoReturn:
            raise KeepReadError("in vain")

        misses = self.cache.statistics().misses
        with contextlib.suppress(KeepReadError):
            found = self.cache.get_or_fetch(named(number, size), fail)
            assert bytes(found) == self.last[number]
            assert self.cache.statistics().misses == misses

    @rule(number=NUMBERS, keep_for=st.sampled_from([0, 0.001]))
    def look(self, number: int, keep_for: float) -> None:
        """Ask for a block if it is there."""
        found = self.cache.get_nowait(named(number).md5sum, keep_for)

        assert found is None or bytes(found) == self.last[number]

    @rule()
    def clear(self) -> None:
        """Forget everything."""
        self.cache.clear()
        assert self.cache.statistics().blocks == 0

    @invariant()
    def bytes_are_within_the_budget(self) -> None:
        """Compare the figures."""
        statistics = self.cache.statistics()
        assert 0 <= statistics.currsize <= statistics.maxsize == LIMIT
        assert statistics.in_flight == 0


TestCacheModel = CacheModel.TestCase


# --- many threads, one block ---


def test_concurrent_readers_of_a_block_share_one_fetch() -> None:
    cache = KeepBlockCache()
    fetch = GatedFetch(b"foo")

    callers = [Running(lambda: cache.get_or_fetch(named(1, 3), fetch)) for _ in range(50)]
    wait_until(lambda: cache.statistics().joined == 49)
    fetch.gate.set()
    blocks = [caller.result() for caller in callers]

    assert fetch.calls == 1
    assert {bytes(block) for block in blocks} == {b"foo"}
    statistics = cache.statistics()
    assert (statistics.misses, statistics.joined, statistics.hits) == (1, 49, 0)


def test_waiting_readers_share_a_failure_after_one_try() -> None:
    cache = KeepBlockCache()
    fetch = GatedFetch(NotFoundError("no such block", {"http://a/": OSError("gone")}))

    callers = [Running(lambda: cache.get_or_fetch(named(1, 3), fetch)) for _ in range(50)]
    wait_until(lambda: cache.statistics().joined == 49)
    fetch.gate.set()
    failures = [caller.failure() for caller in callers]

    assert fetch.calls == 1
    assert {str(failure) for failure in failures} == {
        "no such block: service http://a/ raised OSError (gone)"
    }
    assert all(isinstance(failure, NotFoundError) for failure in failures)
    assert len({id(failure) for failure in failures}) == 50


@pytest.mark.parametrize(
    "failure",
    [
        PermissionError(errno.EACCES, "Permission denied", "/blocks/x"),
        TimeoutError("timed out"),
        MemoryError(),
        ValueError("what?"),
    ],
    ids=repr,
)
def test_waiting_readers_get_any_failure_unchanged(failure: Exception) -> None:
    cache = KeepBlockCache()
    fetch = GatedFetch(failure)

    callers = [Running(lambda: cache.get_or_fetch(named(1, 3), fetch)) for _ in range(2)]
    wait_until(lambda: cache.statistics().joined == 1)
    fetch.gate.set()
    failures = [caller.failure() for caller in callers]

    assert [repr(it) for it in failures] == [repr(failure)] * 2
    assert [str(it) for it in failures] == [str(failure)] * 2


def test_waiting_readers_get_an_error_for_an_interrupted_fetch() -> None:
    cache = KeepBlockCache()
    fetch = GatedFetch(KeyboardInterrupt())

    owner = Running(lambda: cache.get_or_fetch(named(1, 3), fetch))
    wait_for(fetch.begun)
    waiter = Running(lambda: cache.get_or_fetch(named(1, 3), fetch))
    wait_until(lambda: cache.statistics().joined == 1)
    fetch.gate.set()

    assert isinstance(owner.failure(), KeyboardInterrupt)
    assert isinstance(waiter.failure(), KeepReadError)
    assert "given up" in str(waiter.failure())
    assert cache.statistics().in_flight == 0


def test_a_caller_interrupted_before_its_fetch_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    cache = KeepBlockCache()
    with monkeypatch.context() as patch:
        patch.setattr("keepfs.keep.caching.thrash.Thrash.missed", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cache.get_or_fetch(named(1, 3), never)

    assert bytes(cache.get_or_fetch(named(1, 3), lambda: b"foo", timeout=1.0)) == b"foo"


@pytest.mark.parametrize("hint", ["+Zfoo", f"+A{'0' * 40}@ffffffff"])
def test_a_differently_hinted_locator_does_not_share_a_failure(hint: str) -> None:
    cache = KeepBlockCache()
    failing = GatedFetch(KeepReadError("the hints are wrong"))

    owner = Running(lambda: cache.get_or_fetch(named(1, 3), failing))
    wait_for(failing.begun)
    other = Running(lambda: cache.get_or_fetch(named(1, 3, hint), lambda: b"foo"))
    wait_until(lambda: cache.statistics().joined == 1)
    failing.gate.set()

    assert str(owner.failure()) == "the hints are wrong"
    assert bytes(other.result()) == b"foo"


def test_a_differently_hinted_locator_shares_a_success() -> None:
    cache = KeepBlockCache()
    fetch = GatedFetch(b"foo")

    owner = Running(lambda: cache.get_or_fetch(named(1, 3), fetch))
    wait_for(fetch.begun)
    other = Running(lambda: cache.get_or_fetch(named(1, 3, "+Zfoo"), never))
    wait_until(lambda: cache.statistics().joined == 1)
    fetch.gate.set()

    assert bytes(owner.result()) == bytes(other.result()) == b"foo"


def test_waiting_readers_get_a_block_that_is_too_large_to_keep() -> None:
    cache = KeepBlockCache(LIMIT)
    fetch = GatedFetch(block_of(1, 31))

    callers = [Running(lambda: cache.get_or_fetch(named(1, 31), fetch)) for _ in range(5)]
    wait_until(lambda: cache.statistics().joined == 4)
    fetch.gate.set()

    assert {bytes(caller.result()) for caller in callers} == {block_of(1, 31)}
    assert fetch.calls == 1


def test_clearing_the_cache_does_not_end_a_fetch() -> None:
    cache = KeepBlockCache()
    fetch = GatedFetch(b"foo")
    owner = Running(lambda: cache.get_or_fetch(named(1, 3), fetch))
    wait_for(fetch.begun)

    cache.clear()
    fetch.gate.set()

    assert bytes(owner.result()) == b"foo"
    assert cached(cache, 1) == [1]


# --- many threads, many blocks ---


def test_other_blocks_are_answered_while_one_is_fetched() -> None:
    cache = KeepBlockCache()
    put(cache, 2, 3)
    fetch = GatedFetch(b"foo")
    owner = Running(lambda: cache.get_or_fetch(named(1, 3), fetch))
    wait_for(fetch.begun)

    assert cached(cache, 2) == [2]
    assert bytes(cache.get_or_fetch(named(3, 3), lambda: b"bar")) == b"bar"

    fetch.gate.set()
    owner.result()


def test_blocks_are_evicted_before_a_fetch_begins() -> None:
    cache = KeepBlockCache(LIMIT)
    for number in (1, 2, 3):
        put(cache, number, 10)
    fetch = GatedFetch(block_of(4, 15))

    owner = Running(lambda: cache.get_or_fetch(named(4, 15), fetch))
    wait_for(fetch.begun)
    during = cache.statistics()
    fetch.gate.set()
    owner.result()

    assert (during.currsize, during.in_flight) == (10, 15)
    assert len(cached(cache, 1, 2, 3)) == 1
    assert cached(cache, 4) == [4]


def test_concurrent_fetches_fill_the_budget_and_no_more() -> None:
    cache = KeepBlockCache(LIMIT)
    three = threading.Barrier(3, timeout=20)
    figures = []

    def fetch() -> bytes:
        three.wait()  # passes only if three fetches run at once
        figures.append(cache.statistics())
        three.wait()  # and none begins before these end
        return b"0123456789"

    callers = [
        Running(functools.partial(cache.get_or_fetch, named(number, 10), fetch))
        for number in range(21)
    ]
    for caller in callers:
        caller.result()

    assert len(figures) == 21
    assert all(figure.in_flight + figure.currsize <= LIMIT for figure in figures)
    assert cache.statistics().in_flight == 0
    assert cache.statistics().blocks == 3


def test_a_fetch_without_memory_waits_for_another_to_end() -> None:
    cache = KeepBlockCache(LIMIT)
    first, second = GatedFetch(block_of(1, 20)), GatedFetch(block_of(2, 20))
    second.gate.set()
    one = Running(lambda: cache.get_or_fetch(named(1, 20), first))
    wait_for(first.begun)

    two = Running(lambda: cache.get_or_fetch(named(2, 20), second))
    wait_until(lambda: cache.statistics().misses == 2)
    begun_early = second.begun.is_set()
    in_flight = cache.statistics().in_flight
    first.gate.set()
    one.result()
    two.result()

    assert not begun_early
    assert in_flight == 20
    assert cached(cache, 1, 2) == [2]


def test_a_fetch_waits_until_a_reader_has_finished_a_block() -> None:
    cache = KeepBlockCache(LIMIT)
    for number in (1, 2, 3):
        put(cache, number, 10)
        cache.get_nowait(named(number).md5sum, 60)
    other = GatedFetch(block_of(4, 10))
    owner = Running(lambda: cache.get_or_fetch(named(4, 10), other))
    wait_until(lambda: cache.statistics().misses == 4)
    begun_early = other.begun.is_set()

    cache.get_nowait(named(2).md5sum)  # its end
    wait_for(other.begun)
    other.gate.set()
    owner.result()

    assert not begun_early
    assert cached(cache, 1, 2, 3, 4) == [1, 3, 4]


def test_a_fetch_waits_for_slow_readers_for_a_limited_time() -> None:
    clock = FakeClock()
    cache = KeepBlockCache(LIMIT, clock=clock)
    for number in (1, 2, 3):
        put(cache, number, 10)
        cache.get_nowait(named(number).md5sum, 0.01)
        clock.advance(0.001)
    fetched: list[memoryview] = []
    owner = Running(
        lambda: fetched.append(cache.get_or_fetch(named(4, 10), lambda: block_of(4, 10)))
    )

    clock.advance(1)
    owner.result()

    assert bytes(fetched[0]) == block_of(4, 10)


def test_only_blocks_with_readers_take_room() -> None:
    cache = KeepBlockCache(LIMIT)
    for number in (1, 2, 3):
        put(cache, number, 10)
    idle = cache.has_room(30)
    cache.get_nowait(named(1).md5sum, 60)

    assert idle
    assert cache.has_room(20)
    assert not cache.has_room(21)


def test_what_is_fetched_again_is_counted() -> None:
    cache = KeepBlockCache(LIMIT)
    for number in (1, 2, 3, 4, 1, 2, 3, 4):
        put(cache, number, 10)

    statistics = cache.statistics()
    assert 0 < statistics.refetched < 4
    assert statistics.refetch_ratio == statistics.refetched / statistics.misses
    assert KeepBlockCache().statistics().refetch_ratio == 0


def test_a_failed_fetch_releases_its_memory_to_a_waiting_one() -> None:
    cache = KeepBlockCache(LIMIT)
    failing = GatedFetch(KeepReadError("in vain"))
    one = Running(lambda: cache.get_or_fetch(named(1, 20), failing))
    wait_for(failing.begun)
    two = Running(lambda: cache.get_or_fetch(named(2, 20), lambda: block_of(2, 20)))
    wait_until(lambda: cache.statistics().misses == 2)

    failing.gate.set()

    assert str(one.failure()) == "in vain"
    assert bytes(two.result()) == block_of(2, 20)


def test_a_caller_interrupted_while_it_waits_for_memory_leaves_nothing_behind() -> None:
    cache = KeepBlockCache(LIMIT)
    first = GatedFetch(block_of(1, 20))
    one = Running(lambda: cache.get_or_fetch(named(1, 20), first))
    wait_for(first.begun)

    def interrupt(_number: int, frame: FrameType | None) -> None:
        # Only where it waits for room: this test's subject is no other moment.
        if frame is not None and frame.f_code is threading.Condition.wait.__code__:
            raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        with pytest.raises(InterruptedError):
            cache.get_or_fetch(named(2, 20), never)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    during = cache.statistics().in_flight
    first.gate.set()
    one.result()

    assert during == 20
    assert cache.statistics().in_flight == 0
    put(cache, 2, 20)
    assert cached(cache, 1, 2) == [2]


def test_a_block_larger_than_the_budget_is_fetched_alone() -> None:
    cache = KeepBlockCache(LIMIT)
    small, large, later = (GatedFetch(block_of(n, size)) for n, size in ((1, 1), (2, 99), (3, 1)))
    one = Running(lambda: cache.get_or_fetch(named(1, 1), small))
    wait_for(small.begun)
    two = Running(lambda: cache.get_or_fetch(named(2, 99), large))
    wait_until(lambda: cache.statistics().misses == 2)
    early = [large.begun.is_set()]

    small.gate.set()
    wait_for(large.begun)
    during = cache.statistics()
    three = Running(lambda: cache.get_or_fetch(named(3, 1), later))
    wait_until(lambda: cache.statistics().misses == 3)
    early.append(later.begun.is_set())
    large.gate.set()
    later.gate.set()

    assert [len(caller.result()) for caller in (one, two, three)] == [1, 99, 1]
    assert early == [False, False]
    assert (during.currsize, during.in_flight) == (0, 99)
    assert cached(cache, 2, 3) == [3]


def test_a_block_larger_than_its_locator_said_is_not_kept_beyond_the_budget() -> None:
    cache = KeepBlockCache(LIMIT)
    slow, lying = GatedFetch(block_of(1, 25)), GatedFetch(block_of(2, 20))
    lying.gate.set()
    one = Running(lambda: cache.get_or_fetch(named(1, 25), slow))
    wait_for(slow.begun)

    block = cache.get_or_fetch(named(2, 5), lying)
    during = cache.statistics()
    slow.gate.set()
    one.result()

    assert len(block) == 20
    assert during.currsize + during.in_flight <= LIMIT
    assert cached(cache, 1, 2) == [1]
