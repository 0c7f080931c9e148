"""The progress of commands that wait for a mount or fill the disk cache, on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.keepstore import TEST_TOKEN, Fault, KeepstoreControls, Stage
from tests.mounted.mounts import PATIENCE, KeepfsMount, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

MIB = 1 << 20


@pytest.fixture
def store() -> Iterator[KeepstoreControls]:
    with KeepstoreControls() as it:
        yield it
        it.heal()


class Terminal:
    """A command whose standard error is a terminal.

    Attributes:
        shown: What it has shown so far.
    """

    def __init__(self, *words: str | Path, env: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keepfs", *map(str, words)],
            stderr=theirs,
            stdout=subprocess.DEVNULL,
            env={**env, "TERM": "xterm", "COLUMNS": "120"},
        )
        os.close(theirs)

    def shows(self, pattern: str) -> bool:
        """Return whether a text that matches was shown."""
        try:
            while more := os.read(self._ours, 65536):
                self.shown += more.decode(errors="replace")
        except OSError:  # nothing yet, or the other side is closed
            pass
        return re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.shown)) is not None

    def end(self) -> int:
        """Wait for its end; return the exit code."""
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.shows("")
            os.close(self._ours)


def test_unmount_shows_how_much_is_stored(
    unmounted: KeepfsMount, store: KeepstoreControls
) -> None:
    mount = unmounted
    mount.is_local = False
    (mount.base / "token").write_text(TEST_TOKEN)
    mount.env = {"ARVADOS_KEEP_SERVICES": store.url}
    mount.options = ("--copies", "1", "--retries", "0", "--token-file", str(mount.base / "token"))
    mount.mount()
    store.always(Fault(status=500), method="PUT")
    for name in ("one", "two", "three", "four"):
        with pytest.raises(OSError, match="Errno"):
            (mount.upload / name).write_bytes(name.encode() + bytes(MIB - len(name)))
    store.heal()
    store.always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")

    terminal = Terminal("unmount", mount.path, env=mount.environment)
    wait_until(lambda: terminal.shows(r"storing what is left.* 0%.*/4\.\d MiB"))
    store.release(1)
    wait_until(lambda: terminal.shows(r"storing what is left.* 2\d%.*/4\.\d MiB"))
    store.heal()

    assert terminal.end() == 0
    assert not mount.is_mounted()


def test_warm_shows_the_bytes(tmp_path: Path) -> None:
    blocks = tmp_path / "store"
    blocks.mkdir()
    (blocks / "5d41402abc4b2a76b9719d911017c592").write_bytes(b"hello")
    words = ("--disk-cache", "1MiB", "--disk-cache-dir", tmp_path / "cache")
    name = "5d41402abc4b2a76b9719d911017c592+5"
    environment = {**os.environ, "HOME": str(tmp_path), "KEEP_LOCAL_STORE": str(blocks)}

    terminal = Terminal("warm", *words, name, env=environment)

    assert terminal.end() == 0
    assert terminal.shows(r"warming.*5/5 bytes")
