"""Timeouts in every form that callers may give."""

from __future__ import annotations

from typing import Any

import pytest

from keepfs.keep import MAX_BLOCK_SIZE
from keepfs.keep.http.timeouts import MAX_CONNECT, Timeouts


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ((2, 256, 32768), (2, 256, 32768)),
        ((2, 256), (2, 256, 32768)),
        ([1, 3], (1, 3, 32768)),
        (5, (5, 5, 32768)),
        (0.5, (0.5, 0.5, 32768)),
        ((1, 1, 0), (1, 1, 0)),
        (Timeouts(1, 2, 3), (1, 2, 3)),
    ],
)
def test_a_timeout_may_be_given_in_several_forms(value: Any, parts: tuple[float, ...]) -> None:  # noqa: ANN401 - any form
    assert Timeouts.of(value).as_tuple() == parts


@pytest.mark.parametrize("value", [(), (1,), (1, 2, 3, 4), 0, -1, (0, 1), (1, 0), (1, 1, -1)])
def test_an_invalid_timeout_is_refused(value: Any) -> None:  # noqa: ANN401 - any form
    with pytest.raises(ValueError, match="a timeout is"):
        Timeouts.of(value)


def test_the_connect_part_doubles_each_round_up_to_a_cap() -> None:
    timeouts = Timeouts(2, 256, 32768)

    assert [timeouts.for_attempt(n).connect for n in range(7)] == [2, 4, 8, 16, 32, 60, 60]
    assert timeouts.for_attempt(10**6).connect == MAX_CONNECT
    assert timeouts.for_attempt(3).read == 256


def test_a_head_may_take_as_long_as_the_block_at_the_lowest_speed() -> None:
    timeouts = Timeouts(2, 256, 32768)

    assert timeouts.for_head(MAX_BLOCK_SIZE) == Timeouts(2, 2048, 32768)
    assert timeouts.for_head(3) == timeouts
    assert Timeouts(2, 5, 0).for_head(MAX_BLOCK_SIZE) == Timeouts(2, 5, 0)  # no lowest speed


def test_a_connect_timeout_above_the_cap_is_not_reduced() -> None:
    assert Timeouts(90, 256).for_attempt(5).connect == 90
