"""Phases: the states of a connection during one exchange, and the events that change them.

`TRANSITIONS` is the whole table. An event without a row for the phase is a bug of this
program, never a failure of a service. A connection can carry another request exactly
when its phase is `Phase.IDLE` again.
"""

from __future__ import annotations

import enum


class Phase(enum.StrEnum):
    """The state of a connection."""

    #: Not connected yet.
    NEW = "new"
    #: Connected, without an exchange.
    IDLE = "idle"
    #: A request is being sent.
    SENDING = "sending"
    #: The whole request was sent.
    SENT = "sent"
    #: The service stopped reading within the request. It may have answered nevertheless.
    CUT_OFF = "cut off"
    #: The head of the answer was read, the body was not. The connection stays open after it.
    RECEIVING = "receiving"
    #: As RECEIVING, but the connection can't be used after the body.
    RECEIVING_LAST = "receiving its last answer"
    #: No further exchange: it is closed, or will be as soon as its owner is done with it.
    CLOSED = "closed"


class WireEvent(enum.StrEnum):
    """What changes the phase of a connection."""

    #: The connection was made.
    CONNECTED = "connected"
    #: A request begins.
    REQUEST = "request"
    #: The last byte of the request was sent.
    ALL_SENT = "all sent"
    #: The service closed its receiving side before the last byte was sent.
    SENDING_FAILED = "sending failed"
    #: The head of the final answer was read, and says that the connection stays open.
    HEAD_KEEPS = "head, keeps the connection"
    #: The head of the final answer was read, and says that the connection is closed after it.
    HEAD_ENDS = "head, ends the connection"
    #: The body was read to an end that was known beforehand, or by its last chunk.
    BODY_COMPLETE = "body complete"
    #: Our side closes the connection, in any phase.
    CLOSE = "close"


#: The next phase, by phase and event.
TRANSITIONS: dict[tuple[Phase, WireEvent], Phase] = {
    (Phase.NEW, WireEvent.CONNECTED): Phase.IDLE,
    (Phase.IDLE, WireEvent.REQUEST): Phase.SENDING,
    (Phase.SENDING, WireEvent.ALL_SENT): Phase.SENT,
    (Phase.SENDING, WireEvent.SENDING_FAILED): Phase.CUT_OFF,
    (Phase.SENT, WireEvent.HEAD_KEEPS): Phase.RECEIVING,
    (Phase.SENT, WireEvent.HEAD_ENDS): Phase.RECEIVING_LAST,
    (Phase.CUT_OFF, WireEvent.HEAD_KEEPS): Phase.RECEIVING_LAST,
    (Phase.CUT_OFF, WireEvent.HEAD_ENDS): Phase.RECEIVING_LAST,
    (Phase.RECEIVING, WireEvent.BODY_COMPLETE): Phase.IDLE,
    (Phase.RECEIVING_LAST, WireEvent.BODY_COMPLETE): Phase.CLOSED,
    **{(phase, WireEvent.CLOSE): Phase.CLOSED for phase in Phase},
}


class PhaseError(RuntimeError):
    """An event that can't happen in a phase: an error of this program.

    Args:
        phase: The phase of the connection.
        event: The event.
    """

    def __init__(self, phase: Phase, event: WireEvent) -> None:
        super().__init__(f'a connection in phase "{phase}" has no event "{event}"')


class WireState:
    """The phase of one connection. For one thread.

    Args:
        phase: The first phase.

    Attributes:
        phase: The current phase.
    """

    __slots__ = ("phase",)

    def __init__(self, phase: Phase = Phase.NEW) -> None:
        self.phase = phase

    def __repr__(self) -> str:
        return f"WireState({self.phase})"

    def apply(self, event: WireEvent) -> None:
        """Enter the next phase.

        Raises:
            PhaseError: `TRANSITIONS` has no row for the phase and the event.
        """
        try:
            self.phase = TRANSITIONS[self.phase, event]
        except KeyError:
            raise PhaseError(self.phase, event) from None
