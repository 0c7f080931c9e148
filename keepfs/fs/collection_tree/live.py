"""LiveCollection: a collection by its name, loaded at a lookup and refreshed.

The content of a portable data hash never changes. A collection by uuid is requested again at
a lookup or listing if the last answer is older than the refresh interval.

For the trio thread only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

import trio

from keepfs.collections.names import is_uuid
from keepfs.fs.collection_tree.loaded import Loaded, LoadedCollection, load
from keepfs.fs.nodes import FOREVER, Validity
from keepfs.keep.errors import Cause, KeepRequestError
from keepfs.messages import of_retention

if TYPE_CHECKING:
    from keepfs.collections.manifest import Manifest
    from keepfs.fs.bridge import AsyncBlocks
    from keepfs.fs.collection_tree.loaded import BlockSignatures, CollectionSource
    from keepfs.fs.future import Future
    from keepfs.fs.nodes import Metadata

_log = logging.getLogger(__name__)

#: Default of `refresh`: seconds after which an access by uuid checks for a new version.
DEFAULT_REFRESH = 15.0
_DEFINITE = frozenset((Cause.NOT_FOUND, Cause.DENIED))


class LiveCollection:
    """A collection by its name.

    Args:
        name: Uuid or portable data hash.
        source: The source of collections.
        blocks: The block store; runs the requests in threads.
        owner: The user and group of files and folders.
        refresh: Seconds after which an access by uuid checks for a new version.

    Attributes:
        name: As above.
        blocks: As above.
        content: The present contents; None until they are loaded.
    """

    def __init__(
        self,
        name: str,
        source: CollectionSource,
        blocks: AsyncBlocks,
        owner: Metadata,
        refresh: float = DEFAULT_REFRESH,
    ) -> None:
        self.name = name
        self.blocks = blocks
        self.content: LoadedCollection | None = None
        self._source = source
        self._owner = owner
        self._refresh = refresh if is_uuid(name) else float("inf")
        self._asked_at = -float("inf")
        self._asking: Future[Loaded] | None = None

    async def check(self) -> None:
        """Return when the content is current. Concurrent callers share one request.

        If the source fails temporarily, the known content is kept, with a line in the log.

        Raises:
            KeepRequestError: There is no such collection, or the token may not read it; or no
                content is known and the source failed.
        """
        if self.check_nowait():
            return
        try:
            await self._ask().wait()
        except KeepRequestError as error:
            if self.content is None or error.cause in _DEFINITE:
                raise
        if self.content is not None:
            self.content.renew_if_due()

    def check_nowait(self) -> bool:
        """Do what `check` does, if no refresh is due; return whether it was done."""
        if self.content is None or self._left() <= 0:
            return False
        self.content.renew_if_due()
        return True

    @property
    def is_loading(self) -> bool:
        """Whether a fetch is in progress."""
        return self._asking is not None

    def validity(self) -> Validity:
        """Return how long the kernel may cache its names and attributes."""
        left = self._left()
        return FOREVER if left == float("inf") else Validity(max(0.0, left), max(0.0, left))

    def _left(self) -> float:
        """Return the seconds until the next refresh is due."""
        if self._refresh == float("inf"):
            return float("inf")
        return self._asked_at + self._refresh - trio.current_time()

    def _ask(self) -> Future[Loaded]:
        if self._asking is None:
            name, source = self.name, self._source
            known = "" if self.content is None else self.content.record.portable_data_hash
            self._asking = self.blocks.ask(lambda: load(source, name, known), self._note)
        return self._asking

    def _note(self, future: Future[Loaded]) -> None:
        self._asking = None
        failure = future.failure
        if failure is None:
            self._asked_at = trio.current_time()
            self._take(cast("Loaded", future.result))
        elif self.content is not None and getattr(failure, "cause", None) not in _DEFINITE:
            self._asked_at = trio.current_time()
            _log.warning(
                "%s", of_retention.COLLECTION_NOT_REFRESHED(name=self.name, reason=failure)
            )

    def _take(self, loaded: Loaded) -> None:
        if loaded.manifest is None and self.content is not None:
            self.content.describe(loaded.record)
        else:
            self.content = LoadedCollection(
                loaded.record,
                cast("Manifest", loaded.manifest),
                cast("BlockSignatures", loaded.signatures),
                self._source,
                self.blocks,
                self._owner,
            )
