"""Metrics output: exports the metrics of a mount over HTTP, or as a file for node-exporter."""

from __future__ import annotations

import contextlib
import logging
import stat
import threading
from typing import TYPE_CHECKING

from keepfs.keep.threads import Thread
from keepfs.messages import of_running
from keepfs.part_files import part_path

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from keepfs.config.options import MountOptions
    from keepfs.mount.figures import MountFigures

_log = logging.getLogger(__name__)

#: The permissions of the file.
_METRICS_MODE = 0o644
#: Seconds between two writes of the file: Prometheus's usual interval of scrapes.
_WRITE_INTERVAL = 15.0
#: Seconds to wait at the end for a write in progress; the disk may hang.
_JOINING = 5.0


class MetricsError(Exception):
    """The metrics can't be exported; the message is one line."""


@contextlib.contextmanager
def exporting(read: Callable[[], MountFigures], options: MountOptions) -> Iterator[None]:
    """Export metrics until exit, by HTTP and to a file as the options say; in separate threads.

    Args:
        read: Returns the figures; called in threads.
        options: The options of the mount; `metrics` and `metrics_file` are used.

    Raises:
        MetricsError: The address or the file can't be used.
    """
    with contextlib.ExitStack() as stack:
        if options.metrics is not None or options.metrics_file is not None:
            # Imported here: it takes 30 ms, and most mounts don't need it.
            from keepfs.mount.metrics import registry_of  # noqa: PLC0415

            registry = registry_of(read)
            if options.metrics is not None:
                stack.enter_context(_served(registry, *options.metrics))
            if options.metrics_file is not None:
                stack.enter_context(_written(registry, options.metrics_file))
        yield


@contextlib.contextmanager
def _served(registry: CollectorRegistry, host: str, port: int) -> Iterator[None]:
    from prometheus_client import start_http_server  # noqa: PLC0415 - as above

    shown = f"[{host}]" if ":" in host else host
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise MetricsError(
            of_running.METRICS_NOT_SERVED(
                address=f"{shown}:{port}", reason=error.strerror or error
            )
        ) from error
    _log.info("metrics: http://%s:%d/metrics", shown, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(1.0)


@contextlib.contextmanager
def _written(registry: CollectorRegistry, path: Path) -> Iterator[None]:
    file, ended = _MetricsFile(registry, path), threading.Event()

    def write_often() -> None:
        has_failed = False
        while not ended.wait(_WRITE_INTERVAL):
            try:
                file.write()
            except OSError as error:
                if not has_failed:
                    _log.warning("%s", of_running.METRICS_NOT_WRITTEN(path=path, reason=error))
                has_failed = True
            else:
                has_failed = False

    try:
        file.write()
    except OSError as error:
        advice = "use another file" if path.parent.is_dir() else f"mkdir -p {path.parent}"
        raise MetricsError(
            of_running.NO_METRICS_FILE(path=path, reason=error.strerror or error, advice=advice)
        ) from error
    writer = Thread(target=write_often, name="keepfs metrics", daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join(_JOINING)  # else it may rename its file into place after the removal
        try:
            file.remove()
        except OSError as error:
            _log.warning("%s", of_running.METRICS_NOT_REMOVED(path=path, reason=error))


class _MetricsFile:
    """The file of the metrics, for one thread at a time.

    Args:
        registry: The metrics.
        path: The path of the file. Other mounts may write it, too; the last one counts.
    """

    def __init__(self, registry: CollectorRegistry, path: Path) -> None:
        self._registry = registry
        self._path = path
        # The inode and the time: the inode of a removed file is used again.
        self._written = (0, 0)

    def write(self) -> None:
        """Replace the file as a whole.

        Raises:
            OSError: It can't be written; nothing is left.
        """
        from prometheus_client import generate_latest  # noqa: PLC0415 - as above

        part = part_path(self._path)
        try:
            part.write_bytes(generate_latest(self._registry))
            # node-exporter runs as another user, and the umask of a service may be 077.
            part.chmod(_METRICS_MODE)
            self._written = _identity(part.stat())
            part.replace(self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise

    def remove(self) -> None:
        """Remove the file: old figures must not look like those of a running mount.

        The file of another mount stays.

        Raises:
            OSError: It can't be removed.
        """
        with contextlib.suppress(FileNotFoundError):
            status = self._path.stat()
            if not stat.S_ISREG(status.st_mode) or _identity(status) == self._written:
                self._path.unlink()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_ino, status.st_mtime_ns
