"""Retaining: sets up, by the options of a mount, how its stored files are retained."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING

import trio

from keepfs import renewing_store, stores
from keepfs.collections.remote_collections import RemoteCollections
from keepfs.fs.upload.catalog import Catalog, CatalogError
from keepfs.fs.upload.snapshot import CATALOG
from keepfs.fs.worker_threads import run_in_thread
from keepfs.keep.retry import Backoff
from keepfs.messages import of_commands, of_mounts, of_retention, of_stores
from keepfs.mount import event_loop
from keepfs.retention import losses
from keepfs.retention.keeper import Keeper
from keepfs.retention.kept import Mode
from keepfs.retention.ledger import KEY, Ledger
from keepfs.retention.mirror import Mirror, Wishes
from keepfs.retention.parts import default_name
from keepfs.retention.put_again import PutAgain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepfs.config.options import MountOptions
    from keepfs.fs.upload.drain import Drain
    from keepfs.fs.upload.file import UploadFile
    from keepfs.keep.services.api import ApiClient
    from keepfs.retention.kept import KeeperStatistics, KeptFiles

_log = logging.getLogger(__name__)

#: Retry rounds and back-off of one request; the keeper itself retries later.
_RETRIES, _BACKOFF = 1, Backoff(first=0.5, cap=2.0)

_IN_WORDS = {
    Mode.COLLECTION: """\
A collection of yours names all blocks of
upload/, so the cluster keeps them for as long as they are here.""",
    Mode.PUT: """\
While this is mounted, the blocks are stored again
before the cluster removes them.""",
    Mode.OFF: """\
Keep's garbage collection removes blocks that no collection names,
usually two weeks after they were last stored.""",
}
_LOCAL = """\
The blocks are files in a directory of this machine; nothing
removes them."""


def mode_of(options: MountOptions) -> Mode:
    """Return how stored blocks are retained: as the options say, else by the kind of store.

    Raises:
        StoreError: The options demand a collection, and no API server is configured.
    """
    if options.store.local_store is not None:
        return Mode.OFF
    if options.retain is None:
        return Mode.COLLECTION if stores.identity(options.store) else Mode.PUT
    mode = Mode(options.retain)
    if mode is Mode.COLLECTION and not stores.knows_api():
        raise stores.StoreError(
            of_stores.NEEDS_API_SERVER(
                what="--retain collection needs an API server", otherwise=", or use --retain put"
            )
        )
    return mode


def retention_in_words(options: MountOptions) -> str:
    """Return a text for the mount's README on how long blocks are kept."""
    return _LOCAL if options.store.local_store is not None else _IN_WORDS[mode_of(options)]


