"""Logging set-up: standard error, the systemd journal, or a rotated private file."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import logging.handlers
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING

import trio

from keepfs import privacy
from keepfs.messages import of_commands

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
#: The journal records the time and the level of an entry itself.
_JOURNAL_FORMAT = "%(name)s: %(message)s"
#: Levels, highest first, with their priorities from sd-daemon(3) and syslog(3).
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
_DEBUG_PRIORITY = 7
#: Bytes after which a log file is rotated, and the number of rotated files that are kept.
_MAX_BYTES, _KEPT = 10 * 2**20, 3


class _PrivateFileHandler(logging.handlers.RotatingFileHandler):
    """Logs to a file that only its owner can read; a device keeps its mode."""

    def _open(self) -> io.TextIOWrapper:
        def opened(path: str, flags: int) -> int:
            try:
                kind = stat.S_IFMT(os.lstat(path).st_mode)
            except FileNotFoundError:
                kind = stat.S_IFREG
            if kind in {stat.S_IFREG, stat.S_IFLNK}:
                return privacy.open_file(path, flags)
            return os.open(path, flags & ~os.O_CREAT)

        file = open(  # noqa: SIM115 - an opener
            self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=opened
        )
        assert isinstance(file, io.TextIOWrapper)  # noqa: S101 - for the type
        return file


class _JournalFormatter(logging.Formatter):
    """Prefixes each line with its priority, `<3>` (sd-daemon(3)); writes no time."""

    def __init__(self) -> None:
        super().__init__(_JOURNAL_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        priority = next(
            (it for level, it in _PRIORITIES if record.levelno >= level), _DEBUG_PRIORITY
        )
        # Each line is an entry of the journal.
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


def _is_journal(descriptor: int) -> bool:
    """Return whether the descriptor is the stream that systemd connected to its journal.

    $JOURNAL_STREAM is the device and the inode of that stream (systemd.exec(5)). The variable
    is inherited, so it may be set while the output goes elsewhere.
    """
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"


def start(level: str, file: Path | None) -> None:
    """Start logging to `file`, or to standard error if it is None.

    If standard error is the systemd journal, lines have a priority and no time.
    The file has mode 0600.

    Raises:
        OSError: The file can't be written, is a symbolic link, or belongs to
            another user.
    """
    handler: logging.Handler
    formatter = logging.Formatter(_FORMAT)
    if file is None:
        handler = logging.StreamHandler()
        if _is_journal(2):
            formatter = _JournalFormatter()
    else:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _PrivateFileHandler(
            file, maxBytes=_MAX_BYTES, backupCount=_KEPT, encoding="utf-8", errors="replace"
        )
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # INFO messages of libraries don't help the users of a mount.
    for library in ("urllib3", "pyfuse3"):
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))


def report_uncaught() -> None:
    """Log uncaught exceptions: standard error is /dev/null in the background."""
    log = logging.getLogger("keepfs")

    def in_thread(error: threading.ExceptHookArgs) -> None:
        if error.exc_value is not None:
            log.error("%s", of_commands.UNEXPECTED(what="a thread"), exc_info=error.exc_value)

    def unraisable(error: sys.UnraisableHookArgs) -> None:
        said = of_commands.UNEXPECTED(what=f"{error.object!r}")
        log.error("%s", said, exc_info=error.exc_value)

    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def describe_tasks(root: trio.lowlevel.Task | None = None) -> str:
    """Return the stack of every trio task, to find out what the mount waits for.

    It has files, lines and functions, but no values: no data and no token. For any thread, because
    it is needed while the event loop is stuck: trio returns copies of its lists of nurseries and
    tasks, each made in one operation. While the loop runs, the copies are of different moments.

    Args:
        root: The root task, for callers in other threads; None: the current one.
    """
    lines = []
    waiting = [trio.lowlevel.current_root_task() if root is None else root]
    while waiting:
        task = waiting.pop()
        if task is None:
            continue
        lines.append(f"task {task.name}:")
        # The stack of a task that runs at this moment can't be read from another thread.
        with contextlib.suppress(RuntimeError, ValueError):
            lines += [
                f"    {frame.f_code.co_filename}:{frame.f_lineno or '?'} {frame.f_code.co_name}"
                for frame in _awaited_frames(task.coro)
            ]
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return "\n".join(lines)


def _awaited_frames(coroutine: object) -> Iterator[FrameType]:
    """Yield the frames of a coroutine and of what it awaits, the outermost first.

    As `trio.lowlevel.Task.iter_await_frames`, and through the coroutines of pyfuse3, which
    Cython has compiled: their awaitables have no attributes, only references.
    """
    awaited: object | None = coroutine
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            yield frame
        inner = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
        if inner is None and not hasattr(awaited, "cr_frame") and not hasattr(awaited, "gi_frame"):
            held = gc.get_referents(awaited)
            inner = next((each for each in held if hasattr(each, "cr_frame")), None)
        awaited = inner


def describe_threads() -> str:
    """Return the stack of every thread, the innermost call first, without values."""
    names = {each.ident: each.name for each in threading.enumerate()}
    lines = []
    for number, top in sys._current_frames().items():  # noqa: SLF001 - documented, for this use
        lines.append(f"thread {names.get(number, number)}:")
        frame: FrameType | None = top
        while frame is not None:
            code = frame.f_code
            lines.append(f"    {code.co_filename}:{frame.f_lineno} {code.co_name}")
            frame = frame.f_back
    return "\n".join(lines)
