"""Keeper: the task of a mount that keeps what is stored in upload/. For the trio thread."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import trio

from keepfs.collections.remote_errors import CollectionError, ForbiddenError, UnauthorizedError
from keepfs.fs.upload.catalog import CatalogError
from keepfs.fs.upload.renewal import Relabelled
from keepfs.fs.worker_threads import run_in_thread
from keepfs.keep.errors import KeepRequestError
from keepfs.keep.threads import NoThreadError
from keepfs.messages import of_retention
from keepfs.retention import losses, rows, signatures
from keepfs.retention.kept import KeeperStatistics, Mode
from keepfs.retention.mirror import CreationRefusedError
from keepfs.retention.put_again import store_missing
from keepfs.retention.timing import Timing, Updated, in_words, time_of
from keepfs.retention.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keepfs.fs.upload.catalog import Catalog
    from keepfs.keep.locator import KeepLocator
    from keepfs.keep.services.api import ApiClient
    from keepfs.retention.kept import KeptFiles, KeptStore
    from keepfs.retention.ledger import Ledger
    from keepfs.retention.mirror import Mirror
    from keepfs.retention.put_again import PutAgain

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: The catalog's key for the start of the last round of `put`: unsigned blocks have no expiry.
_ROUND_KEY = "retention-put"
#: Files in memory that get new locators between two checkpoints of trio.
_AT_ONCE = 100
#: Seconds after new signatures or a failure in which further refusals don't request any.
_FRESH = 1.0
_FAILURES = (CollectionError, KeepRequestError, CatalogError, NoThreadError, OSError)


class Keeper:
    """Keeps stored files: mirrors them into collections, or stores their blocks again.

    Args:
        mode: How blocks are kept.
        catalog: The catalog of the mount.
        path: The path of the catalog, for connections of worker threads.
        store: The store of the blocks; its token is used for the API server too.
        copies: Replicas of each block.
        ledger: The record of the collections, from the catalog.
        is_local: Whether the blocks are in a local store, where nothing removes them.
    """

    def __init__(
        self,
        mode: Mode,
        catalog: Catalog,
        path: Path,
        store: KeptStore,
        copies: int,
        ledger: Ledger,
        *,
        is_local: bool = False,
    ) -> None:
        self._is_local = is_local
        #: How blocks are kept. `COLLECTION` becomes `PUT` if no collection may be created.
        self.mode = mode
        self._catalog = catalog
        self._path = path
        self._store = store
        self._copies = copies
        self._ttl = ledger.ttl
        self._token = store.api_token
        self._files: KeptFiles | None = None
        self._mirror: Mirror | None = None
        self._api: ApiClient | None = None
        self._put: PutAgain | None = None
        self._working = trio.Lock()
        # For reads with a refused signature: they must not wait for an update that hangs.
        self._refreshing = trio.Lock()
        # Files whose last version is in no update yet; the values distinguish versions.
        self._unretained: dict[int, int] = {}
        self._versions = self._renewals = 0
        self._is_known = False
        # These decide when the next update is made, on trio's clock.
        self._changes = catalog.changes
        self._changed_at: float | None = None
        self._updated: Updated | None = None
        self._retry_at = 0.0
        self._trouble = Trouble()
        self._earliest = 0.0  # the first expiry, on the wall clock; 0 until it is known
        self._is_token_new = self._is_round_wanted = False
        #: False if storing a block again for a new token has failed.
        self._are_all_signed = True
        self._renewed_at, self._renewed_for = float("-inf"), ""  # the time and the token

    def begin(
        self,
        files: KeptFiles,
        put: PutAgain,
        mirror: Mirror | None = None,
        api: ApiClient | None = None,
    ) -> None:
        """Set the parts that it uses; must be called before `run`.

        Args:
            files: upload/, for locators in memory.
            put: Stores blocks again.
            mirror: The collections; needed in mode `COLLECTION`.
            api: The API client of the mirror; it gets new tokens.
        """
        self._files, self._put, self._mirror, self._api = files, put, mirror, api
        self._catalog.on_version = self._note_version

    # --- called by files ----------------------------------------------------------

    def retained(self, number: int | None) -> str:
        """Return what keeps a file: collection uuid, `put` or `no`; empty for a local store."""
        if self._is_local:
            return ""
        if self.mode is Mode.PUT:
            return "put"
        if self._mirror is None or number is None or not self._is_known:
            return "no"
        return "no" if number in self._unretained else self._mirror.uuid_of(number) or "no"

    async def refused(self, locator: KeepLocator, number: int | None) -> bool:
        """Get new signatures after a refusal; return whether there are any. Cancellable."""
        if self.mode is Mode.OFF:
            return False
        before = self._renewals
        async with self._refreshing:
            if self._renewals != before:
                return True  # another call got them
            try:
                await self._take_token()
                if self.mode is Mode.PUT:
                    return await self._put_one(locator, number)
                is_fresh = trio.current_time() - self._renewed_at < _FRESH
                if is_fresh and self._renewed_for == self._token:
                    return False
                await self._refresh()
            except _FAILURES as error:
                # Delay the requests of other readers.
                self._renewed_at, self._renewed_for = trio.current_time(), self._token
                self._failed(error)
                return False
        return True

    def missing(self, number: int | None, reason: str) -> None:
        """Record that no service has a block of a file; log it if the catalog can't be written."""
        if number is None:
            return
        try:
            self._mark_lost({number: reason})
        except OSError as error:
            _log.warning("%s", of_retention.LOST_NOT_RECORDED(reason=error))

    def lost(self, number: int | None) -> str:
        """Return why a file can't be read any more; empty if it isn't recorded as lost."""
        return "" if number is None else self._catalog.lost(number)

    def statistics(self) -> KeeperStatistics:
        """Return the state of retention, as far as is known."""
        mode = "local" if self._is_local else self.mode.value
        parts = self._mirror.ledger.parts if self._mirror else ()
        updated = self._updated.ended if self._updated else None
        counts = len(self._unretained), self._trouble.failures
        return KeeperStatistics.of(mode, parts, updated, self._earliest, *counts)

    # --- the task -------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the stored files until cancelled. In mode `OFF` only record lost files once."""
        if self.mode is Mode.OFF:
            if not self._is_local:  # where nothing is signed
                async with self._working:
                    await self._guarded(self._find_expired)
            return
        while True:
            if trio.current_time() >= self._retry_at:
                async with self._working:
                    await self._guarded(self._step)
            await trio.sleep(self._timing.tick)

    async def finish(self, deadline: float) -> None:
        """Bring the collections up to date at the end of the mount; log a failure.

        Args:
            deadline: The end of the attempt, on trio's clock. The next mount completes it.
        """
        if self.mode is not Mode.COLLECTION or not (self._is_changed() or self._unretained):
            return
        with trio.move_on_at(deadline) as scope:
            async with self._working:
                await self._guarded(self._update)
        if scope.cancelled_caught or self._trouble.failures:
            _log.warning("%s", of_retention.RETENTION_BEHIND(time=in_words(self._timing.ttl)))

    async def once(self) -> None:
        """Bring the collections up to date and renew all signatures now. Cancellable.

        Raises:
            CollectionError: The API server refused it, or can't be reached.
            KeepRequestError: Blocks could not be stored again.
            CatalogError: The catalog can't be read.
        """
        async with self._working:
            if self.mode is Mode.COLLECTION:
                await self._renew()
                try:
                    await self._update()
                except CreationRefusedError as error:
                    self._fall_back(error)
                else:
                    await self._renew()
            if self.mode is Mode.PUT:
                self._is_round_wanted = True
                await self._put_what_is_due()

    def renew_now(self) -> None:
        """Make all work due at the next tick. `keepfs renew` requests it."""
        self._earliest, self._updated, self._is_round_wanted = 0.0, None, True
        self._retry_at = 0.0
        try:
            self._catalog.forget_lost()
        except OSError as error:
            _log.warning("%s", of_retention.LOST_NOT_FORGOTTEN(reason=error))

    @property
    def _timing(self) -> Timing:
        return Timing(self._ttl) if self._ttl > 0 else Timing()

    async def _guarded(self, work: Callable[[], object]) -> None:
        try:
            await work()  # type: ignore[misc] # a coroutine function
        except CreationRefusedError as error:
            self._fall_back(error)
        except _FAILURES as error:
            self._failed(error)
        else:
            self._trouble.over()
            self._retry_at = 0.0

    def _fall_back(self, error: CreationRefusedError) -> None:
        _log.warning("%s", of_retention.RETAINED_BY_PUT(reason=error))
        self.mode, self._mirror, self._is_token_new = Mode.PUT, None, False
        self._earliest = 0.0

    def _failed(self, error: Exception) -> None:
        wait = self._trouble.failed(error, self._timing)
        self._retry_at = trio.current_time() + wait

    async def _step(self) -> None:
        await self._take_token()
        if self.mode is Mode.PUT:
            await self._put_what_is_due()
            return
        now = signatures.wall_clock()
        if (
            not self._is_known
            or self._is_token_new
            or self._timing.renew_at(self._earliest) <= now
        ):
            await self._renew()
        if self._updated is None or trio.current_time() >= self._timing.update_at(
            self._updated, self._first_change()
        ):
            await self._update()

    async def _take_token(self) -> None:
        if self._store.api_token != self._token:
            self._token = self._store.api_token
            self._is_token_new = True
            if self._api is not None:
                self._api.api_token = self._token

    async def _asked(self, ask: Callable[[], _T]) -> _T:
        """Run `ask` in a thread; if the token is refused, read it again and repeat it once."""
        try:
            return await run_in_thread(ask)
        except UnauthorizedError:
            if not await run_in_thread(self._store.renew) and self._store.api_token == self._token:
                raise
            await self._take_token()
            return await run_in_thread(ask)

    # --- collections ------------------------------------------------------------------

    def _is_changed(self) -> bool:
        return self._catalog.changes != self._changes

    def _first_change(self) -> float | None:
        if self._is_changed() and self._changed_at is None:
            self._changed_at = trio.current_time()
        return self._changed_at

    async def _update(self) -> None:
        """Bring the collections up to date."""
        mirror = self._mirror
        if mirror is None:
            return
        taken, changes = dict(self._unretained), self._catalog.changes
        began = trio.current_time()
        try:
            await self._asked(mirror.update)
        except ForbiddenError:
            # A signature is refused, probably one of another token.
            self._is_token_new = True
            await self._renew()
            try:
                await self._asked(mirror.update)
            except ForbiddenError as error:
                if self._are_all_signed:
                    raise CreationRefusedError(str(error)) from error
                raise
        ended = trio.current_time()
        self._updated = Updated(ended, ended - began)
        self._changes, self._changed_at = max(changes, self._changes), None
        for number, version in taken.items():
            if self._unretained.get(number) == version:
                del self._unretained[number]
        if mirror.ledger.ttl == 0 and mirror.ledger.parts:
            await self._renew()
        self._is_known = True
        if taken:
            self._earliest = min(self._earliest, signatures.wall_clock() + self._timing.ttl)

    async def _renew(self) -> None:
        """Get the collections, and use their fresh signatures."""
        mirror = self._mirror
        if mirror is None:
            return
        fresh = await self._asked(mirror.fetch)
        self._ttl = mirror.ledger.ttl or self._ttl
        await self._take(fresh)
        with_missing = self._is_token_new
        await run_in_thread(lambda: self._rewrite(fresh, with_missing=with_missing))
        if with_missing:
            await self._take(fresh)
        self._is_token_new = False
        self._renewals += 1
        self._renewed_at, self._renewed_for = trio.current_time(), self._token
        self._earliest = fresh.expiry()
        await self._find_expired()

    async def _refresh(self) -> None:
        """Renew for a read. During an update leave out what the update may change."""
        mirror = self._mirror
        if mirror is None or not self._working.locked():
            async with self._working:
                await self._renew()
            return
        fresh = await self._asked(mirror.fetch_during_update)
        await self._take(fresh)
        await run_in_thread(lambda: self._rewrite(fresh, with_missing=False))
        self._renewed_at, self._renewed_for = trio.current_time(), self._token
        self._renewals += 1

    async def _take(self, fresh: signatures.Signatures) -> None:
        """Give new locators to the files in memory."""
        relabelled = Relabelled(fresh.newer)
        for count, file in enumerate(list(self._files.files() if self._files else ())):
            file.take_locators(relabelled)
            if count % _AT_ONCE == _AT_ONCE - 1:
                await trio.lowlevel.checkpoint()

    def _rewrite(self, fresh: signatures.Signatures, *, with_missing: bool) -> None:
        """Write new locators to the catalog. Blocks; runs in a worker thread.

        Args:
            fresh: The locators; gets those of blocks that are stored again.
            with_missing: Whether to store again the blocks that are not among them.
        """
        if with_missing:
            self._are_all_signed = store_missing(self._store, self._path, self._copies, fresh)
        for batch in rows.rewrites(self._path, fresh):
            trio.from_thread.run_sync(self._replace, batch)

    def _replace(self, batch: list[rows.Rewrite]) -> None:
        before = self._catalog.changes
        self._catalog.replace_contents(batch)
        self._changes += self._catalog.changes - before

    async def _find_expired(self) -> None:
        """Record the files with expired signatures as lost."""
        self._mark_lost(await run_in_thread(lambda: losses.expired_files(self._path)))

    def _mark_lost(self, reasons: dict[int, str]) -> None:
        before = self._catalog.changes
        losses.mark(self._catalog, reasons)
        self._changes += self._catalog.changes - before

    # --- put ----------------------------------------------------------------------------

    async def _put_what_is_due(self) -> None:
        put = self._put
        if put is None:
            return
        now, half = signatures.wall_clock(), self._timing.half
        is_token_new, is_wanted = self._is_token_new, self._is_round_wanted
        last = time_of(self._catalog.about(_ROUND_KEY))
        is_due_by_time = is_wanted or now - last >= half
        if not is_token_new and not is_due_by_time and self._earliest - half > now:
            return

        def is_due(locator: KeepLocator) -> bool:
            if locator.perm_expiry is None:
                return is_due_by_time
            return is_token_new or is_wanted or locator.perm_expiry.timestamp() - half <= now

        def work() -> float:
            for batch, fresh in put.round(is_due, half / 2):
                trio.from_thread.run(self._use, batch, fresh)
            return losses.first_expiry_after(self._path, now)

        self._earliest = await run_in_thread(work)
        self._is_token_new = self._is_round_wanted = False
        if is_due_by_time:
            before = self._catalog.changes
            self._catalog.set_about(_ROUND_KEY, str(now))
            self._changes += self._catalog.changes - before
        await self._find_expired()

    async def _use(self, batch: list[rows.Rewrite], fresh: signatures.Signatures) -> None:
        self._replace(batch)
        await self._take(fresh)
        self._renewals += 1

    async def _put_one(self, locator: KeepLocator, number: int | None) -> bool:
        """Store a block with a refused signature again; return whether that succeeded."""
        fresh = signatures.Signatures()
        fresh.take(await run_in_thread(lambda: self._store.put_again(locator, self._copies)))
        await self._take(fresh)
        if number is not None:
            content = self._catalog.content(number)
            self._replace([(number, content, fresh.rewritten(content))])
        return fresh.newer(locator) is not None

    def _note_version(self, number: int) -> None:
        self._versions += 1
        if self.mode is Mode.COLLECTION:
            self._unretained[number] = self._versions
        if self._earliest == float("inf") or not self._ttl:
            expiry = signatures.first_expiry([self._catalog.content(number)])
            self._earliest = min(self._earliest, expiry)
            if not self._ttl and expiry < float("inf"):
                self._ttl = max(0.0, float(round(expiry - signatures.wall_clock())))
