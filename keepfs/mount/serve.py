"""Composition root of a mount: builds its parts, mounts, serves, drains and unmounts."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
from typing import TYPE_CHECKING

import trio

from keepfs import privacy, renewing_store, stores
from keepfs.collection_sources import collections_of
from keepfs.collections.local_collections import DIRECTORY
from keepfs.fs.bridge import open_blocks
from keepfs.fs.failure_text import failure_text
from keepfs.fs.nodes import ROOT_INODE
from keepfs.fs.requests import Requests
from keepfs.fs.supervision import supervised
from keepfs.fs.upload.catalog import Catalog, CatalogError
from keepfs.fs.upload.drain import Drain
from keepfs.fs.upload.failed import FailedFiles
from keepfs.fs.upload.failed_journal import FailedJournal
from keepfs.fs.upload.noting import FailureNotes
from keepfs.fs.upload.recovery import Spills
from keepfs.fs.upload.snapshot import CATALOG
from keepfs.fs.upload.staging import SLOT_OVERHEAD, Staging
from keepfs.fs.worker_threads import run_in_thread
from keepfs.keep.buffers import BufferPool
from keepfs.keep.errors import ArgumentError, KeepRequestError
from keepfs.keep.local import remove_leftovers
from keepfs.keep.retry import Backoff
from keepfs.keep.threads import NoThreadError
from keepfs.messages import of_commands, of_mounts
from keepfs.mount import (
    directories,
    event_loop,
    fuse,
    logs,
    memory,
    mountpoint,
    own_paths,
    retaining,
    runtime,
    systemd,
)
from keepfs.mount.control import Control
from keepfs.mount.daemon import MountAbandonedError, exit_status_of
from keepfs.mount.metrics_output import MetricsError
from keepfs.mount.observation import Observation, ObservedOwners
from keepfs.mount.signals import Signals, defer_others, receiving, stopping
from keepfs.mount.watchdog import keep_stacks_of_crash

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from keepfs.config.options import MountOptions
    from keepfs.fs.collection_tree.loaded import CollectionSource
    from keepfs.fs.operations import Operations
    from keepfs.mount.daemon import Reporter

_log = logging.getLogger(__name__)

#: Seconds between two checkpoints of the catalog's log.
_CHECKPOINT_INTERVAL = 5.0
#: Seconds a mount may take to answer its first request.
_READY_TIMEOUT = 30.0
#: The inode of a mount's root, and the type of its file system.
_ROOT_OF_MOUNT = (ROOT_INODE, mountpoint.FILE_SYSTEM_TYPE)
#: Restarts of pyfuse3's loop: no request is answered until it runs, but without
#: memory it fails at once. After about five minutes of failures the mount ends.
_LOOP_BACKOFF, _MOST_LOOP_FAILURES = Backoff(first=0.1, cap=5.0), 64


def run(options: MountOptions, reporter: Reporter, *, foreground: bool) -> int:
    """Mount, serve until unmounted or signalled, and unmount. Blocks; main thread only.

    Args:
        options: The mount's options.
        reporter: Called when the mount answers, or with the reason when it fails.
        foreground: Log to standard error, unless a log file is set.

    Returns:
        The exit code: 0; 1 if mounting failed or a file is not stored; 2 if mounting failed
        because of a setting.
    """
    try:
        return _serve(options, reporter, foreground=foreground)
    except BaseException:
        # In the background only the log shows the traceback.
        _log.critical("%s", of_commands.UNEXPECTED(what="the mount"), exc_info=True)
        raise


def _serve(options: MountOptions, reporter: Reporter, *, foreground: bool) -> int:
    """Do the work of `run`; report expected errors, raise others."""
    log_file = options.log_file
    if log_file is None and not foreground:
        log_file = options.state_dir / "log"
    code = 1
    try:
        own_paths.check_outside(options, log_file)
        _make_state_directory(options.state_dir)
        if not options.core_dumps:
            privacy.forbid_core_dumps()
        logs.start(options.log_level, log_file)
        logs.report_uncaught()
        keep_stacks_of_crash(log_file)
        early = defer_others()
        with runtime.claim(options.mountpoint, log_file, options.state_dir) as claim:
            _prepare(options)
            memory.limit_arenas()
            buffers = BufferPool()
            with stores.open_client(options.store, buffers) as client:
                stores.check_services(client, options.store)
                copies = stores.copies_of(client, options.store)
                store = renewing_store.RenewingStore(client, options.store)
                with (
                    collections_of(options.store, client, store) as found,
                    contextlib.closing(_open_catalog(options)) as catalog,
                    fuse.ticking(),
                ):
                    mount = _Mount(
                        options, store, found, buffers, copies, catalog, claim, reporter
                    )
                    code = event_loop.run_loop(mount.serve, early)
    except* (
        fuse.MountError,
        mountpoint.MountpointError,
        runtime.AlreadyServedError,
        MountAbandonedError,
        CatalogError,
        MetricsError,
        stores.StoreError,
        ArgumentError,
        KeepRequestError,
        OSError,
    ) as failures:  # errors of trio's tasks come in groups
        reason = failure_text(_first_of(failures))
        if logging.getLogger().hasHandlers():  # else it would go to standard error, as below
            _log.error("%s", reason)
        reporter.failed(reason)
        code = exit_status_of(reason)
    return code


def _make_state_directory(path: Path) -> None:
    try:
        privacy.make_directory(path)
    except privacy.NotPrivateError:
        raise
    except OSError as error:
        above = f"{error.filename}: " if error.filename not in {None, str(path)} else ""
        reason = f"{above}{error.strerror}"
        raise fuse.MountError(of_mounts.STATE_DIR_FAILED(path=path, reason=reason)) from error


def _open_catalog(options: MountOptions) -> Catalog:
    return Catalog(
        options.state_dir / CATALOG,
        stores.identity(options.store),
        owner=(options.uid, options.gid),
    )


def _prepare(options: MountOptions) -> None:
    """Check that the mount point is free; detach a dead keepfs mount."""
    mountpoint.check_fuse()
    while (entry := mountpoint.mounted_at(options.mountpoint)) is not None:
        if entry.kind != mountpoint.FILE_SYSTEM_TYPE:
            break
        if not mountpoint.is_dead(options.mountpoint):
            owner = mountpoint.other_owner(entry)
            who = "another process" if owner is None else f"user {owner}"
            raise fuse.MountError(of_mounts.ALREADY_MOUNTED(path=options.mountpoint, owner=who))
        _log.warning("%s", of_mounts.DEAD_MOUNT_CLEARED(path=options.mountpoint))
        mountpoint.detach(options.mountpoint, lazy=True)
    mountpoint.check_usable(options.mountpoint, nonempty=options.nonempty)


class _Mount:
    """One mount, from its first request to its last.

    Args:
        options: The options of the mount.
        store: The store of the blocks.
        collections: The source of collections; None if only Keep services are configured.
        buffers: Memory for whole blocks, for the store's cache and for staged bytes.
        copies: Replicas to be confirmed of each block.
        catalog: The persistent names in upload/.
        claim: The run file of the mount, which other processes read.
        reporter: Called when the mount answers.
    """

    def __init__(
        self,
        options: MountOptions,
        store: renewing_store.RenewingStore,
        collections: CollectionSource | None,
        buffers: BufferPool,
        copies: int,
        catalog: Catalog,
        claim: runtime.Claim,
        reporter: Reporter,
    ) -> None:
        self._options = options
        self._store = store
        self._collections = collections
        self._buffers = buffers
        self._copies = copies
        self._catalog = catalog
        self._claim = claim
        self._reporter = reporter
        self._requests = Requests(fuse.request_deadline(options.request_timeout))
        self._failed = FailedFiles()
        self._notes = FailureNotes(FailedJournal(options.state_dir), self._failed)
        self._was_mounted = False

    async def serve(self, early: list[int]) -> int:
        """Mount, serve, drain, unmount; return the exit code.

        Args:
            early: The signals that arrived before, of `defer_others`.
        """
        async with receiving(early) as signals:
            return await self._serve(signals)

    async def _serve(self, signals: AsyncIterator[int]) -> int:
        options = self._options
        async with open_blocks(self._store, copies=self._copies) as blocks:
            staging = Staging(
                blocks,
                options.staging_size,
                failed=self._failed,
                lend=self._buffers.lend,
                overhead=SLOT_OVERHEAD,
            )
            operations, upload = await directories.build(
                options, self._catalog, self._collections, self._requests, blocks, staging
            )
            spills = Spills(blocks, options.state_dir, self._catalog)
            if not options.read_only:
                await spills.restore(upload, staging)
            drain = Drain(upload, spills, blocks, self._store.close, options.drain_timeout)
            keeping = retaining.Keeping(options, self._catalog, self._store, self._copies)
            staging.renewal = keeping.begin(upload)
            observation = Observation(
                options,
                self._catalog,
                ObservedOwners(
                    self._requests, operations, self._store, staging, self._failed, keeping, drain
                ),
                Control(upload, drain, is_read_only=options.read_only),
            )
            with contextlib.closing(keeping), observation.serving():
                async with trio.open_nursery() as to_the_end:
                    serving = trio.CancelScope()
                    handling = Signals(
                        signals, self._store, self._failed, keeping.renew_now, drain, serving
                    )
                    to_the_end.start_soon(supervised, "handling signals", handling.run)
                    to_the_end.start_soon(supervised, "the watchdog", observation.watchdog.run)
                    to_the_end.start_soon(supervised, "keeping what is stored", keeping.run)
                    to_the_end.start_soon(
                        supervised, "noting what is not stored", lambda: self._notes.run(blocks)
                    )
                    try:
                        with serving:
                            await self._serve_mounted(operations, serving)
                    finally:
                        # Whatever the cause: unstored files are safe before the process ends.
                        with trio.CancelScope(shield=True):
                            if self._was_mounted:
                                await _drain_into_store(drain)
                                await keeping.finish(drain)
                            count, lost = await drain.finish()
                            self._notes.end(lost)
                    to_the_end.cancel_scope.cancel()
        return 1 if count else 0

    async def _give_memory_back(self) -> None:
        def give_back() -> None:
            self._buffers.release_idle()
            self._store.close_idle()

        await memory.trim_when_idle(lambda: self._requests.statistics().answered, give_back)

    async def _serve_mounted(self, operations: Operations, serving: trio.CancelScope) -> None:
        """Mount, answer requests until unmounted or cancelled, and unmount."""
        options = self._options
        with fuse.mounted(operations, options):
            self._was_mounted = True
            try:
                async with trio.open_nursery() as nursery:
                    for name, work in (
                        ("the watch over requests", self._requests.watch),
                        ("the catalog's checkpoints", self._keep_catalog_short),
                        ("retrying what is not stored", self._failed.retry),
                        ("removing leftovers", self._remove_leftovers),
                        ("giving memory back", self._give_memory_back),
                    ):
                        nursery.start_soon(supervised, name, work)
                    nursery.start_soon(self._announce)
                    await supervised(
                        "answering the kernel's requests",
                        fuse.KernelLoop().run,
                        most=_MOST_LOOP_FAILURES,
                        backoff=_LOOP_BACKOFF,
                    )
                    nursery.cancel_scope.cancel()
                if not serving.cancel_called:
                    _log.info("%s", mountpoint.why_ended(options.mountpoint))
            finally:
                self._claim.write(runtime.NO_DEVICE)
                systemd.notify(stopping(options.drain_timeout))
        # An aborted connection leaves its mount behind.
        entry = mountpoint.mounted_at(options.mountpoint)
        if entry is not None and entry.kind == mountpoint.FILE_SYSTEM_TYPE:
            with contextlib.suppress(mountpoint.MountpointError):
                mountpoint.detach(options.mountpoint, lazy=True)

    async def _announce(self) -> None:
        """Report ready once a stat of the mount, made in a worker thread, is answered.

        Raises:
            MountError: The mount does not answer, or has been unmounted meanwhile.
        """
        status, path = None, self._options.mountpoint
        with trio.move_on_after(_READY_TIMEOUT):
            status = await run_in_thread(path.stat)
        reason = ""
        if status is None:
            reason = f"the mount did not answer within {_READY_TIMEOUT:.0f} s"
        elif (status.st_ino, mountpoint.kind_of_device(status.st_dev)) != _ROOT_OF_MOUNT:
            # It is of the directory below the mount.
            reason = "it was unmounted before it was ready"
        if status is None or reason:
            raise fuse.MountError(of_mounts.UNUSABLE_MOUNT_POINT(path=path, reason=reason))
        self._claim.write(os.minor(status.st_dev))
        fuse.set_read_ahead(status.st_dev, self._options.read_ahead)
        fuse.allow_background(status.st_dev)
        # The present objects, such as modules, exist until exit. Frozen, they save each full
        # garbage collection 20 ms, during which no request is answered.
        gc.collect()
        gc.freeze()
        _log.info("the mount on %s answers", path)
        self._reporter.ready()
        systemd.notify(f"READY=1\nSTATUS=Serving {path}")

    async def _keep_catalog_short(self) -> None:
        """Checkpoint the catalog's log every few seconds."""
        while True:
            await trio.sleep(_CHECKPOINT_INTERVAL)
            try:
                # A disk that hangs must not delay the drain.
                await run_in_thread(self._catalog.checkpoint)
            except (NoThreadError, OSError) as error:
                _log.warning("%s", of_mounts.CATALOG_NOT_WRITTEN(reason=error))

    async def _remove_leftovers(self) -> None:
        """Remove the temporary files of killed writers from a local store."""
        store = self._options.store.local_store
        if store is not None and not self._options.read_only:
            count = 0
            for directory in (store, store / DIRECTORY):
                count += await run_in_thread(functools.partial(remove_leftovers, directory))
            if count:
                _log.info("removed %d temporary files of killed writers from %s", count, store)


async def _drain_into_store(drain: Drain) -> None:
    """Store the unstored files. Log any error: the remaining files must still be spilled."""
    try:
        await drain.store()
    except Exception:  # noqa: BLE001 - logged
        _log.exception("%s", of_commands.UNEXPECTED(what="storing before the end"))


def _first_of(group: BaseExceptionGroup[Exception]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
