"""Blocks that are stored again before they are due: retention without collections.

Blocking; not for the trio thread.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Protocol

from keepfs.keep.errors import Cause, KeepRequestError
from keepfs.keep.locator import KeepLocator
from keepfs.messages import of_retention
from keepfs.retention import rows, signatures
from keepfs.retention.losses import expired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keepfs.retention.rows import Rewrite

_log = logging.getLogger(__name__)

#: Bytes a second at which blocks are stored again, unless they are due earlier. Guessed: a
#: quarter of a link of 1 Gbit/s.
RATE = 32 * 2**20
#: Seconds between two rewrites of the catalog.
_FLUSH = 2.0


class BlocksAgain(Protocol):
    """Where blocks are stored again."""

    def put_again(self, locator: KeepLocator, copies: int) -> KeepLocator:
        """Read a block and store it again."""


class PutAgain:
    """Stores blocks again.

    Args:
        store: Where they are.
        catalog: The path of the mount's catalog; read by a connection of its own.
        copies: Replicas to be confirmed.
        lost: Called with number and reason of a file with a block that can't be had.
    """

    def __init__(
        self,
        store: BlocksAgain,
        catalog: Path,
        copies: int,
        lost: Callable[[int, str], None],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._copies = copies
        self._lost = lost
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End a round after the block that is under way."""
        self._stopped.set()

    def round(
        self, is_due: Callable[[KeepLocator], bool], seconds: float
    ) -> Iterator[tuple[list[Rewrite], signatures.Signatures]]:
        """Store again what is due; yield the rows to be rewritten, and the new locators.

        A block that many files have is stored once.

        Args:
            is_due: Tells of which locators the block is to be stored again.
            seconds: Time in which the round should end; the rate is raised for that.

        Raises:
            KeepRequestError: No block can be stored at this time.
        """
        sizes = {
            text.partition(b"+")[0]: KeepLocator(text.decode()).size or 0
            for text, _ in self._due(is_due)
        }
        rate = max(RATE, sum(sizes.values()) / max(seconds, 0.1))
        fresh, done = signatures.Signatures(), set[str]()
        batch: list[Rewrite] = []
        flushed = time.monotonic()
        for number, content in rows.contents(self._catalog):
            for text in signatures.locators_of_row(content):
                locator = KeepLocator(text.decode())
                if is_due(locator) and locator.stripped() not in done:
                    began = time.monotonic()
                    done.add(locator.stripped())
                    self._again(number, locator, fresh)
                    pause = (locator.size or 0) / rate - (time.monotonic() - began)
                    if self._stopped.wait(max(0.0, pause)):
                        return
            new = fresh.rewritten(content)
            if new != content:
                batch.append((number, content, new))
            if len(batch) >= rows.BATCH or time.monotonic() - flushed > _FLUSH:
                yield batch, fresh
                batch, flushed = [], time.monotonic()
        yield batch, fresh

    def _due(self, is_due: Callable[[KeepLocator], bool]) -> Iterator[tuple[bytes, int]]:
        for number, content in rows.contents(self._catalog):
            for text in signatures.locators_of_row(content):
                if is_due(KeepLocator(text.decode())):
                    yield text, number

    def _again(self, number: int, locator: KeepLocator, fresh: signatures.Signatures) -> None:
        try:
            fresh.take(self._store.put_again(locator, self._copies))
        except KeepRequestError as error:
            if error.cause is Cause.NOT_FOUND:
                self._lost(number, str(error))
            elif signatures.is_expired(locator):
                self._lost(number, expired(locator))
            elif error.cause is Cause.DENIED:
                _log.warning("%s", of_retention.NOT_STORED_AGAIN(reason=error))
            else:
                raise


def store_missing(
    store: BlocksAgain, catalog: Path, copies: int, fresh: signatures.Signatures
) -> bool:
    """Store the blocks without a fresh signature again; return whether all have one.

    Args:
        store: Where they are.
        catalog: The path of the mount's catalog.
        copies: Replicas to be confirmed.
        fresh: The fresh signatures; gets those of the blocks.
    """
    are_all_signed = True
    for _, content in rows.contents(catalog):
        for text in signatures.locators_of_row(content):
            locator = KeepLocator(text.decode())
            if fresh.newer(locator) is None and not signatures.is_expired(locator):
                try:
                    fresh.take(store.put_again(locator, copies))
                except KeepRequestError as error:
                    are_all_signed = False
                    _log.warning("%s", of_retention.NOT_STORED_AGAIN(reason=error))
    return are_all_signed
