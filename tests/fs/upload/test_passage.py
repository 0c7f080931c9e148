"""The passage of a file's changes into the store: what may happen in each state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfs.fs.upload.passage import Passage, PassageEvent, PassageState

#: A row for each state, a column for each event: the next state, or - where it is refused.
TABLE = """
state    CHANGE   RESTORE BEGIN    WANT     RECORD   END     ABANDON
STORED   UNTRIED  TRIED   -        -        -        -       -
UNTRIED  UNTRIED  TRIED   STORING  -        -        -       -
TRIED    UNTRIED  TRIED   RETRYING -        -        -       -
STORING  BEHIND   -       -        -        RECORDED TRIED   UNTRIED
RETRYING BEHIND   -       -        -        RECORDED TRIED   TRIED
BEHIND   BEHIND   -       -        OUTDATED BEHIND   UNTRIED UNTRIED
OUTDATED OUTDATED -       -        OUTDATED OUTDATED UNTRIED UNTRIED
RECORDED BEHIND   -       -        -        -        STORED  STORED
"""
_HEAD, *_ROWS = [line.split() for line in TABLE.strip().splitlines()]
NEXT = {
    (row[0], event): after
    for row in _ROWS
    for event, after in zip(_HEAD[1:], row[1:], strict=True)
}


@pytest.mark.parametrize("event", PassageEvent, ids=lambda each: each.name)
@pytest.mark.parametrize("state", PassageState, ids=lambda each: each.name)
def test_each_event_in_each_state_leads_to_one_state_or_is_refused(
    state: PassageState, event: PassageEvent
) -> None:
    passage = Passage(state, 5, 3, 2)
    after = NEXT[state.name, event.name]

    if after == "-":
        with pytest.raises(RuntimeError, match=rf"{state.name} refuses .* {event.name}$"):
            passage.note(event)
        assert passage == Passage(state, 5, 3, 2)
    else:
        passage.note(event)
        assert passage.state.name == after


@pytest.mark.parametrize(
    ("event", "state", "numbers"),
    [
        (PassageEvent.CHANGE, PassageState.UNTRIED, (6, 3, 2)),
        (PassageEvent.RESTORE, PassageState.UNTRIED, (6, 6, 2)),
        (PassageEvent.BEGIN, PassageState.UNTRIED, (5, 5, 2)),
        (PassageEvent.WANT, PassageState.BEHIND, (5, 3, 2)),
        (PassageEvent.RECORD, PassageState.BEHIND, (5, 3, 3)),
        (PassageEvent.END, PassageState.BEHIND, (5, 3, 2)),
        (PassageEvent.ABANDON, PassageState.BEHIND, (5, 3, 2)),
    ],
)
def test_each_event_updates_the_numbers(
    event: PassageEvent, state: PassageState, numbers: tuple[int, int, int]
) -> None:
    passage = Passage(state, 5, 3, 2)

    passage.note(event)

    assert (passage.changes, passage.covered, passage.stored) == numbers


def test_a_new_file_is_untried_and_a_loaded_one_stored() -> None:
    assert (Passage().changes, Passage().stored) == (1, 0)
    assert Passage().has_untried
    assert not Passage().is_stored
    loaded = Passage.of_stored_file()
    assert loaded.is_stored
    assert not loaded.has_untried
    assert loaded.stored == loaded.changes


class Account:
    """The same in plain numbers: changes made, tried and stored; those the attempt covers."""

    def __init__(self) -> None:
        self.changes, self.tried, self.stored = 1, 0, 0
        self.attempt: int | None = None
        self.is_wanted = False

    def note(self, event: PassageEvent) -> None:
        self.changes += event in {PassageEvent.CHANGE, PassageEvent.RESTORE}
        match event:
            case PassageEvent.RESTORE:
                self.tried = self.changes
            case PassageEvent.BEGIN:
                self.attempt, self.is_wanted = self.changes, False
            case PassageEvent.WANT:
                self.is_wanted = True
            case PassageEvent.RECORD:
                # What is recorded has been tried, though its attempt has yet to end.
                self.tried = self.stored = self.covered
            case PassageEvent.END:
                self.tried, self.attempt = max(self.tried, self.covered), None
            case PassageEvent.ABANDON:
                self.attempt = None

    @property
    def covered(self) -> int:
        assert self.attempt is not None
        return self.attempt


@given(st.lists(st.sampled_from(PassageEvent), max_size=40))
def test_the_state_agrees_with_the_numbers(events: list[PassageEvent]) -> None:
    passage, account = Passage(), Account()
    for event in events:
        if NEXT[passage.state.name, event.name] == "-":
            continue
        passage.note(event)
        account.note(event)

        assert passage.changes == account.changes
        assert passage.stored == account.stored
        assert passage.is_under_way == (account.attempt is not None)
        assert passage.is_stored == (account.stored == account.changes)
        assert passage.has_untried == (account.tried < account.changes)
        if passage.is_under_way:
            assert passage.covered == account.covered
            assert (passage.state is PassageState.OUTDATED) == account.is_wanted
