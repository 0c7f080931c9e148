"""TokenState: when the token of a store was read, and whether it is refused."""

from __future__ import annotations

import contextlib
import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from keepfs.config.arvados import load_settings
from keepfs.keep.errors import ArgumentError
from keepfs.keep.services.api import ApiClient, ApiError
from keepfs.keep.services.tokens import TokenStatistics

if TYPE_CHECKING:
    from keepfs.keep.counters import Counters
    from keepfs.keep.locator import KeepLocator

#: Seconds that the API server may take to judge the token: a reader waits. Guessed.
_PATIENCE = 5.0
#: Seconds for which its judgement is used again, so that a program that reads many blocks with
#: signatures of another token causes few requests. Guessed.
_JUDGED_FOR = 10.0


class TokenState:
    """When a token was read, and whether it is refused. Any thread may use it.

    Services answer a bad signature and a bad token alike. So a refused read alone is no refusal
    of the token: the API server judges the token itself. Without an API server the token counts
    as refused until a service accepts a request.

    Args:
        counters: The counters of the client that has the token: blocks that were received or
            sent after a refusal show that the services accept the token.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._changing = threading.Lock()
        self._judging = threading.Lock()
        self._judged: tuple[str, float, bool | None] | None = None
        self._read_at = time.monotonic()
        #: The time of the refusal, and the bytes of blocks sent and received before it.
        self._refusal: tuple[float, int] | None = None

    def statistics(self) -> TokenStatistics:
        """Return the state."""
        with self._changing:
            if self._refusal is not None and self._transferred() > self._refusal[1]:
                self._refusal = None
            refused_at = None if self._refusal is None else self._refusal[0]
            return TokenStatistics(self._read_at, refused_at)

    def replaced(self) -> None:
        """Record that another token was read."""
        with self._changing:
            self._read_at, self._refusal = time.monotonic(), None

    def accepted(self) -> None:
        """Record that the API server has accepted the token."""
        with self._changing:
            self._refusal = None

    def refused(self, token: str, locator: KeepLocator | None) -> bool:
        """Record a refused request, if the token is the cause; return whether it is. Blocks.

        Args:
            token: The token of the request.
            locator: The locator that a read was refused for; None for a request without one.
        """
        if locator is not None:
            if locator.perm_sig is None or locator.permission_expired():
                return False
            judgement = self._judgement(token)
            if judgement:
                self.accepted()
            if judgement is not False:
                return False
        with self._changing:
            self._refusal = time.monotonic(), self._transferred()
        return True

    def _judgement(self, token: str) -> bool | None:
        """Return whether the API server accepts the token; None if it doesn't answer.

        Without an API server it is False: the signature looks valid, so the token is suspected.
        """
        host = load_settings().api_host
        if not host:
            return False
        with self._judging:
            last = self._judged
            if last is not None and last[0] == token and time.monotonic() - last[1] < _JUDGED_FOR:
                return last[2]
            judgement = _asked(token)
            self._judged = token, time.monotonic(), judgement
            return judgement

    def _transferred(self) -> int:
        return self._counters.upload.get() + self._counters.download.get()


def _asked(token: str) -> bool | None:
    try:
        with contextlib.closing(ApiClient.of_settings(load_settings(), token)) as api:
            api.request("GET", "arvados/v1/users/current", total=_PATIENCE)
    except ArgumentError:
        return None
    except ApiError as error:
        # 403: the token is valid, and has a scope without this request.
        known: dict[int, bool] = {HTTPStatus.UNAUTHORIZED: False, HTTPStatus.FORBIDDEN: True}
        return known.get(error.status_code)
    return True
