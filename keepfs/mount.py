"""The composition root: builds every part bottom-up, mounts, serves, drains, unmounts."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
from typing import TYPE_CHECKING

import pyfuse3
import trio

from keepfs import __version__, fuse, logs, mountpoint, runtime, stores, systemd, unsaved
from keepfs.fs.blocks import Lookup, open_blocks
from keepfs.fs.by_id import ByIdDirectory
from keepfs.fs.catalog import Catalog, CatalogError
from keepfs.fs.failed import FailedFiles
from keepfs.fs.nodes import Metadata, Ownership, directory_mode
from keepfs.fs.operations import Operations
from keepfs.fs.recovery import about, put_aside, take_up
from keepfs.fs.requests import Requests
from keepfs.fs.root import RootDirectory, TextFile, readme_text
from keepfs.fs.staging import Staging
from keepfs.fs.upload import UploadDirectory
from keepfs.fs.upload_file import UploadFile
from keepfs.keep.buffers import BufferPool
from keepfs.keep.errors import ArgumentError, Cause, KeepRequestError
from keepfs.keep.local import remove_leftovers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from keepfs.daemon import Reporter
    from keepfs.options import MountOptions
    from keepfs.unsaved import UnsavedFile

_log = logging.getLogger(__name__)

#: Requests answered at once. pyfuse3's own limit of 99 lets the hundredth
#: waiting one stop the whole mount; a task costs little.
_MAX_TASKS = 1000
#: The signals that end a mount, and those that do something else.
_ENDS = (signal.SIGTERM, signal.SIGINT)
_OTHERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
#: Seconds between two looks at the length of the catalog's log.
_CHECKPOINT_INTERVAL = 5.0
#: Seconds a mount may take to answer its first request.
_READY_TIMEOUT = 30.0


def run(options: MountOptions, reporter: Reporter, *, foreground: bool) -> int:
    """Mount, serve until unmounted or told to end, and unmount. Blocks, in the main thread.

    Args:
        options: How to mount.
        reporter: Told once that the mount answers, or why it can't.
        foreground: Log to standard error, unless a file is named.

    Returns:
        The exit code: 0, or 1 if there was no mount or something is lost.
    """
    log_file = options.log_file
    if log_file is None and not foreground:
        log_file = options.state_dir / "log"
    code = 1
    try:
        _check_paths(options, log_file)
        logs.start(options.log_level, log_file)
        with runtime.claim(options.mountpoint, log_file, options.state_dir) as claim:
            _prepare(options)
            buffers = BufferPool()
            with stores.open_client(options.store, buffers) as client:
                stores.check(client, options.store)
                copies = stores.copies_of(client, options.store)
                store = stores.RenewingStore(client, options.store)
                with contextlib.closing(_catalog(options)) as catalog, fuse.ticking():
                    mount = _Mount(options, store, buffers, copies, catalog, claim, reporter)
                    code = trio.run(mount.serve)
    except* (
        fuse.MountError,
        mountpoint.MountpointError,
        runtime.AlreadyServedError,
        CatalogError,
        stores.StoreError,
        ArgumentError,
        KeepRequestError,
        OSError,
    ) as failures:  # a group, where it comes from among trio's tasks
        reason = _in_words(_first_of(failures))
        _log.error("%s", reason)
        reporter.failed(str(reason))
    return code


def _check_paths(options: MountOptions, log_file: Path | None) -> None:
    """See that nothing the mount needs lies in itself: it would wait for itself for ever."""
    needed = {
        "the local store": options.store.local_store,
        "the state directory": options.state_dir,
        "the log file": log_file,
    }
    for what, path in needed.items():
        if path is not None and path.resolve().is_relative_to(options.mountpoint):
            raise fuse.MountError(
                f"{what} {path} lies in the mount point {options.mountpoint}: take another place"
            )


def _catalog(options: MountOptions) -> Catalog:
    return Catalog(
        options.state_dir / "catalog.sqlite",
        stores.identity(options.store),
        owner=(options.uid, options.gid),
    )


def _prepare(options: MountOptions) -> None:
    """See that the mount point is free; a dead mount of ours is cleared away."""
    mountpoint.check_fuse()
    while (entry := mountpoint.mounted_at(options.mountpoint)) is not None:
        if entry.kind != mountpoint.FILE_SYSTEM_TYPE:
            break
        if not mountpoint.is_dead(options.mountpoint):
            raise fuse.MountError(f"{options.mountpoint} is already mounted, by another user")
        _log.warning("clearing the dead mount that a killed keepfs left on %s", options.mountpoint)
        mountpoint.detach(options.mountpoint, lazy=True)
    mountpoint.check_usable(options.mountpoint, nonempty=options.nonempty)


class _Mount:
    """One mount, from its first request to its last.

    Args:
        options: How to mount.
        store: Where the blocks are.
        buffers: Memory for whole blocks, of the store's cache and of what is written.
        copies: Replicas to be confirmed of each block.
        catalog: Where the names in upload/ are.
        claim: Where others learn of the mount.
        reporter: Told once that the mount answers, or why it can't.
    """

    def __init__(
        self,
        options: MountOptions,
        store: stores.RenewingStore,
        buffers: BufferPool,
        copies: int,
        catalog: Catalog,
        claim: runtime.Claim,
        reporter: Reporter,
    ) -> None:
        self._options = options
        self._store = store
        self._buffers = buffers
        self._copies = copies
        self._catalog = catalog
        self._claim = claim
        self._reporter = reporter
        self._requests = Requests(options.request_timeout)
        self._failed = FailedFiles(self._on_failed_changed)
        self._taken_up: dict[UploadFile, UnsavedFile] = {}
        self._drained = False

    async def serve(self) -> int:
        """Mount, serve, drain, unmount; return the exit code."""
        with trio.open_signal_receiver(*_ENDS, *_OTHERS) as signals:
            code = await self._serve(signals)
            # To the very end: a signal that comes while the rest is being
            # stored must not end that. Those that came are done with.
            with trio.move_on_after(0):
                async for _ in signals:
                    pass
        return code

    async def _serve(self, signals: AsyncIterator[int]) -> int:
        options = self._options
        async with open_blocks(
            self._store,
            copies=self._copies,
            lookup=self._lookup(),
            lookup_wait=options.lookup_wait,
        ) as blocks:
            staging = Staging(
                blocks, options.staging_size, failed=self._failed, lend=self._buffers.lend
            )
            owner = Metadata(
                directory_mode(0),
                _given(options.uid, os.geteuid()),
                _given(options.gid, os.getegid()),
            )
            by_id = ByIdDirectory(self._fixed(0o555, owner), blocks)
            upload = UploadDirectory.mounted(
                self._fixed(0o777, owner), staging, by_id.stored, self._catalog
            )
            readme = TextFile(
                readme_text(
                    __version__,
                    self._copies,
                    options.public_settings(),
                    is_local=options.store.local_store is not None,
                ),
                owner,
            )
            root = RootDirectory({"README": readme, "by_id": by_id, "upload": upload}, owner)
            operations = Operations(
                root,
                blocks,
                self._requests,
                Ownership(options.uid, options.gid),
                read_only=options.read_only,
                direct_io=options.direct_io,
            )
            if not options.read_only:
                self._taken_up = await take_up(blocks, options.state_dir, upload)
            with fuse.mounted(operations, options):
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._requests.watch)
                        nursery.start_soon(self._announce)
                        nursery.start_soon(self._keep_catalog_short)
                        nursery.start_soon(self._failed.retry)
                        nursery.start_soon(self._remove_leftovers)
                        nursery.start_soon(self._obey, signals, upload, nursery.cancel_scope)
                        await pyfuse3.main(max_tasks=_MAX_TASKS)
                        nursery.cancel_scope.cancel()
                finally:
                    systemd.notify("STOPPING=1")
                # Nothing can be added any more: what there is now is all there is.
                await self._drain(upload)
            not_stored = [file for file in upload.files() if file.needs_saving]
            lost = await put_aside(blocks, options.state_dir, not_stored)
            for file in set(not_stored) - set(lost):
                if file in self._taken_up:  # it is aside anew
                    self._taken_up.pop(file).remove()
            if not lost:  # else `keepfs unmount` finds them there
                unsaved.forget_told(options.state_dir)
        return 1 if not_stored else 0

    def _lookup(self) -> Lookup:
        """Choose how to look names up: a directory is asked, not read, for a name."""
        if self._options.lookup is not None:
            return Lookup(self._options.lookup)
        return Lookup.HEAD if self._options.store.local_store else Lookup.FETCH

    def _fixed(self, permissions: int, owner: Metadata) -> Metadata:
        mode = directory_mode(permissions & ~self._options.umask)
        return Metadata(mode, owner.uid, owner.gid, owner.mtime_ns)

    async def _announce(self) -> None:
        """Report ready when the mount answers, asked like any client: from outside this thread."""
        with trio.fail_after(_READY_TIMEOUT):
            status = await trio.to_thread.run_sync(
                os.stat, self._options.mountpoint, abandon_on_cancel=True
            )
        self._claim.write(os.minor(status.st_dev))
        fuse.set_read_ahead(status.st_dev, self._options.read_ahead)
        # Modules and what else is left now stay to the end: no full collection need go
        # through them again, 20 ms in which everybody waits.
        gc.collect()
        gc.freeze()
        _log.info("the mount on %s answers", self._options.mountpoint)
        self._reporter.ready()
        systemd.notify(f"READY=1\nSTATUS=Serving {self._options.mountpoint}")

    async def _keep_catalog_short(self) -> None:
        """Move what the catalog's log has into the catalog, now and then."""
        while True:
            await trio.sleep(_CHECKPOINT_INTERVAL)
            try:
                await trio.to_thread.run_sync(self._catalog.checkpoint)
            except OSError as error:
                _log.warning("%s", error)

    async def _remove_leftovers(self) -> None:
        """Remove what killed writers left in a local store."""
        store = self._options.store.local_store
        if store is not None and not self._options.read_only:
            count = await trio.to_thread.run_sync(remove_leftovers, store, abandon_on_cancel=True)
            if count:
                _log.info("removed %d temporary files of killed writers from %s", count, store)

    async def _obey(
        self, signals: AsyncIterator[int], upload: UploadDirectory, serving: trio.CancelScope
    ) -> None:
        """On SIGTERM or SIGINT store what isn't, then end serving; a second one ends at once.

        On SIGHUP read the token again, on SIGUSR1 try at once what failed, on
        SIGUSR2 log what every task waits for.
        """
        async for number in signals:
            if number == signal.SIGHUP:
                await trio.to_thread.run_sync(self._store.renew)
            elif number == signal.SIGUSR1:
                self._failed.retry_now()
            elif number == signal.SIGUSR2:
                _log.info("what every task waits for:\n%s", logs.describe_tasks())
            else:
                _log.info("%s: storing what is not stored yet", signal.Signals(number).name)
                systemd.notify("STOPPING=1")
                break
        async with trio.open_nursery() as nursery:

            async def impatient() -> None:
                async for number in signals:
                    if number in _ENDS:
                        _log.warning("%s again: not waiting", signal.Signals(number).name)
                        nursery.cancel_scope.cancel()

            nursery.start_soon(impatient)
            await self._drain(upload)
            nursery.cancel_scope.cancel()
        serving.cancel()

    async def _drain(self, upload: UploadDirectory) -> None:
        """Store what isn't stored yet, within the time allowed.

        The second time only what came since: what failed once is put aside.
        """
        waiting = [
            file
            for file in upload.files()
            if (file.needs_store if self._drained else file.needs_saving)
        ]
        self._drained = True
        with trio.move_on_after(self._options.drain_timeout):
            for file in waiting:
                try:
                    await file.store()
                except KeepRequestError as error:
                    _log.error("not stored: %s: %s", file.path, error)
                    if error.cause in {Cause.UNREACHABLE, Cause.TIMED_OUT}:
                        return  # so will be the others
                except Exception:  # noqa: BLE001 - a bug with one file is no reason to lose others
                    _log.exception("not stored: %s", file.path)

    def _tell_failed(self) -> None:
        """Let `keepfs unsaved` know which files aren't stored."""
        try:
            files = [it for it in self._failed.files() if isinstance(it, UploadFile)]
            unsaved.tell(self._options.state_dir, [about(file) for file in files])
        except OSError as error:
            _log.warning("can't note which files are unsaved: %s", error)

    def _on_failed_changed(self) -> None:
        self._tell_failed()
        waiting = set(self._failed.files())
        for file in [file for file in self._taken_up if file not in waiting]:
            self._taken_up.pop(file).remove()


def _in_words(error: BaseException) -> str:
    """Say what went wrong, a file's name first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _first_of(group: BaseExceptionGroup[Exception]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _given(value: int | None, default: int) -> int:
    return default if value is None else value
