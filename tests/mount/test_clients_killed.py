"""Clients that are killed hold up neither the others nor the mount."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mount.mounts import PATIENCE, wait_until
from tests.soak.kills import soak

if TYPE_CHECKING:
    from tests.mount.mounts import KeepfsMount


def test_clients_killed_at_random_moments_leave_the_mount_alive(mount: KeepfsMount) -> None:
    outcome = soak(mount, kills=100, seed=1)

    # The promise is 0.2 s (scripts/soak-kills measures it); here only that
    # nobody waits for ever, on however slow a machine.
    assert outcome.looks > 0
    assert outcome.longest < 10
    (mount.upload / "after").write_bytes(b"alive")
    assert mount.locator(mount.upload / "after").endswith("+5")
    assert not any(" ERROR " in line for line in mount.logged())


def test_the_process_ticks_so_that_no_read_freezes_it(mount: KeepfsMount) -> None:
    # A blocking read of /dev/fuse ends only by a request or a signal: with no
    # request at all, the process must still be woken, again and again.
    status = Path(f"/proc/{mount.pid()}/status")

    def switches() -> int:
        lines = status.read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "voluntary_ctxt" in line)

    before = switches()
    wait_until(lambda: switches() > before + 10)


def test_a_client_killed_while_its_close_waits_is_gone_soon(unmounted: KeepfsMount) -> None:
    # A store that hangs: its file is a pipe that nobody writes to.
    unmounted.mount()
    unmounted.store.mkdir(exist_ok=True)
    md5sum = "5d41402abc4b2a76b9719d911017c592"
    os.mkfifo(unmounted.store / md5sum)
    script = "import os,sys; f=os.open(sys.argv[1],os.O_CREAT|os.O_WRONLY); os.write(f,b'hello')\n"
    script += "print(flush=True); os.close(f)"
    client = subprocess.Popen(
        [sys.executable, "-c", script, unmounted.upload / "file"], stdout=subprocess.PIPE
    )
    assert client.stdout is not None
    client.stdout.readline()
    wait_until(lambda: "fuse" in wchan(client.pid) or "request" in wchan(client.pid))

    client.kill()

    assert client.wait(timeout=PATIENCE) == -signal.SIGKILL
    client.stdout.close()
    assert os.getxattr(unmounted.upload / "file", "user.keep.state") == b"storing"
    # Let the store go on, so that the mount can end.
    with (unmounted.store / md5sum).open("wb") as pipe:
        pipe.write(b"hello")
    wait_until(lambda: os.getxattr(unmounted.upload / "file", "user.keep.state") != b"storing")


def wchan(pid: int) -> str:
    """Return where in the kernel a process waits."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return ""


def test_a_request_that_waits_too_long_is_answered(unmounted: KeepfsMount) -> None:
    unmounted.options = ("--request-timeout", "0.3")
    unmounted.mount()
    unmounted.store.mkdir(exist_ok=True)
    md5sum = "5d41402abc4b2a76b9719d911017c592"
    os.mkfifo(unmounted.store / md5sum)

    with pytest.raises(TimeoutError):
        (unmounted.upload / "file").write_bytes(b"hello")

    assert any("ETIMEDOUT" in line for line in unmounted.logged())
    with (unmounted.store / md5sum).open("wb") as pipe:
        pipe.write(b"hello")


def test_a_reader_that_waits_does_not_hold_up_others(unmounted: KeepfsMount) -> None:
    unmounted.mount()
    unmounted.store.mkdir(exist_ok=True)
    slow = "5d41402abc4b2a76b9719d911017c592"
    (unmounted.store / slow).write_bytes(b"hello")
    (unmounted.by_id / f"{slow}+5").stat()
    (unmounted.store / slow).unlink()
    os.mkfifo(unmounted.store / slow)
    answers: list[object] = []

    def read() -> None:
        try:
            answers.append((unmounted.by_id / f"{slow}+5").read_bytes())
        except OSError as error:
            answers.append(error)

    readers = [threading.Thread(target=read) for _ in range(30)]
    for reader in readers:
        reader.start()
    begin = time.monotonic()
    for number in range(50):
        (unmounted.upload / f"file-{number}").write_bytes(b"not held up")
    assert time.monotonic() - begin < PATIENCE
    assert answers == []

    # The pipe's reader ends with an error; whoever asks again finds the block.
    with (unmounted.store / slow).open("wb"):
        (unmounted.store / slow).unlink()
        (unmounted.store / slow).write_bytes(b"hello")
    for reader in readers:
        reader.join(PATIENCE)
    assert len(answers) == 30
    assert answers.count(b"hello") >= 29
