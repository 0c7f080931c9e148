"""Sluggish services are moved to the end of the order, for a while."""

from __future__ import annotations

import pytest

from keepfs.keep.http.exchange import Exchanges
from keepfs.keep.services.service import KeepService
from keepfs.keep.services.sluggish import Sluggish
from tests.fakes.clock import FakeClock

ONE, TWO, THREE = (
    KeepService(f"http://{name}/", Exchanges(verify=True), {}) for name in ("a", "b", "c")
)


@pytest.fixture
def clock() -> FakeClock:
    """Make a clock that a test advances."""
    return FakeClock()


@pytest.fixture
def sluggish(clock: FakeClock) -> Sluggish:
    """Make the set in which the first service was silent."""
    made = Sluggish(clock)
    made.note([ONE.root], [TWO.root])
    return made


def test_a_sluggish_service_is_last_and_the_others_keep_their_order(sluggish: Sluggish) -> None:
    assert sluggish.last([ONE, TWO, THREE]) == [TWO, THREE, ONE]
    assert ONE.root in sluggish
    assert TWO.root not in sluggish


def test_an_answer_ends_it(sluggish: Sluggish) -> None:
    sluggish.note([], [ONE.root])

    assert sluggish.last([ONE, TWO]) == [ONE, TWO]
    assert ONE.root not in sluggish


def test_time_ends_it(sluggish: Sluggish, clock: FakeClock) -> None:
    clock.advance(29)
    assert sluggish.last([ONE, TWO]) == [TWO, ONE]
    clock.advance(2)

    assert sluggish.last([ONE, TWO]) == [ONE, TWO]
    assert ONE.root not in sluggish


def test_another_silence_prolongs_it(sluggish: Sluggish, clock: FakeClock) -> None:
    clock.advance(29)
    sluggish.note([ONE.root], [])
    clock.advance(29)

    assert sluggish.last([ONE, TWO]) == [TWO, ONE]


def test_if_all_are_sluggish_the_order_stays(sluggish: Sluggish) -> None:
    sluggish.note([TWO.root, THREE.root], [])

    assert sluggish.last([ONE, TWO, THREE]) == [ONE, TWO, THREE]
