"""AccessFailures: reports what can't be listed, read or removed in the disk cache."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class AccessFailures:
    """Reports what can't be listed, read or removed in a directory.

    Args:
        directory: The directory.
        report: Called with "list", "read" or "remove", the path and the error.
    """

    def __init__(self, directory: Path, report: Callable[[str, Path, OSError], None]) -> None:
        self._directory = directory
        self._report = report

    def note(self, action: str, path: str, error: OSError) -> None:
        """Report a failure, unless nothing has that name: another process has removed it."""
        if error.errno != errno.ENOENT:
            self._report(action, self._directory / path, error)
