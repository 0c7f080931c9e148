"""The watchdog of a mount whose service hangs: the dump in the log, and WATCHDOG=1."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.keepstore import TEST_TOKEN, Fault, KeepstoreControls, Stage
from tests.messages.provoking import assert_shows
from tests.mounted.mounts import PATIENCE, KeepfsMount, keepfs, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

#: keepfs with a limit of 1 s instead of 60, and without the watch that answers a request with
#: ETIMEDOUT at its deadline: the watchdog is for what that watch misses.
_WITHOUT_A_WATCH = """
import trio
from keepfs.fs.requests import Requests
from keepfs.mount.watchdog import Watchdog
async def watch(self):
    await trio.sleep_forever()
Requests.watch = watch
arguments = list(Watchdog.__init__.__defaults__)
arguments[-2:] = 1.0, 0.1
Watchdog.__init__.__defaults__ = tuple(arguments)
from keepfs.cli import main
main()
"""


class Manager:
    """A service manager: its socket for notifications."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)  # noqa: FBT003 - the standard library's

    def received(self) -> list[str]:
        """Return the notifications since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(4096).decode())
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def store() -> Iterator[KeepstoreControls]:
    with KeepstoreControls() as it:
        yield it
        it.heal()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    it = Manager(tmp_path / "notify")
    yield it
    it.close()


@pytest.fixture
def served(
    unmounted: KeepfsMount, store: KeepstoreControls, manager: Manager
) -> Iterator[KeepfsMount]:
    unmounted.is_local = False
    unmounted.path.mkdir(exist_ok=True)
    unmounted.env = {"ARVADOS_KEEP_SERVICES": store.url, "ARVADOS_API_TOKEN": TEST_TOKEN}
    unmounted.options = ("--retries", "0", "--copies", "1", "--request-timeout", "2")
    words = unmounted.mount_command("--foreground")[3:]
    with subprocess.Popen(
        [sys.executable, "-c", _WITHOUT_A_WATCH, *words],
        env={
            **unmounted.environment,
            "NOTIFY_SOCKET": str(manager.path),
            "WATCHDOG_USEC": "4000000",
        },
    ) as process:
        wait_until(unmounted.is_mounted)
        wait_until((unmounted.path / "README").exists)
        yield unmounted
        store.heal()
        process.terminate()
        process.wait(PATIENCE)


def test_a_stuck_request_is_dumped_once_and_withholds_watchdog_until_it_is_answered(
    served: KeepfsMount, store: KeepstoreControls, manager: Manager
) -> None:
    locator = store.store_block(b"x" * 200_000)
    notified: list[str] = []

    def is_notified() -> bool:
        notified.extend(manager.received())
        return notified.count("WATCHDOG=1") >= 2

    wait_until(is_notified)
    store.always(Fault(hold=Stage.MID_BODY), method="GET")
    with subprocess.Popen(
        ["cat", served.path / "by_id" / locator], stdout=subprocess.DEVNULL
    ) as reader:
        wait_until(lambda: "STUCK: " in served.log_file.read_text())
        manager.received()
        time.sleep(3.0)  # three times the interval of WATCHDOG=1
        withheld = manager.received()
        done = keepfs("status", served.path, "--json", env=served.environment)
        store.heal()
        assert reader.wait(PATIENCE) == 0
    wait_until(lambda: "not stuck any more" in served.log_file.read_text())
    notified.clear()
    wait_until(is_notified)

    assert [each for each in withheld if "WATCHDOG" in each] == []
    log = served.log_file.read_text()
    assert log.count("STUCK: ") == 1
    assert_shows(log, "mount-stuck", "mount-answers-again")
    stuck = next(line for line in log.splitlines() if "STUCK: " in line)
    assert "s past its deadline; WATCHDOG=1 is withheld" in stuck
    assert "keepfs/fs/by_id.py" in log.partition("every task:")[2]
    assert json.loads(done.stdout)["mounts"][0]["figures"]["oldest"]["path"].startswith("by_id/")
