"""Passage: which changes of a file are in the store, with the table of its transitions."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class PassageState(enum.Enum):
    """Which changes of a file are in the store.

    An attempt covers the changes made before it began. In `STORING` and the states after
    it, an attempt is in progress.
    """

    STORED = "all changes are stored"
    UNTRIED = "no attempt has covered the last changes"
    TRIED = "an attempt has covered all changes, and has not stored them"
    STORING = "the attempt under way is the first that covers the last changes"
    RETRYING = "the attempt under way covers what an earlier one has not stored"
    BEHIND = "changes were made since the attempt under way began"
    OUTDATED = "as BEHIND, and a request waits until those changes are stored"
    RECORDED = "the attempt under way has stored all changes, and has yet to end"


class PassageEvent(enum.Enum):
    """What happens to the changes of a file."""

    CHANGE = "the content is changed"
    RESTORE = "the content is that of a spill record: an attempt of an earlier mount failed"
    BEGIN = "an attempt begins; it covers all changes made so far"
    WANT = "a request waits for changes that the attempt under way does not cover"
    RECORD = "the attempt under way has recorded a version: what it covers is stored"
    END = "the attempt under way ended; without RECORD before, it has stored nothing"
    ABANDON = "the attempt under way was cancelled, because the mount ends"


_S, _E = PassageState, PassageEvent

#: The state after an event in a state. An event that is missing is refused.
PASSAGE_TRANSITIONS: dict[PassageState, dict[PassageEvent, PassageState]] = {
    _S.STORED: {_E.CHANGE: _S.UNTRIED, _E.RESTORE: _S.TRIED},
    _S.UNTRIED: {_E.CHANGE: _S.UNTRIED, _E.RESTORE: _S.TRIED, _E.BEGIN: _S.STORING},
    _S.TRIED: {_E.CHANGE: _S.UNTRIED, _E.RESTORE: _S.TRIED, _E.BEGIN: _S.RETRYING},
    _S.STORING: {
        _E.CHANGE: _S.BEHIND,
        _E.RECORD: _S.RECORDED,
        _E.END: _S.TRIED,
        _E.ABANDON: _S.UNTRIED,
    },
    _S.RETRYING: {
        _E.CHANGE: _S.BEHIND,
        _E.RECORD: _S.RECORDED,
        _E.END: _S.TRIED,
        _E.ABANDON: _S.TRIED,
    },
    _S.BEHIND: {
        _E.CHANGE: _S.BEHIND,
        _E.WANT: _S.OUTDATED,
        _E.RECORD: _S.BEHIND,
        _E.END: _S.UNTRIED,
        _E.ABANDON: _S.UNTRIED,
    },
    _S.OUTDATED: {
        _E.CHANGE: _S.OUTDATED,
        _E.WANT: _S.OUTDATED,
        _E.RECORD: _S.OUTDATED,
        _E.END: _S.UNTRIED,
        _E.ABANDON: _S.UNTRIED,
    },
    _S.RECORDED: {_E.CHANGE: _S.BEHIND, _E.END: _S.STORED, _E.ABANDON: _S.STORED},
}

_IDLE = frozenset({_S.STORED, _S.UNTRIED, _S.TRIED})
_UNTRIED = frozenset({_S.UNTRIED, _S.STORING, _S.BEHIND, _S.OUTDATED})
_ALL_STORED = frozenset({_S.STORED, _S.RECORDED})


@dataclass(slots=True)
class Passage:
    """Which changes of a file are in the store. A new file has one change: its creation.

    The numbers serve to compare versions; the state decides which events are possible.

    Attributes:
        state: The state.
        changes: The number of changes so far.
        covered: How many of them the last or current attempt covers.
        stored: How many of them are stored.
    """

    state: PassageState = PassageState.UNTRIED
    changes: int = 1
    covered: int = 0
    stored: int = 0

    @classmethod
    def of_stored_file(cls) -> Passage:
        """Make the passage of a file that was loaded from the catalog: all is stored."""
        return cls(PassageState.STORED, changes=1, covered=1, stored=1)

    def note(self, event: PassageEvent) -> None:
        """Handle an event: update the state and the numbers.

        The events that end an attempt allocate no objects, so that they can be handled
        without free memory.

        Raises:
            RuntimeError: The event is impossible in this state: a bug of the caller.
        """
        state = PASSAGE_TRANSITIONS[self.state].get(event)
        if state is None:
            raise RuntimeError(f"a file in state {self.state.name} refuses the event {event.name}")
        match event:
            case PassageEvent.CHANGE:
                self.changes += 1
            case PassageEvent.RESTORE:
                self.changes = self.covered = self.changes + 1
            case PassageEvent.BEGIN:
                self.covered = self.changes
            case PassageEvent.RECORD:
                self.stored = self.covered
        self.state = state

    @property
    def is_under_way(self) -> bool:
        """Whether an attempt is in progress."""
        return self.state not in _IDLE

    @property
    def is_stored(self) -> bool:
        """Whether all changes are stored."""
        return self.state in _ALL_STORED

    @property
    def has_untried(self) -> bool:
        """Whether there are changes that no finished attempt has covered."""
        return self.state in _UNTRIED
