"""Which failures are retried, when, and how often."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfs.keep.retry import Backoff, RetryLoop, Verdict
from tests.fakes.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterable

BACKOFFS = st.builds(
    Backoff,
    first=st.floats(0, 100),
    factor=st.floats(1, 100),
    cap=st.floats(0, 1000),
)
DRAWS = st.floats(0, 1, exclude_max=True)
#: How long each round takes, in seconds.
ROUNDS = st.lists(st.floats(0, 500), min_size=8, max_size=8)


def rounds(
    retries: int,
    clock: FakeClock,
    *,
    backoff: Backoff | None = None,
    total: float | None = None,
    draw: float = 0.5,
    durations: Iterable[float] = (),
) -> list[float]:
    """Run every round to its end, each taking its time; return when each began."""
    began: list[float] = []
    takes = itertools.chain(durations, itertools.repeat(0.0))
    loop = RetryLoop(
        retries,
        backoff=backoff,
        total=total,
        sleep=clock.sleep,
        clock=clock,
        draw=lambda: draw,
    )
    for attempt, duration in zip(loop, takes, strict=False):
        assert attempt == len(began)
        began.append(clock.now)
        clock.advance(duration)
    return began


# --- verdicts ---

# Two differ from the SDK's, deliberately: 429 (too many requests) and 499 (keepstore's own
# deadline passed while the request waited) both mean "later", and the SDK gives up on them.
TRANSIENT = {408, 409, 423, 429, 499, 500, 502, 503, 504}


@pytest.mark.parametrize("status", range(200, 300))
def test_every_status_of_the_class_two_hundred_is_success(status: int) -> None:
    assert Verdict.of(status) is Verdict.SUCCESS


@pytest.mark.parametrize("status", sorted(TRANSIENT))
def test_a_transient_status_is_worth_a_retry(status: int) -> None:
    assert Verdict.of(status) is Verdict.TRANSIENT


@pytest.mark.parametrize("status", [-1, 0, 1, 99, 600, 999, 10**6])
def test_a_missing_answer_is_worth_a_retry(status: int) -> None:
    assert Verdict.of(status) is Verdict.TRANSIENT


@pytest.mark.parametrize(
    "status", [100, 199, 300, 302, 400, 401, 403, 404, 405, 410, 413, 422, 501, 507, 599]
)
def test_a_refusal_is_final(status: int) -> None:
    assert Verdict.of(status) is Verdict.PERMANENT


@given(st.integers(100, 599))
def test_every_other_status_is_final(status: int) -> None:
    if 200 <= status <= 299:
        expected = Verdict.SUCCESS
    elif status in TRANSIENT:
        expected = Verdict.TRANSIENT
    else:
        expected = Verdict.PERMANENT

    assert Verdict.of(status) is expected


# --- waits ---


@given(BACKOFFS, st.integers(0, 10_000), DRAWS)
def test_a_wait_is_in_the_upper_half_of_its_nominal_length(
    backoff: Backoff, attempt: int, draw: float
) -> None:
    nominal = min(backoff.cap, backoff.first * backoff.factor ** min(attempt, 64))

    wait = backoff.wait(attempt, draw)

    assert nominal / 2 <= wait <= nominal <= backoff.cap


@given(BACKOFFS, st.integers(0, 1000), DRAWS)
def test_waits_never_shrink_from_round_to_round(
    backoff: Backoff, attempt: int, draw: float
) -> None:
    assert backoff.wait(attempt, draw) <= backoff.wait(attempt + 1, draw)


def test_the_nominal_wait_doubles_from_two_seconds_to_a_minute() -> None:
    waits = [Backoff().wait(attempt, draw=math.nextafter(1, 0)) for attempt in range(8)]

    assert waits == pytest.approx([2, 4, 8, 16, 32, 60, 60, 60])


def test_any_number_of_rounds_causes_no_overflow() -> None:
    assert Backoff().wait(10**9, draw=0) == 30


# --- rounds ---


@given(st.integers(0, 7), BACKOFFS, DRAWS, ROUNDS)
def test_there_are_as_many_rounds_as_retries_and_one(
    retries: int, backoff: Backoff, draw: float, durations: list[float]
) -> None:
    began = rounds(retries, FakeClock(), backoff=backoff, draw=draw, durations=durations)

    assert len(began) == retries + 1


@given(st.integers(0, 7), BACKOFFS, DRAWS, ROUNDS)
def test_there_is_no_wait_before_the_first_round_nor_after_the_last(
    retries: int, backoff: Backoff, draw: float, durations: list[float]
) -> None:
    clock = FakeClock(now=1000)

    began = rounds(retries, clock, backoff=backoff, draw=draw, durations=durations)

    assert began[0] == 1000
    assert clock.now == began[-1] + durations[retries]
    assert len(clock.sleeps) <= retries


@given(st.integers(0, 7), BACKOFFS, DRAWS, ROUNDS)
def test_no_wait_is_longer_than_the_cap(
    retries: int, backoff: Backoff, draw: float, durations: list[float]
) -> None:
    clock = FakeClock()

    rounds(retries, clock, backoff=backoff, draw=draw, durations=durations)

    assert all(0 < wait <= backoff.cap for wait in clock.sleeps)


@given(st.integers(0, 7), BACKOFFS, DRAWS, ROUNDS)
def test_a_round_starts_no_sooner_than_the_wait_after_the_start_of_the_one_before(
    retries: int, backoff: Backoff, draw: float, durations: list[float]
) -> None:
    began = rounds(retries, FakeClock(), backoff=backoff, draw=draw, durations=durations)

    gaps = [after - before for before, after in itertools.pairwise(began)]
    expected = [
        max(duration, backoff.wait(attempt, draw))
        for attempt, duration in enumerate(durations[: len(gaps)])
    ]
    assert gaps == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 7), BACKOFFS, DRAWS, ROUNDS, st.floats(0, 1000))
def test_no_round_but_the_first_starts_at_or_after_the_deadline(
    retries: int, backoff: Backoff, draw: float, durations: list[float], total: float
) -> None:
    clock = FakeClock()

    began = rounds(retries, clock, backoff=backoff, total=total, draw=draw, durations=durations)

    assert 1 <= len(began) <= retries + 1
    assert all(start < total for start in began[1:])
    # Nor was there a wait that led to no round.
    assert clock.now == began[-1] + durations[len(began) - 1]


@given(st.integers(0, 7), BACKOFFS, DRAWS, ROUNDS, st.floats(0, 1000))
def test_the_deadline_ends_no_rounds_that_it_leaves_time_for(
    retries: int, backoff: Backoff, draw: float, durations: list[float], total: float
) -> None:
    unhurried = rounds(retries, FakeClock(), backoff=backoff, draw=draw, durations=durations)

    began = rounds(
        retries, FakeClock(), backoff=backoff, total=total, draw=draw, durations=durations
    )

    assert began == [start for start in unhurried if start < total or start == 0][: len(began)]
    assert len(began) == 1 + sum(start < total for start in unhurried[1:])


def test_time_spent_in_a_round_counts_as_waiting() -> None:
    clock = FakeClock()

    rounds(1, clock, backoff=Backoff(first=8), draw=0, durations=[3])

    assert clock.sleeps == [1]


def test_a_round_longer_than_the_wait_is_followed_at_once() -> None:
    clock = FakeClock()

    began = rounds(2, clock, backoff=Backoff(first=1, factor=1), durations=[5, 5, 5])

    assert began == [0, 5, 10]
    assert clock.sleeps == []


def test_leaving_the_loop_ends_it_without_a_wait() -> None:
    clock = FakeClock()

    for _ in RetryLoop(5, sleep=clock.sleep, clock=clock):
        break

    assert clock.sleeps == []


def test_a_loop_may_be_run_again() -> None:
    clock = FakeClock()
    loop = RetryLoop(2, sleep=clock.sleep, clock=clock)

    assert list(loop) == list(loop) == [0, 1, 2]


@pytest.mark.parametrize("retries", [0, -1, -10])
def test_without_retries_there_is_one_round(retries: int) -> None:
    assert list(RetryLoop(retries)) == [0]


def test_the_processs_own_clock_and_sleep_are_used_unless_others_are_given() -> None:
    loop = RetryLoop(2, backoff=Backoff(first=0.001))

    assert list(loop) == [0, 1, 2]


def test_clients_that_failed_together_retry_at_different_times() -> None:
    clocks = [FakeClock() for _ in range(20)]

    for clock in clocks:
        assert list(RetryLoop(1, sleep=clock.sleep, clock=clock)) == [0, 1]

    assert len({clock.sleeps[0] for clock in clocks}) > 1
