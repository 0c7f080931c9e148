"""The record of a mount's collections."""

from __future__ import annotations

import pytest

from keepfs.retention.ledger import Ledger, Part


def test_a_ledger_is_read_as_it_was_written() -> None:
    ledger = Ledger(parts=(Part(0, "u", "h"), Part(7, "v", "i", "p")), ttl=5.0, last_number=2)

    assert Ledger.of(ledger.as_text()) == ledger


def test_each_new_mount_has_its_own_name() -> None:
    assert Ledger.of("").mount != Ledger.of("").mount


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"parts": 3}', '{"parts": [], "x": 1}', "1"])
def test_a_damaged_ledger_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="damaged"):
        Ledger.of(text)


def test_a_part_replaces_the_one_that_begins_there() -> None:
    ledger = Ledger().with_part(Part(7, "b")).with_part(Part(0, "a")).with_part(Part(7, "c"))

    assert ledger.parts == (Part(0, "a"), Part(7, "c"))
    assert ledger.part_at(7) == Part(7, "c")
    assert ledger.part_at(9) == Part(9)
