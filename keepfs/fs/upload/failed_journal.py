"""FailedJournal: the unstored files of a running mount, for other processes to read.

A file of JSON lines in the state directory. Each line adds, replaces or removes an
entry; the file is rewritten when most of its lines are out of date. So recording one
file costs one line, independent of the number of unsaved files. A line truncated by
a full disk is skipped.

Blocking. No trio, no FUSE.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING

from keepfs.fs.upload.unsaved import About
from keepfs.privacy import sync_directory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_NAME = "unsaved.jsonl"
#: The file is rewritten when its lines exceed twice the entries plus this number.
_SLACK = 1000


class FailedJournal:
    """Records which files are not stored.

    Args:
        state_dir: The file's directory; the file of an earlier mount is replaced.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / _NAME
        self._entries: dict[int, About] = {}
        self._lines = 0
        self._is_whole = False
        self._lock = threading.Lock()
        self._has_ended = False

    def end(self, lost: Sequence[About]) -> None:
        """Keep only the entries of lost files; ignore later updates.

        Raises:
            OSError: It can't be written.
        """
        with self._lock:
            self._has_ended = True
            self._remove()
            self._entries = dict(enumerate(lost, 1))
            if self._entries:
                self._rewrite()

    def update(self, changes: Mapping[int, About | None]) -> None:
        """Record descriptions of files, by number; None if a file is no longer unsaved.

        Raises:
            OSError: They can't be written. The next update writes all of them.
        """
        with self._lock:
            if not self._has_ended:
                self._update(changes)

    def _update(self, changes: Mapping[int, About | None]) -> None:
        for number, about in changes.items():
            if about is None:
                self._entries.pop(number, None)
            else:
                self._entries[number] = about
        if not self._entries:
            self._remove()
        elif self._is_whole and self._lines + len(changes) <= 2 * len(self._entries) + _SLACK:
            self._append(changes)
        else:
            self._rewrite()

    def _remove(self) -> None:
        """Delete the file: nothing is unsaved."""
        self._path.unlink(missing_ok=True)
        self._entries.clear()
        self._lines, self._is_whole = 0, False

    def _append(self, changes: Mapping[int, About | None]) -> None:
        self._is_whole = False
        _write(self._path, os.O_APPEND, changes)
        self._lines += len(changes)
        self._is_whole = True

    def _rewrite(self) -> None:
        self._is_whole = False
        new = self._path.with_name(f"{_NAME}.new")
        _write(new, os.O_CREAT | os.O_TRUNC, self._entries, sync=True)
        new.rename(self._path)
        sync_directory(self._path.parent)
        self._lines = len(self._entries)
        self._is_whole = True


def read(state_dir: Path) -> list[About]:
    """Return the files that a mount has not stored, or has lost; empty without a journal.

    The mount may be running, or have ended: at its end only lost files remain.

    Raises:
        OSError: There is a journal, and it can't be read.
    """
    entries: dict[int, About] = {}
    try:
        text = (state_dir / _NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    for line in text.split(b"\n"):
        try:
            number, described = json.loads(line)
            if described is None:
                entries.pop(number, None)
            else:
                described["replaces"] = tuple(described["replaces"])
                entries[number] = About(**described)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue  # truncated by a full disk, or being written
    return list(entries.values())


def _write(
    path: Path, flags: int, entries: Mapping[int, About | None], *, sync: bool = False
) -> None:
    lines = [
        json.dumps([number, None if about is None else asdict(about)])
        for number, about in entries.items()
    ]
    # The line break comes first: it ends a line that a full disk truncated.
    content = memoryview("".join(f"\n{line}" for line in lines).encode())
    flags |= os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
