"""Precedence: the cause of a call whose services failed for different reasons."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from keepfs.keep import Cause
from keepfs.keep.services.outcome import READ_ORDER, WRITE_ORDER, cause_of_reads, cause_of_writes

SEMANTICS = Path(__file__).parents[3] / "SEMANTICS.md"

DENIED, LATE, GONE, CORRUPT = Cause.DENIED, Cause.TIMED_OUT, Cause.UNREACHABLE, Cause.CORRUPT
FULL, FEW, OTHER, MISSING = Cause.FULL, Cause.TOO_FEW_COPIES, Cause.OTHER, Cause.NOT_FOUND

READS = [
    ((MISSING, MISSING), MISSING),
    ((MISSING, DENIED), DENIED),
    ((CORRUPT, DENIED), DENIED),
    ((MISSING, LATE), LATE),
    ((CORRUPT, LATE), LATE),
    ((GONE, LATE), LATE),
    ((MISSING, GONE), GONE),
    ((CORRUPT, GONE), GONE),
    ((OTHER, GONE), GONE),
    ((MISSING, CORRUPT), CORRUPT),
    ((OTHER, CORRUPT), CORRUPT),
    ((MISSING, OTHER), OTHER),
    ((), GONE),
]
WRITES = [
    ((FULL, FULL), 0, FULL),
    ((FULL,), 1, FULL),
    ((FULL, OTHER), 1, FEW),
    ((GONE,), 1, FEW),
    ((DENIED, FULL), 0, DENIED),
    ((LATE, GONE), 0, LATE),
    ((GONE, FULL), 0, GONE),
    ((FULL, FEW), 0, FULL),
    ((FEW, OTHER), 0, FEW),
    ((OTHER,), 0, OTHER),
    ((), 1, FEW),
]


@pytest.mark.parametrize(("causes", "told"), READS)
def test_a_read_that_failed_in_different_ways(causes: tuple[Cause, ...], told: Cause) -> None:
    for order in itertools.permutations(causes):
        assert cause_of_reads(order) is told


@pytest.mark.parametrize(("causes", "copies", "told"), WRITES)
def test_a_write_that_failed_in_different_ways(
    causes: tuple[Cause, ...], copies: int, told: Cause
) -> None:
    for order in itertools.permutations(causes):
        assert cause_of_writes(order, copies) is told


@pytest.mark.parametrize("order", [READ_ORDER, WRITE_ORDER])
def test_of_two_causes_the_first_in_the_order_is_reported(order: tuple[Cause, ...]) -> None:
    judge = cause_of_reads if order is READ_ORDER else lambda it: cause_of_writes(it, 0)

    for first, second in itertools.combinations(order, 2):
        assert judge([second, first]) is first


def test_the_documented_order_is_this_one() -> None:
    table = SEMANTICS.read_text().partition("## When services differ")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| [0-9] \| ([A-Z_]+)\S* [^|]*\| ([^|]*) \|", table, re.MULTILINE)

    for column, order in (("reading", READ_ORDER), ("writing", WRITE_ORDER)):
        assert [name for name, calls in rows if column in calls] == [it.name for it in order]
