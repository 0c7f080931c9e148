"""Rounds: how often a call goes through the services, and with which list of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from keepfs.keep.errors import Cause, NoKeepServersError
from keepfs.keep.retry import RetryLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keepfs.keep.counters import Counter
    from keepfs.keep.services.discovery import Services
    from keepfs.keep.services.roster import Roster
    from keepfs.keep.store import CallOptions


class Rounds:
    """The rounds of one call. For one thread.

    Iterating yields the number of each round, counted from 0, and its services: in the
    first round the known list, in later ones a newer list. It blocks for the back-off
    between rounds. It ends after the last retry, at the call's deadline, or when the
    API server refuses the token. A round for which there is no list is left out.

    Args:
        roster: The list of services.
        call: The options of the call.
        check: Called before each round; its exceptions pass through.
        retries: Counts the rounds after the first.

    Attributes:
        attempts: Rounds begun.
        services: The list of the last round, or None.
        trouble: The error of the last round without a list, or None.
    """

    def __init__(
        self, roster: Roster, call: CallOptions, check: Callable[[], None], retries: Counter
    ) -> None:
        self._roster = roster
        self._call = call
        self._check = check
        self._retries = retries
        self.attempts = 0
        self.services: Services | None = None
        self.trouble: NoKeepServersError | None = None

    def __iter__(self) -> Iterator[tuple[int, Services]]:
        call = self._call
        for attempt in RetryLoop(call.retries, backoff=call.backoff, total=call.remaining()):
            self._check()
            self.attempts = attempt + 1
            if attempt:
                self._retries.add(1)
            try:
                services = self.refresh()
            except NoKeepServersError as error:
                self.trouble = error
                if error.cause is Cause.DENIED:
                    return
            else:
                yield attempt, services
            if time.monotonic() >= call.deadline:
                return

    def refresh(self) -> Services:
        """Return a newer list than the last one; before the first, any list. Blocks.

        Raises:
            NoKeepServersError: There is none.
        """
        left = self._call.remaining()
        if self.services is None:
            self.services = self._roster.current(left)
        else:
            self.services = self._roster.refreshed(self.services, left)
        return self.services
