"""Slow transfers get a second one if that is likely to be faster."""

from __future__ import annotations

import pytest

from keepfs.keep.services.extras import Extras
from tests.fakes.clock import FakeClock

MIB = 1024 * 1024
SLOW = 40_000.0


@pytest.fixture
def clock() -> FakeClock:
    """Make a clock."""
    return FakeClock()


@pytest.fixture
def extras(clock: FakeClock) -> Extras:
    """Make the gate on that clock."""
    return Extras(clock)


def allowed(extras: Extras) -> int:
    """Count the blocks that may be doubled now; each is."""
    count = 0
    while extras.begin(SLOW, ["a"]):
        count += 1
    return count


def test_at_first_one_block_may_have_a_second_transfer(extras: Extras) -> None:
    assert allowed(extras) == 1
    extras.end(None)
    assert allowed(extras) == 1


def test_each_win_doubles_the_number_of_second_transfers_up_to_sixteen(extras: Extras) -> None:
    counts = []
    for _ in range(6):
        assert extras.begin(SLOW, ["a"])
        extras.end(has_won=True)
        counts.append(allowed(extras))
        for _ in range(counts[-1]):
            extras.end(None)

    assert counts == [2, 4, 8, 16, 16, 16]


def test_a_loss_resets_the_number_to_one_and_doubles_the_pause(
    extras: Extras, clock: FakeClock
) -> None:
    assert extras.begin(SLOW, ["a"])
    extras.end(has_won=True)
    pauses = []
    for _ in range(6):
        assert extras.begin(SLOW, ["a"])
        extras.end(has_won=False)
        begun = clock.now
        while not extras.begin(SLOW, ["a"]):
            clock.advance(1)
        assert not extras.begin(SLOW, ["a"])
        extras.end(None)
        pauses.append(clock.now - begun)

    assert pauses == [60, 120, 240, 480, 960, 960]


def test_a_win_resets_the_pause(extras: Extras, clock: FakeClock) -> None:
    for has_won in (False, False, True, False):
        assert extras.begin(SLOW, ["a"])
        extras.end(has_won=has_won)
        clock.advance(120)

    assert extras.begin(SLOW, ["a"])


def test_there_is_no_second_transfer_if_no_other_service_is_faster(extras: Extras) -> None:
    extras.note("a", MIB, MIB / (3.9 * SLOW))
    extras.note("b", MIB, MIB / (4.1 * SLOW))

    assert not extras.begin(SLOW, ["a"])
    assert not extras.begin(SLOW, [])
    assert extras.begin(SLOW, ["a", "b"])


def test_a_service_of_unknown_rate_may_be_faster(extras: Extras) -> None:
    extras.note("a", MIB, 60)

    assert extras.begin(SLOW, ["a", "b"])


def test_a_rate_is_forgotten_after_ten_minutes(extras: Extras, clock: FakeClock) -> None:
    extras.note("a", MIB, 60)
    clock.advance(600)
    assert not extras.begin(SLOW, ["a"])
    clock.advance(1)
    assert extras.begin(SLOW, ["a"])


def test_an_old_rate_does_not_count_in_the_new_one(extras: Extras, clock: FakeClock) -> None:
    extras.note("a", MIB, 60)
    clock.advance(601)
    extras.note("a", MIB, MIB / (4.1 * SLOW))

    assert extras.begin(SLOW, ["a"])


def test_the_rate_is_a_moving_average(extras: Extras, clock: FakeClock) -> None:
    clock.advance(1000)
    extras.note("a", MIB, MIB / (1.0 * SLOW))
    extras.note("a", MIB, MIB / (9.0 * SLOW))  # 3 times
    assert not extras.begin(SLOW, ["a"])
    extras.note("a", MIB, MIB / (9.0 * SLOW))  # 4.5 times
    assert extras.begin(SLOW, ["a"])


def test_a_small_block_gives_no_rate(extras: Extras) -> None:
    extras.note("a", 256 * 1024 - 1, 60)

    assert extras.begin(SLOW, ["a"])
    extras.end(None)
    extras.note("a", 256 * 1024, 60)
    assert not extras.begin(SLOW, ["a"])
