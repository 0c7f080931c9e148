"""Origins: the collections that files and folders of upload/ came from, or were committed to.

They are recorded in `collections.json` in the state directory. Each entry has a path below
upload/, a collection's uuid, and the state of the collection at that time. A file lock
serializes the processes that write.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from typing import TYPE_CHECKING

from keepfs import privacy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAME = "collections.json"


class Origins:
    """Records collections by path and uuid. Blocking; any thread and process may use it.

    Args:
        state_dir: The state directory of the mount.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / _NAME

    def find(self, path: str, uuid: str) -> tuple[str, str] | None:
        """Return the recorded portable data hash and `modified_at` of a collection, or None.

        Raises:
            OSError: The file can't be read, or is damaged (then `errno` is None).
        """
        return self._read().get((path, uuid))

    def note(self, path: str, uuid: str, portable_data_hash: str, modified_at: str) -> None:
        """Record the current state of a collection; the record survives a power cut.

        Waits for other processes that write.

        Raises:
            OSError: The file can't be written, can't be read, or is damaged.
        """
        with self._locked():
            entries = self._read()
            entries[path, uuid] = (portable_data_hash, modified_at)
            rows = [[*key, *value] for key, value in sorted(entries.items())]
            new = self._path.with_name(f"{_NAME}.new")
            with open(privacy.open_file(new, os.O_WRONLY | os.O_TRUNC), "wb") as file:  # noqa: PTH123 - a descriptor
                file.write(json.dumps(rows).encode())
                file.flush()
                os.fsync(file.fileno())
            new.rename(self._path)
            privacy.sync_directory(self._path.parent)

    def _read(self) -> dict[tuple[str, str], tuple[str, str]]:
        try:
            rows = json.loads(self._path.read_bytes())
            return {(path, uuid): (pdh, modified) for path, uuid, pdh, modified in rows}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError) as error:
            raise OSError(f"{self._path} is damaged ({error}): remove it") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = privacy.open_file(self._path.with_name(f"{_NAME}.lock"), os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
