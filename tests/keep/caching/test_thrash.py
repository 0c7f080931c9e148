"""The warning about a cache that is too small: when it is logged, and its figures."""

from __future__ import annotations

import functools
import re

import pytest

from keepfs.keep.caching.thrash import Thrash
from tests.fakes.clock import FakeClock
from tests.messages.provoking import assert_shows

MIB = 1024 * 1024


def test_many_refetches_are_logged_with_a_sufficient_size(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    thrash = Thrash(256 * MIB, clock)
    for _ in range(10):
        thrash.missed(None)
        clock.sleep(0.2)
        thrash.missed(lambda: 321 * MIB)

    clock.sleep(60)
    thrash.missed(None)

    [message] = caplog.messages
    assert message == (
        "the cache of 256 MiB is too small: of 20 blocks fetched within a minute, 10 had"
        " been in it; --cache-size 384MiB would have kept them [cache-too-small]"
    )
    assert_shows(caplog.text, "cache-too-small")


def test_few_refetches_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    thrash = Thrash(256 * MIB, clock)
    for number in range(1000):
        thrash.missed((lambda: MIB) if number % 100 == 0 else None)
    clock.sleep(61)
    thrash.missed(None)

    assert caplog.messages == []


def test_the_size_is_measured_at_most_every_tenth_of_a_second() -> None:
    clock = FakeClock()
    thrash = Thrash(256 * MIB, clock)
    measured = []

    def measure() -> int:
        measured.append(clock())
        return MIB

    for _ in range(100):
        clock.sleep(0.01)
        thrash.missed(measure)

    assert 5 < len(measured) < 15


@pytest.mark.parametrize(
    ("again", "new", "is_told"), [(8, 24, True), (7, 0, False), (8, 25, False)]
)
def test_eight_refetches_that_are_a_quarter_of_all_fetches_are_logged(
    again: int, new: int, caplog: pytest.LogCaptureFixture, *, is_told: bool
) -> None:
    clock = FakeClock()
    thrash = Thrash(256 * MIB, clock)
    for number in range(again + new):
        thrash.missed((lambda: MIB) if number < again else None)

    clock.sleep(60)
    thrash.missed(None)

    assert bool(caplog.messages) == is_told


def test_each_interval_is_counted_separately(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    clock.sleep(1000)
    thrash = Thrash(256 * MIB, clock)
    for count, size in ((9, 200 * MIB), (8, 100 * MIB)):
        for _ in range(count):
            thrash.missed(functools.partial(int, size))
        clock.sleep(60)
    thrash.missed(None)

    told = [
        re.findall("of ([0-9]+) blocks.*, ([0-9]+) had.* ([0-9]+MiB)", it)
        for it in caplog.messages
    ]
    assert told == [[("9", "9", "256MiB")], [("8", "8", "128MiB")]]
