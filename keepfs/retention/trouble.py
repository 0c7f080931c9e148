"""Trouble: consecutive failures of retention; equal failures in a row are logged once."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

from keepfs.messages import of_retention

if TYPE_CHECKING:
    from keepfs.retention.timing import Timing

_log = logging.getLogger(__name__)


class Trouble:
    """The failures since the last success."""

    def __init__(self) -> None:
        self.failures = 0
        self._kind = ""

    def failed(self, error: Exception, timing: Timing) -> float:
        """Return the back-off in seconds; log a failure of another kind than the last."""
        self.failures += 1
        kind = f"{type(error).__name__} {getattr(error, 'status', '')}"
        level = logging.DEBUG if kind == self._kind else logging.WARNING
        self._kind = kind
        _log.log(level, "%s", of_retention.RETENTION_FAILED(reason=error))
        return timing.back_off(self.failures, random.random())  # noqa: S311 - spread

    def over(self) -> None:
        """Record a success, and log it after failures."""
        if self.failures:
            _log.warning("%s", of_retention.RETENTION_WORKS_AGAIN())
        self.failures, self._kind = 0, ""