class Keeping:
    """The keeper of a mount, and the parts that it uses; `close` closes them.

    Args:
        options: The options of the mount.
        catalog: The catalog of the mount.
        store: The store of the blocks.
        copies: Replicas of each block.

    Raises:
        StoreError: As `mode_of`.
        OSError: The catalog can't be written.
    """

    def __init__(
        self,
        options: MountOptions,
        catalog: Catalog,
        store: renewing_store.RenewingStore,
        copies: int,
    ) -> None:
        self._options = options
        self._catalog = catalog
        self._store = store
        self._copies = copies
        self._path = options.state_dir / CATALOG
        mode = mode_of(options)
        if mode is Mode.OFF and options.store.local_store is None:
            _log.warning("%s", of_retention.RETENTION_OFF())
        try:
            self._ledger = Ledger.of(catalog.about(KEY))
        except ValueError as error:
            _log.error("%s", of_retention.RETENTION_RECORD_DAMAGED(reason=error))
            self._ledger = Ledger()
        if mode is Mode.COLLECTION:
            catalog.set_about(KEY, self._ledger.as_text())
        self._api: ApiClient | None = None
        self._put = PutAgain(store, self._path, copies, self._lost)
        self._keeper = Keeper(
            mode,
            catalog,
            self._path,
            store,
            copies,
            self._ledger,
            is_local=options.store.local_store is not None,
        )

    def begin(self, upload: KeptFiles) -> Keeper:
        """Set up the keeper for the files in upload/, and return it. Sends no request."""
        mirror = None
        if self._keeper.mode is Mode.COLLECTION:
            self._api = stores.open_api(self._options.store, self._store.api_token)
        if self._api is not None:
            mirror = Mirror(
                RemoteCollections(self._api, retries=_RETRIES, backoff=_BACKOFF),
                self._path,
                self._ledger,
                self._save,
                Wishes(
                    self._options.retain_as or _collection_name(self._options),
                    self._options.store.copies,
                    self._options.store.storage_classes,
                ),
            )
        self._keeper.begin(upload, self._put, mirror, self._api)
        return self._keeper

    def close(self) -> None:
        """End the requests to the API server that are in progress, and close its connections."""
        if self._api is not None:
            self._api.close()

    async def run(self) -> None:
        """Retain the stored files; runs until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                if self._keeper.mode is Mode.PUT:
                    nursery.start_soon(self._warn_of_former_token)
                await self._keeper.run()
        finally:
            self._put.stop()

    def statistics(self) -> KeeperStatistics:
        """Return the state of retention. For the trio thread."""
        return self._keeper.statistics()

    def renew_now(self) -> None:
        """Start to renew all stored files now. Doesn't wait."""
        self._keeper.renew_now()

    async def finish(self, drain: Drain) -> None:
        """Bring the collection up to date, before the drain's deadline or its `hurry`.

        An unexpected error is logged and not raised, so that the drain continues.
        """
        try:
            async with trio.open_nursery() as nursery:

                async def end_when_hurried() -> None:
                    await drain.hurried()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(end_when_hurried)
                await self._keeper.finish(drain.deadline)
                nursery.cancel_scope.cancel()
        except Exception:  # noqa: BLE001 - the remaining files must still be spilled
            _log.exception(
                "%s", of_commands.UNEXPECTED(what="bringing the collection of upload/ up to date")
            )

    async def _warn_of_former_token(self) -> None:
        def path_of(number: int) -> str:
            return trio.from_thread.run_sync(self._catalog.path_of, number)

        with contextlib.suppress(CatalogError):  # the keeper reads it, too, and reports that
            await run_in_thread(
                lambda: losses.warn_of_former_token(self._path, self._store.head_block, path_of)
            )

    def _save(self, ledger: Ledger) -> None:
        """Record a ledger, from a worker thread."""
        trio.from_thread.run_sync(self._catalog.set_about, KEY, ledger.as_text())

    def _lost(self, number: int, reason: str) -> None:
        trio.from_thread.run_sync(self._keeper.missing, number, reason)


class _NoFiles:
    """The files of a mount that is down: none are in memory."""

    def files(self) -> Iterable[UploadFile]:
        """Return no files."""
        return ()


def renew(options: MountOptions) -> None:
    """Renew the stored files of a mount that is down. Blocks.

    Raises:
        StoreError: The services or the API server don't answer, or refuse the token.
        CatalogError: The catalog can't be used, or a mount uses it.
        CollectionError: The API server refused a request, or can't be reached.
        KeepRequestError: Blocks could not be stored again.
    """
    path = options.state_dir / CATALOG
    if not path.exists():
        raise CatalogError(of_mounts.NO_CATALOG(path=path))
    with stores.open_client(options.store) as client:
        stores.check_services(client, options.store)
        store = renewing_store.RenewingStore(client, options.store)
        copies = stores.copies_of(client, options.store)
        with contextlib.closing(Catalog(path, stores.identity(options.store))) as catalog:
            catalog.forget_lost()
            with contextlib.closing(Keeping(options, catalog, store, copies)) as keeping:
                event_loop.run_loop(keeping.begin(_NoFiles()).once)


def _collection_name(options: MountOptions) -> str:
    mountpoint = os.fsencode(options.mountpoint).decode(errors="replace")
    return default_name(socket.gethostname(), mountpoint)
