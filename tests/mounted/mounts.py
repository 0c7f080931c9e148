"""Real mounts for tests: keepfs in a process of its own, as a user starts it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds that anything here may take before it counts as hung.
PATIENCE = 60.0


def why_no_mounts() -> str | None:
    """Say why nothing can be mounted here, or None where it can."""
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    if shutil.which("fusermount3") is None:
        return "there is no fusermount3"
    if os.geteuid() != 0 and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse can't be opened"
    return None


def keepfs(
    *arguments: str | Path, env: dict[str, str] | None = None, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "keepfs", *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        env=env,
        input=stdin,
    )


@dataclass
class KeepfsMount:
    """A mount of a local store, below a directory of the test's own.

    Attributes:
        base: Where everything of this mount is.
        options: Further options of `keepfs mount`.
        env: Variables it is started with.
        is_local: Whether the blocks are in a directory; else `env` says where.
    """

    base: Path
    options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    is_local: bool = True

    @property
    def path(self) -> Path:
        """The mount point."""
        return self.base / "mnt"

    @property
    def store(self) -> Path:
        """The local store's directory."""
        return self.base / "blocks"

    @property
    def by_id(self) -> Path:
        """The directory of all blocks."""
        return self.path / "by_id"

    @property
    def upload(self) -> Path:
        """The directory that is stored."""
        return self.path / "upload"

    @property
    def log_file(self) -> Path:
        """What the mount's process says."""
        return self.base / "log"

    @property
    def environment(self) -> dict[str, str]:
        """What keepfs is started with: no settings of whoever runs the tests."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("KEEP", "ARVADOS", "XDG_", "NOTIFY_", "WATCHDOG_"))
        }
        return {**kept, "HOME": str(self.base), **self.env}

    def mount_command(self, *extra: str) -> list[str]:
        """Return the command that mounts."""
        return [
            *(sys.executable, "-m", "keepfs", "mount"),
            *(("--local-store", str(self.store)) if self.is_local else ()),
            *("--log-file", str(self.log_file)),
            *("--log-level", "DEBUG", "--state-dir", str(self.base / "state")),
            *self.options,
            *extra,
            str(self.path),
        ]

    def try_mount(self) -> subprocess.CompletedProcess[bytes]:
        """Mount in the background, and return how that went."""
        return subprocess.run(
            self.mount_command(),
            capture_output=True,
            check=False,
            timeout=PATIENCE,
            env=self.environment,
        )

    def mount(self) -> None:
        """Mount in the background."""
        self.path.mkdir(parents=True, exist_ok=True)
        done = self.try_mount()
        said = [
            it
            for it in done.stderr.splitlines()
            if b"still waiting" not in it and b"refuses" not in it
        ]
        assert (done.returncode, done.stdout, said) == (0, b"", [])

    def unmount(self) -> subprocess.CompletedProcess[bytes]:
        """Unmount, and return how that went."""
        return keepfs("unmount", self.path, env=self.environment)

    def pid(self) -> int:
        """Return the number of the process that serves the mount."""
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                # A child that waits to be reaped has no command line any more.
                if words[-2:-1] == [bytes(self.path)] and b"mount" in words:
                    return int(process.name)
        raise LookupError(f"no process serves {self.path}")

    def is_mounted(self) -> bool:
        """Tell whether anything is mounted here, dead or alive."""
        # Others' mount points may have names that are no text.
        return b" %b " % bytes(self.path) in Path("/proc/self/mountinfo").read_bytes()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the process a signal, and wait until it has ended."""
        pid = self.pid()
        os.kill(pid, number)
        wait_until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or is_zombie(pid))

    def locator(self, path: Path) -> str:
        """Return the locator of a file in upload/."""
        return os.getxattr(path, "user.keep.locator").decode()

    def logged(self) -> list[str]:
        """Return the log's lines above DEBUG, but for those of every start and end."""
        if not self.log_file.exists():
            return []
        return [
            line
            for line in self.log_file.read_text().splitlines()
            if " DEBUG " not in line and " INFO keepfs.mount.serve: " not in line
            if " INFO keepfs.mount.fuse: " not in line
        ]

    def clean_up(self) -> None:
        """Leave neither a mount nor a process behind."""
        with contextlib.suppress(LookupError):
            if self.is_mounted():
                subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)
            self.kill()
        while self.is_mounted():
            subprocess.run(["umount", "-l", str(self.path)], check=True)


def is_zombie(pid: int) -> bool:
    """Tell whether a process has ended, and only its parent hasn't noticed."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def wait_until(condition: object, patience: float = PATIENCE) -> None:
    """Return when `condition()` is true.

    For what happens in other processes, which tell nobody.
    """
    assert callable(condition)
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it didn't happen"
        time.sleep(0.005)


@contextlib.contextmanager
def mounted(base: Path, *options: str) -> Iterator[KeepfsMount]:
    """Mount for a while."""
    mount = KeepfsMount(base, options)
    try:
        mount.mount()
        yield mount
        if mount.is_mounted():
            done = mount.unmount()
            assert (done.returncode, done.stderr) == (0, b"")
    finally:
        mount.clean_up()
