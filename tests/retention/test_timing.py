"""When a collection is updated and signatures are renewed."""

from __future__ import annotations

import pytest

from keepfs.retention.timing import Timing, Updated

DAY = 86400.0
LONG = Timing(14 * DAY)


@pytest.mark.parametrize(
    ("ended", "duration", "changed", "expected"),
    [
        (100.0, 0.0, 200.0, 203.0),  # some seconds after the first change
        (100.0, 20.0, 110.0, 280.0),  # nine times the last update's duration after its end
        (100.0, 1.0, 108.0, 111.0),  # both: the later
        (100.0, 0.1, None, 700.0),  # without changes it is looked at
        (100.0, 200.0, None, 1900.0),  # never more than a tenth of the time
        (100.0, DAY, 100.0, 100.0 + 3.5 * DAY),  # but in time before the first block is due
    ],
)
def test_the_collection_is_updated(
    ended: float, duration: float, changed: float | None, expected: float
) -> None:
    assert LONG.update_at(Updated(ended, duration), changed) == expected


@pytest.mark.parametrize("ttl", [1.0, 5.0, 60.0, 3600.0, 14 * DAY])
@pytest.mark.parametrize("duration", [0.0, 0.5, 30.0, 10_000.0])
def test_an_update_is_made_before_a_block_is_due(ttl: float, duration: float) -> None:
    timing = Timing(ttl)
    changed = 50.0

    begin = timing.update_at(Updated(changed, duration), changed)

    assert changed < begin <= changed + timing.half / 2 + timing.debounce


def test_signatures_are_renewed_at_half_their_life() -> None:
    assert LONG.renew_at(20 * DAY) == 13 * DAY


@pytest.mark.parametrize("ttl", [5.0, 3600.0, 14 * DAY])
def test_retries_wait_longer_and_longer_but_no_large_part_of_the_ttl(ttl: float) -> None:
    timing = Timing(ttl)
    waits = [timing.back_off(failures, 0.999) for failures in range(1, 30)]

    assert waits == sorted(waits)
    assert 0 < waits[0] <= waits[-1] <= min(300.0, ttl / 16)
