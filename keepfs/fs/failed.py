"""Files whose store has failed: tried again in the background, with back-off.

For the trio thread only.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Protocol

import trio

from keepfs.keep.errors import KeepRequestError
from keepfs.keep.retry import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

#: How long to wait between two attempts; a service that comes back is found
#: within a minute.
_BACKOFF = Backoff(first=4.0, factor=2.0, cap=60.0)


class Storable(Protocol):
    """A file, as far as this room knows files."""

    @property
    def path(self) -> str:
        """Below upload/."""

    @property
    def needs_saving(self) -> bool:
        """Whether it isn't all in the store."""

    @property
    def is_being_changed(self) -> bool:
        """Whether somebody has it open who changed it since the last attempt."""

    async def store(self) -> None:
        """Store it, or raise."""


class FailedFiles:
    """The files that wait for another attempt.

    Args:
        on_change: Called when a file has come, or gone.
        backoff: How long to wait between two attempts.
    """

    def __init__(
        self, on_change: Callable[[], None] = lambda: None, backoff: Backoff = _BACKOFF
    ) -> None:
        self._on_change = on_change
        self._backoff = backoff
        self._files: dict[Storable, None] = {}
        self._wake = trio.Event()
        self._retry_now = False

    def add(self, file: Storable) -> None:
        """Note a file whose store has failed."""
        is_new = file not in self._files
        self._files[file] = None
        if len(self._files) == 1 and is_new:
            self._wake.set()
        self._on_change()

    def discard(self, file: Storable) -> None:
        """Note that a file is stored, or removed."""
        if file in self._files:
            del self._files[file]
            self._on_change()

    def files(self) -> list[Storable]:
        """Return the files, those that failed first first."""
        return list(self._files)

    def retry_now(self) -> None:
        """Try all of them at once, not when it is their turn."""
        self._retry_now = True
        self._wake.set()

    async def retry(self) -> None:
        """Try them again and again; runs until cancelled."""
        attempt = 0
        while True:
            if not self._files:
                attempt = 0
                await self._wake.wait()
            self._wake = trio.Event()
            if not self._retry_now:
                draw = random.random()  # noqa: S311 - to spread attempts
                with trio.move_on_after(self._backoff.wait(attempt, draw)):
                    await self._wake.wait()
            self._retry_now = False
            attempt = 0 if await self._try_all() else attempt + 1

    async def _try_all(self) -> bool:
        """Try each; stop at the first that fails, as the next would too. Tell whether none did."""
        for file in self.files():
            if file.is_being_changed:
                continue  # half of a new version is none; its close will store it
            try:
                await file.store()
            except (KeepRequestError, OSError) as error:
                _log.info("still not stored: %s", error)
                return False
            if not file.needs_saving:
                self.discard(file)
                _log.info("stored at last: %s", file.path)
        return True
