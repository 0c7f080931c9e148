"""The composition root: builds every part bottom-up, mounts, serves, drains, unmounts."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyfuse3
import trio

from keepfs import __version__, logs, mountpoint, runtime, stores, systemd
from keepfs.fs.blocks import Lookup, open_blocks
from keepfs.fs.by_id import ByIdDirectory
from keepfs.fs.nodes import Metadata, Ownership, directory_mode
from keepfs.fs.operations import Operations
from keepfs.fs.requests import Requests
from keepfs.fs.root import RootDirectory, TextFile, readme_text
from keepfs.fs.staging import Staging
from keepfs.fs.upload import UploadDirectory
from keepfs.keep.errors import ArgumentError, KeepRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.daemon import Reporter
    from keepfs.options import MountOptions

_log = logging.getLogger(__name__)

#: Requests answered at once. pyfuse3's own limit of 99 lets the hundredth
#: waiting one stop the whole mount; a task costs little.
_MAX_TASKS = 1000
#: Seconds between two ticks of an interval timer. pyfuse3 reads /dev/fuse
#: blocking, with the interpreter's lock held: if a client is killed between
#: the poll and the read, everything stands still until the next request.
#: A signal ends the read; so nothing stands still longer than this.
_TICK = 0.05
#: Seconds a mount may take to answer its first request.
_READY_TIMEOUT = 30.0


class MountError(Exception):
    """There is no mount; one line says why, and what to do."""


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
        log_file = default_log_file(options)
    code = 1
    try:
        logs.start(options.log_level, log_file)
        with runtime.claim(options.mountpoint, log_file) as claim:
            _prepare(options)
            with stores.open_client(options.store) as client, _ticking():
                stores.check(client, options.store)
                copies = stores.copies_of(client, options.store)
                store = stores.RenewingStore(client, options.store)
                code = trio.run(_Mount(options, store, copies, claim, reporter).serve)
    except* (
        MountError,
        mountpoint.MountpointError,
        runtime.AlreadyServedError,
        stores.StoreError,
        ArgumentError,
        KeepRequestError,
        OSError,
    ) as failures:  # a group, where it comes from among trio's tasks
        reason = _first_of(failures)
        _log.error("%s", reason)
        reporter.failed(str(reason))
    return code


def default_log_file(options: MountOptions) -> Path:
    """Return where a mount in the background logs."""
    name = str(options.mountpoint).strip("/").replace("/", "-") or "root"
    return options.state_dir / "log" / f"{name}.log"


def _prepare(options: MountOptions) -> None:
    """See that the mount point is free; a dead mount of ours is cleared away."""
    mountpoint.check_fuse()
    while (entry := mountpoint.mounted_at(options.mountpoint)) is not None:
        if entry.kind != mountpoint.FILE_SYSTEM_TYPE:
            break
        if not mountpoint.is_dead(options.mountpoint):
            raise MountError(f"{options.mountpoint} is already mounted, by another user")
        _log.warning("clearing the dead mount that a killed keepfs left on %s", options.mountpoint)
        mountpoint.detach(options.mountpoint, lazy=True)
    mountpoint.check_usable(options.mountpoint, nonempty=options.nonempty)


class _Mount:
    """One mount, from its first request to its last.

    Args:
        options: How to mount.
        store: Where the blocks are.
        copies: Replicas to be confirmed of each block.
        claim: Where others learn of the mount.
        reporter: Told once that the mount answers, or why it can't.
    """

    def __init__(
        self,
        options: MountOptions,
        store: stores.RenewingStore,
        copies: int,
        claim: runtime.Claim,
        reporter: Reporter,
    ) -> None:
        self._options = options
        self._store = store
        self._copies = copies
        self._claim = claim
        self._reporter = reporter
        self._requests = Requests(options.request_timeout)

    async def serve(self) -> int:
        """Mount, serve, drain, unmount; return the exit code."""
        options = self._options
        async with open_blocks(
            self._store,
            copies=self._copies,
            lookup=self._lookup(),
            lookup_wait=options.lookup_wait,
        ) as blocks:
            staging = Staging(blocks, options.staging_size)
            owner = Metadata(
                directory_mode(0),
                _given(options.uid, os.geteuid()),
                _given(options.gid, os.getegid()),
            )
            by_id = ByIdDirectory(self._fixed(0o555, owner), blocks)
            upload = UploadDirectory(self._fixed(0o777, owner), staging, by_id.stored)
            readme = TextFile(
                readme_text(__version__, self._copies, options.public_settings()), owner
            )
            root = RootDirectory({"README": readme, "by_id": by_id, "upload": upload}, owner)
            operations = Operations(
                root,
                blocks,
                self._requests,
                Ownership(options.uid, options.gid),
                read_only=options.read_only,
            )
            with self._mounted(operations):
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._requests.watch)
                        nursery.start_soon(self._announce)
                        nursery.start_soon(self._end_on_signal, upload, nursery.cancel_scope)
                        await pyfuse3.main(max_tasks=_MAX_TASKS)
                        nursery.cancel_scope.cancel()
                finally:
                    systemd.notify("STOPPING=1")
                # Nothing can be added any more: what there is now is all there is.
                unsaved = await self._drain(upload)
        return 1 if unsaved else 0

    def _lookup(self) -> Lookup:
        """Choose how to look names up: a directory is asked, not read, for a name."""
        if self._options.lookup is not None:
            return Lookup(self._options.lookup)
        return Lookup.HEAD if self._options.store.local_store else Lookup.FETCH

    def _fixed(self, permissions: int, owner: Metadata) -> Metadata:
        mode = directory_mode(permissions & ~self._options.umask)
        return Metadata(mode, owner.uid, owner.gid, owner.mtime_ns)

    @contextlib.contextmanager
    def _mounted(self, operations: Operations) -> Iterator[None]:
        options = self._options
        settings = {
            *pyfuse3.default_options,
            "fsname=keepfs",
            "subtype=keepfs",
            "nosuid",
            "nodev",
        }
        if options.allow_other:
            settings.add("allow_other")
        if options.read_only:
            settings.add("ro")
        said: list[str] = []
        try:
            with _captured_stderr(said):
                pyfuse3.init(operations, str(options.mountpoint), settings)
        except RuntimeError as error:
            raise MountError(_why_not(options.mountpoint, " ".join(said) or str(error))) from error
        _log.info("mounted on %s, %s", options.mountpoint, options.store)
        try:
            yield
        finally:
            pyfuse3.close(unmount=True)
            _log.info("unmounted from %s", options.mountpoint)

    async def _announce(self) -> None:
        """Report ready when the mount answers, asked like any client: from outside this thread."""
        with trio.fail_after(_READY_TIMEOUT):
            status = await trio.to_thread.run_sync(
                os.stat, self._options.mountpoint, abandon_on_cancel=True
            )
        self._claim.write(os.minor(status.st_dev))
        self._set_read_ahead(f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}")
        _log.info("the mount on %s answers", self._options.mountpoint)
        self._reporter.ready()
        systemd.notify(f"READY=1\nSTATUS=Serving {self._options.mountpoint}")

    def _set_read_ahead(self, device: str) -> None:
        """Let the kernel ask for more at once; only root may, and only as a help."""
        if self._options.read_ahead:
            with contextlib.suppress(OSError):
                Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(
                    str(self._options.read_ahead // 1024)
                )

    async def _end_on_signal(self, upload: UploadDirectory, serving: trio.CancelScope) -> None:
        """On SIGTERM or SIGINT store what isn't, then end serving; a second one ends at once.

        On SIGHUP read the token again.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    await trio.to_thread.run_sync(self._store.renew)
                    continue
                _log.info("%s: storing what is not stored yet", signal.Signals(number).name)
                systemd.notify("STOPPING=1")
                break
            async with trio.open_nursery() as nursery:

                async def impatient() -> None:
                    async for number in signals:
                        if number == signal.SIGHUP:
                            continue
                        _log.warning("%s again: not waiting", signal.Signals(number).name)
                        nursery.cancel_scope.cancel()

                nursery.start_soon(impatient)
                await self._drain(upload)
                nursery.cancel_scope.cancel()
        serving.cancel()

    async def _drain(self, upload: UploadDirectory) -> int:
        """Store what isn't stored yet, within the time allowed; return how many files aren't."""
        waiting = [file for file in upload.files() if file.needs_saving]
        with trio.move_on_after(self._options.drain_timeout):
            for file in waiting:
                try:
                    await file.store()
                except KeepRequestError as error:
                    _log.error("not stored: %s", error)
                except Exception:  # noqa: BLE001 - a bug with one file is no reason to lose others
                    _log.exception("not stored")
        unsaved = sum(file.needs_saving for file in waiting)
        if unsaved:
            _log.error("%d files in upload/ could not be stored", unsaved)
        return unsaved


def _first_of(group: BaseExceptionGroup[Exception]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


@contextlib.contextmanager
def _ticking() -> Iterator[None]:
    """Have the interval timer tick, and nothing done about it."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _captured_stderr(lines: list[str]) -> Iterator[None]:
    """Collect what libfuse and fusermount3 write to standard error."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            lines.extend(said.read().decode(errors="replace").split("\n"))


def _why_not(path: Path, said: str) -> str:
    """Explain why mounting failed, from what libfuse said."""
    said = " ".join(said.split())
    hint = ""
    if "user_allow_other" in said:
        hint = ": let users do so with a line user_allow_other in /etc/fuse.conf"
    elif os.strerror(errno.EPERM) in said or os.strerror(errno.EACCES) in said:
        hint = (
            ": containers need --device /dev/fuse --cap-add SYS_ADMIN; AppArmor may allow"
            " mounting below $HOME, /mnt, /media and /tmp only"
        )
    return f"can't mount on {path}: {said}{hint}"
