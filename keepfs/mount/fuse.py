"""FUSE: mounts through libfuse, sets the kernel's limits, interrupts reads that are stuck."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyfuse3

from keepfs.config.arvados import load_settings
from keepfs.keep.threads import START_PATIENCE
from keepfs.messages import of_mounts, of_running
from keepfs.mount.kernel_queue import KernelQueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from keepfs.config.options import MountOptions, StoreOptions

_log = logging.getLogger(__name__)

#: Seconds between two ticks of an interval timer. pyfuse3 reads /dev/fuse
#: blocking, with the interpreter's lock held. If a client is killed between
#: the poll and the read, the process blocks until the next request.
#: A signal interrupts the read, which limits this to the interval.
_TICK = 0.05
#: Requests handled concurrently. With pyfuse3's default of 99, 99 requests that
#: wait would block the whole mount; a task costs little.
_MAX_TASKS = 1000
#: Background requests, such as read-ahead, that the kernel sends concurrently.
_MAX_BACKGROUND = 256

#: A notification as in Linux's fuse.h: a header of length, code (FUSE_NOTIFY_RESEND) and a
#: request number of 0.
_RESEND = struct.pack("=IiQ", 16, 7, 0)

#: The kernel's time limits on requests, in seconds, since Linux 6.15; 0 means no limit.
_SETTINGS = Path("/proc/sys/fs/fuse")
#: Seconds between the kernel's checks of request ages: the shortest limit it can enforce.
_KERNEL_INTERVAL = 15
#: Seconds that a request may wait in the kernel before keepfs reads it and starts its clock.
_MARGIN = 5.0


class MountError(Exception):
    """Mounting failed; the message is one line: why, and what to do."""


@contextlib.contextmanager
def mounted(operations: pyfuse3.Operations, options: MountOptions) -> Iterator[None]:
    """Mount on entry, unmount on exit.

    Raises:
        MountError: The kernel or fusermount3 refuses the mount.
    """
    settings = {
        *pyfuse3.default_options,
        f"fsname={_escaped(_source(options.store))}",
        "subtype=keepfs",
        "nosuid",
        "nodev",
        *(["allow_other"] if options.allow_other else []),
        *(["ro"] if options.read_only else []),
        *(["noexec"] if options.noexec else []),
    }
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


def _source(options: StoreOptions) -> str:
    """Return the name of the store, for the mount's source in /proc/mounts; never empty.

    It is the directory of a local store, the addresses of Keep services, or the host of the
    API server.
    """
    if options.local_store is not None:
        return str(options.local_store)
    settings = load_settings()
    return (
        options.keep_services
        or settings.keep_services
        or settings.keep_proxy
        or settings.api_host
        or "keepfs"
    )


def _escaped(text: str) -> str:
    """Escape a value for libfuse, which splits options at commas."""
    return text.replace("\\", "\\\\").replace(",", "\\,")


def set_read_ahead(device: int, size: int) -> None:
    """Set the kernel's read-ahead, in bytes; 0 keeps it. Without root nothing changes."""
    if size:
        with contextlib.suppress(OSError):
            Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(
                str(size // 1024)
            )


def request_deadline(wanted: float, settings: Path = _SETTINGS) -> float:
    """Return the deadline of requests, in seconds; log a warning if it is below `wanted`.

    The kernel aborts the connection of a mount if an answer exceeds the kernel's own limit.

    Args:
        wanted: The deadline that the user set, in seconds.
        settings: The directory of the kernel's settings; if it is missing there are no limits.
    """
    default = _kernel_setting(settings / "default_request_timeout")
    most = _kernel_setting(settings / "max_request_timeout")
    limits = [each for each in (default, most) if each]
    if not limits:
        return wanted
    limit = max(_KERNEL_INTERVAL, min(limits))
    if wanted <= limit - _MARGIN:
        return wanted
    _log.warning(
        "%s",
        of_mounts.KERNEL_TIMEOUT(
            limit=limit,
            name="default_request_timeout" if default == min(limits) else "max_request_timeout",
            deadline=f"{limit - _MARGIN:.0f}",
            wanted=f"{wanted:.0f}",
        ),
    )
    return limit - _MARGIN


def _kernel_setting(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # an older kernel
        return 0


def resend_requests() -> bool:
    """Notify the kernel to resend the requests that were read and not answered.

    If pyfuse3 fails while it handles a request, that request is never answered and its
    caller can't even be killed. Needs Linux 6.9.

    Returns:
        Whether the kernel accepted the notification.
    """
    done = False
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(link) == "/dev/fuse":  # noqa: PTH115 - the text, not a path
                os.write(int(link.name), _RESEND)
                done = True
    return done


class KernelLoop:
    """pyfuse3's loop, which can be restarted after a failure."""

    def __init__(self) -> None:
        self._has_failed = False
        self._queue = KernelQueue()

    async def run(self) -> None:
        """Answer requests until the kernel sends no more."""
        if self._has_failed and not resend_requests():
            _log.warning("%s", of_running.REQUEST_ABANDONED())
        self._has_failed = True
        with self._queue.installed():
            await pyfuse3.main(max_tasks=_MAX_TASKS)


def allow_background(device: int) -> None:
    """Raise the kernel's limit of 12 background requests; without root nothing changes.

    Twelve that wait for a stalled service would block all other reads of large files.
    """
    connection = Path(f"/sys/fs/fuse/connections/{os.minor(device)}")
    with contextlib.suppress(OSError):
        (connection / "max_background").write_text(str(_MAX_BACKGROUND))
        (connection / "congestion_threshold").write_text(str(_MAX_BACKGROUND * 3 // 4))


class _Tick:
    """Handler of a tick: interrupts a thread start that hangs.

    trio starts its threads from the main thread, and CPython waits there until the new
    thread runs. A thread that gets no memory never runs (`keepfs.keep.threads`).

    Args:
        patience: Seconds that a thread may take to start running.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._starting: FrameType | None = None
        self._since = 0.0

    def __call__(self, _number: int, frame: FrameType | None) -> None:
        """Raise RuntimeError in the main thread if it is in `Thread.start` for too long."""
        starting = None
        if frame is not None and frame.f_code.co_filename == threading.__file__:
            while frame is not None and frame.f_code is not threading.Thread.start.__code__:
                frame = frame.f_back
            starting = frame
        if starting is not self._starting:
            self._starting, self._since = starting, time.monotonic()
        elif starting is not None and time.monotonic() - self._since > self._patience:
            self._starting = None
            raise RuntimeError("can't start new thread: it does not begin")


@contextlib.contextmanager
def ticking(start_patience: float = START_PATIENCE) -> Iterator[None]:
    """Run the interval timer: each tick interrupts a read of /dev/fuse that hangs.

    Args:
        start_patience: Seconds that a thread started by the main thread may take to run.
    """
    before = signal.signal(signal.SIGALRM, _Tick(start_patience))
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
    """Build the error message from the output of libfuse."""
    said = " ".join(said.split())
    hint = ""
    if "user_allow_other" in said:
        hint = ": let users do so with a line user_allow_other in /etc/fuse.conf"
    elif os.strerror(errno.EPERM) in said or os.strerror(errno.EACCES) in said:
        hint = (
            ": containers need --device /dev/fuse --cap-add SYS_ADMIN; AppArmor may allow"
            " mounting below $HOME, /mnt, /media and /tmp only"
        )
    return of_mounts.MOUNT_REFUSED(path=path, reason=said, hint=hint)
