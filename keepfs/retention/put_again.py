"""PutAgain: stores blocks again before the cluster may trash them, without collections.

All calls block; they are not for the trio thread.
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

#: Bytes per second at which blocks are stored again, unless they need a higher rate. Guessed:
#: a quarter of a link of 1 Gbit/s.
RATE = 32 * 2**20
#: Seconds between two rewrites of the catalog.
_FLUSH = 2.0


class BlocksAgain(Protocol):
    """The interface of the store."""

    def put_again(self, locator: KeepLocator, copies: int) -> KeepLocator:
        """Read a block and store it again; see `KeptStore.put_again`."""


class PutAgain:
    """Stores blocks again.

    Args:
        store: The store of the blocks.
        catalog: The path of the mount's catalog; read through a separate connection.
        copies: Replicas to be confirmed.
        lost: Called with number and reason of a file with a block that can't be read.
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
        """End the round after the block in progress, and all later rounds. For any thread."""
        self._stopped.set()

    def round(
        self, is_due: Callable[[KeepLocator], bool], seconds: float
    ) -> Iterator[tuple[list[Rewrite], signatures.Signatures]]:
        """Store again the blocks that are due; yield the rows to rewrite, and the new locators.

        A block that several files have is stored once.

        Args:
            is_due: Returns whether the block of a locator is due.
            seconds: Time in which the round should end; the rate is raised for that.

        Raises:
            KeepRequestError: A block couldn't be stored, and was neither lost nor refused.
            CatalogError: The catalog can't be read.
        """
        sizes = {
            text.partition(b"+")[0]: KeepLocator(text.decode()).size or 0
            for text, _ in self._due(is_due)
        }
        rate = max(RATE, sum(sizes.values()) / max(seconds, 0.1))
        fresh, outcomes = signatures.Signatures(), dict[str, str]()
        batch: list[Rewrite] = []
        flushed = time.monotonic()
        for number, content in rows.contents(self._catalog):
            for text in signatures.locators_of_row(content):
                locator = KeepLocator(text.decode())
                if self._stopped.is_set() or not is_due(locator):
                    continue
                began = time.monotonic()
                if not self._has_outcome(locator, outcomes):
                    self._again(locator, fresh, outcomes)
                    pause = (locator.size or 0) / rate - (time.monotonic() - began)
                    self._stopped.wait(max(0.0, pause))
                reason = outcomes.get(locator.stripped()) or outcomes.get(str(locator), "")
                if reason:
                    self._lost(number, reason)
            new = fresh.rewritten(content)
            if new != content:
                batch.append((number, content, new))
            if self._stopped.is_set():
                break
            if len(batch) >= rows.BATCH or time.monotonic() - flushed > _FLUSH:
                yield batch, fresh
                batch, flushed = [], time.monotonic()
        yield batch, fresh

    def _due(self, is_due: Callable[[KeepLocator], bool]) -> Iterator[tuple[bytes, int]]:
        for number, content in rows.contents(self._catalog):
            for text in signatures.locators_of_row(content):
                if is_due(KeepLocator(text.decode())):
                    yield text, number

    @staticmethod
    def _has_outcome(locator: KeepLocator, outcomes: dict[str, str]) -> bool:
        return locator.stripped() in outcomes or str(locator) in outcomes

    def _again(
        self, locator: KeepLocator, fresh: signatures.Signatures, outcomes: dict[str, str]
    ) -> None:
        """Store a block again, and add the outcome: why the block is lost; empty if it isn't.

        An outcome of all locators of the block is under its digest and size, one of this
        locator only is under its text.
        """
        try:
            fresh.take(self._store.put_again(locator, self._copies))
        except KeepRequestError as error:
            if error.cause is Cause.NOT_FOUND:
                outcomes[locator.stripped()] = str(error)
            elif signatures.is_expired(locator):
                outcomes[str(locator)] = expired(locator)
            elif error.cause is Cause.DENIED:
                outcomes[str(locator)] = ""
                _log.warning("%s", of_retention.NOT_STORED_AGAIN(reason=error))
            else:
                raise
        else:
            outcomes[locator.stripped()] = ""


def store_missing(
    store: BlocksAgain, catalog: Path, copies: int, fresh: signatures.Signatures
) -> bool:
    """Store the blocks without a fresh signature again; return whether none failed.

    Blocks whose signatures have expired are left out.

    Args:
        store: The store of the blocks.
        catalog: The path of the mount's catalog.
        copies: Replicas to be confirmed.
        fresh: The fresh signatures; gets those of the blocks.

    Raises:
        CatalogError: The catalog can't be read.
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
