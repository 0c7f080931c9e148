"""keepfs mounted over the services, in a process of its own as a user starts it."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.rig import Rig

#: Seconds a mount may take.
_PATIENCE = 60.0
_numbers = itertools.count()


class Mount:
    """A mount that is up.

    Attributes:
        path: The mount point.
        pid: The process that serves it.
    """

    def __init__(self, path: Path, pid: int) -> None:
        self.path = path
        self.pid = pid

    @property
    def by_id(self) -> Path:
        """The directory of all blocks."""
        return self.path / "by_id"

    @property
    def upload(self) -> Path:
        """The directory that is stored."""
        return self.path / "upload"


def command(base: Path, *options: str) -> list[str]:
    """Return the command that mounts on `base`/mnt."""
    return [
        *(sys.executable, "-m", "keepfs", "mount"),
        *("--log-file", str(base / "log"), "--state-dir", str(base / "state")),
        *options,
        str(base / "mnt"),
    ]


def environment(rig: Rig, base: Path) -> dict[str, str]:
    """Return the environment of everything about a mount: no settings of the user's."""
    return {**rig.services.environment, "HOME": str(base)}


def new_base(rig: Rig) -> Path:
    """Make a directory for a mount and its state."""
    base = rig.base / f"mount-{next(_numbers)}"
    (base / "mnt").mkdir(parents=True)
    return base


@contextmanager
def mounted(rig: Rig, *options: str) -> Iterator[Mount]:
    """Mount for a while.

    Raises:
        RuntimeError: It didn't come up, or didn't end well; with the log's end.
    """
    base = new_base(rig)
    with subprocess.Popen(
        command(base, "--foreground", *options), env=environment(rig, base)
    ) as process:
        try:
            _wait(process, base)
            yield Mount(base / "mnt", process.pid)
        finally:
            process.terminate()
            code = process.wait(_PATIENCE)
    if code:
        raise RuntimeError(f"keepfs ended with {code}:\n{_log(base)}")


def _wait(process: subprocess.Popen[bytes], base: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while " answers" not in _log(base):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"keepfs didn't mount:\n{_log(base)}")
        time.sleep(0.01)
    # Said just before it tells whoever waits: what it does once is done now.
    (base / "mnt" / "README").read_bytes()


def _log(base: Path) -> str:
    path = base / "log"
    return path.read_text()[-2000:] if path.exists() else ""
