"""The usual time to a first answer, and the wait that follows from it."""

from __future__ import annotations

import time

import pytest

from keepfs.keep import Cause, KeepReadError, NotFoundError
from keepfs.keep.services.answer_times import AnswerTimes


def times_of(*samples: float) -> AnswerTimes:
    times = AnswerTimes()
    for sample in samples:
        times.add(sample)
    return times


def test_the_wait_is_the_longest_until_an_answer_is_known() -> None:
    assert AnswerTimes().wait(2.0) == 2.0


def test_the_wait_is_four_times_the_usual_within_bounds() -> None:
    assert times_of(0.3).wait(2.0) == pytest.approx(1.2)
    assert times_of(0.001).wait(2.0) == pytest.approx(0.1)
    assert times_of(5.0).wait(2.0) == 2.0
    assert times_of(0.3).wait(0.05) == 0.05


def test_one_outlier_changes_the_wait_by_less_than_its_double() -> None:
    times = times_of(*[0.05] * 20)
    before = times.wait(100.0)

    times.add(300.0)

    assert before < times.wait(100.0) < 2 * before


def test_a_link_that_has_become_slow_is_detected_within_a_few_answers() -> None:
    times = times_of(*[0.002] * 50, *[0.5] * 10)

    assert times.wait(10.0) > 1.0


def test_a_refusal_counts_as_an_answer_and_a_failure_does_not() -> None:
    refused, failed = AnswerTimes(), AnswerTimes()
    now = time.monotonic()

    refused.failed(now, NotFoundError("nowhere"))
    failed.failed(now, KeepReadError("no connection", cause=Cause.UNREACHABLE))

    assert refused.wait(2.0) == pytest.approx(0.1)
    assert failed.wait(2.0) == 2.0
