"""SlotState: where the bytes of a slot are, with the table of its transitions."""

from __future__ import annotations

import enum


class SlotState(enum.Enum):
    """Where the bytes of a slot are.

    In `SENDING_HOLE` and the states after it, a store of the slot is in progress.
    """

    HOLE = "zeros that are in no store"
    SHORT = "a stored block that is longer or shorter than the slot"
    STORED = "a stored block has exactly these bytes"
    STAGED = "in memory; zeros may follow"
    DROPPED = "without content: it was cut off, or the file was removed"
    SENDING_HOLE = "zeros that are being sent"
    SENDING_HOLE_RESIZED = "zeros; the store under way has another number of them"
    SENDING = "in memory, and being sent"
    SENDING_RESIZED = "in memory, and being sent; zeros were added since the store began"
    SENDING_CHANGED = "in memory; the store under way has older bytes, in other memory"
    SENDING_DROPPED = "dropped; the store in progress still holds the bytes"


class SlotEvent(enum.Enum):
    """What happens to a slot."""

    CHANGE = "bytes are staged and changed: by a write, a cut, or from a spill record"
    RESIZE = "zeros are added at the end, or cut off a hole"
    NAME = "a stored block becomes the content; it has exactly the slot's length"
    NAME_SHORT = "a stored block becomes the content; it has another length"
    FETCH = "the bytes of the stored block are staged, unchanged"
    SEND = "a store begins"
    SENT = "the store under way succeeded"
    FAIL = "the store under way failed"
    DROP = "the slot is cut off, or the file is removed"


_S, _E = SlotState, SlotEvent

#: The state after an event in a state. An event that is missing is refused.
SLOT_TRANSITIONS: dict[SlotState, dict[SlotEvent, SlotState]] = {
    _S.HOLE: {
        _E.CHANGE: _S.STAGED,
        _E.RESIZE: _S.HOLE,
        _E.NAME: _S.STORED,
        _E.NAME_SHORT: _S.SHORT,
        _E.SEND: _S.SENDING_HOLE,
        _E.DROP: _S.DROPPED,
    },
    _S.SHORT: {
        _E.CHANGE: _S.STAGED,
        _E.RESIZE: _S.SHORT,
        _E.NAME: _S.STORED,
        _E.NAME_SHORT: _S.SHORT,
        _E.FETCH: _S.STAGED,
        _E.DROP: _S.DROPPED,
    },
    _S.STORED: {
        _E.CHANGE: _S.STAGED,
        _E.RESIZE: _S.SHORT,
        _E.NAME: _S.STORED,
        _E.NAME_SHORT: _S.SHORT,
        _E.DROP: _S.DROPPED,
    },
    _S.STAGED: {
        _E.CHANGE: _S.STAGED,
        _E.RESIZE: _S.STAGED,
        _E.SEND: _S.SENDING,
        _E.DROP: _S.DROPPED,
    },
    # A dropped slot is changed by a write that waited for memory meanwhile; it can't be read.
    _S.DROPPED: {
        _E.CHANGE: _S.DROPPED,
        _E.RESIZE: _S.DROPPED,
        _E.DROP: _S.DROPPED,
    },
    _S.SENDING_HOLE: {
        _E.CHANGE: _S.SENDING_CHANGED,
        _E.RESIZE: _S.SENDING_HOLE_RESIZED,
        _E.SENT: _S.STORED,
        _E.FAIL: _S.HOLE,
        _E.DROP: _S.SENDING_DROPPED,
    },
    _S.SENDING_HOLE_RESIZED: {
        _E.CHANGE: _S.SENDING_CHANGED,
        _E.RESIZE: _S.SENDING_HOLE_RESIZED,
        _E.SENT: _S.HOLE,
        _E.FAIL: _S.HOLE,
        _E.DROP: _S.SENDING_DROPPED,
    },
    _S.SENDING: {
        _E.CHANGE: _S.SENDING_CHANGED,
        _E.RESIZE: _S.SENDING_RESIZED,
        _E.SENT: _S.STORED,
        _E.FAIL: _S.STAGED,
        _E.DROP: _S.SENDING_DROPPED,
    },
    _S.SENDING_RESIZED: {
        _E.CHANGE: _S.SENDING_CHANGED,
        _E.RESIZE: _S.SENDING_RESIZED,
        _E.SENT: _S.STAGED,
        _E.FAIL: _S.STAGED,
        _E.DROP: _S.SENDING_DROPPED,
    },
    _S.SENDING_CHANGED: {
        _E.CHANGE: _S.SENDING_CHANGED,
        _E.RESIZE: _S.SENDING_CHANGED,
        _E.SENT: _S.STAGED,
        _E.FAIL: _S.STAGED,
        _E.DROP: _S.SENDING_DROPPED,
    },
    _S.SENDING_DROPPED: {
        _E.CHANGE: _S.SENDING_DROPPED,
        _E.RESIZE: _S.SENDING_DROPPED,
        _E.SENT: _S.DROPPED,
        _E.FAIL: _S.DROPPED,
        _E.DROP: _S.SENDING_DROPPED,
    },
}

#: Events after which the slot has another content.
CONTENT_EVENTS = frozenset({_E.CHANGE, _E.RESIZE, _E.NAME, _E.NAME_SHORT, _E.DROP})
#: States of a slot without content: its bytes are zeros, and take no memory.
HOLES = frozenset({_S.HOLE, _S.SENDING_HOLE, _S.SENDING_HOLE_RESIZED})
#: States of a slot that was dropped.
GONE = frozenset({_S.DROPPED, _S.SENDING_DROPPED})
#: States in which the staged memory is being sent: a change needs a copy of it.
SHARED = frozenset({_S.SENDING, _S.SENDING_RESIZED})


def slot_state_after(state: SlotState, event: SlotEvent) -> SlotState:
    """Return the state of a slot after an event.

    Raises:
        RuntimeError: The event is impossible in this state: a bug of the caller.
    """
    after = SLOT_TRANSITIONS[state].get(event)
    if after is None:
        raise RuntimeError(f"a slot in state {state.name} refuses the event {event.name}")
    return after
