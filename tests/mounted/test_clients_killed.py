"""Clients that are killed hold up neither the others nor the mount."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mounted.mounts import PATIENCE, is_zombie, wait_until
from tests.soak.kills import soak

if TYPE_CHECKING:
    from tests.mounted.mounts import KeepfsMount


def test_clients_killed_at_random_moments_leave_the_mount_alive(mount: KeepfsMount) -> None:
    outcome = soak(mount, kills=100, seed=1)

    # The promise is 0.2 s (scripts/soak-kills measures it); here only that
    # nobody waits for ever, on however slow a machine.
    assert outcome.looks > 0
    assert outcome.longest < 10
    (mount.upload / "after").write_bytes(b"alive")
    assert mount.locator(mount.upload / "after").endswith("+5")
    assert not any(" ERROR " in line for line in mount.logged())


def test_a_timer_interrupts_blocked_reads_of_the_device(mount: KeepfsMount) -> None:
    # A blocking read of /dev/fuse ends only by a request or a signal: with no
    # request at all, the process must still be woken, again and again.
    status = Path(f"/proc/{mount.pid()}/status")

    def switches() -> int:
        lines = status.read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "voluntary_ctxt" in line)

    before = switches()
    wait_until(lambda: switches() > before + 10)


def test_a_client_killed_in_a_close_ends_soon(unmounted: KeepfsMount) -> None:
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
    wait_until(lambda: waits_for_mount(client.pid))

    client.kill()

    assert client.wait(timeout=PATIENCE) == -signal.SIGKILL
    client.stdout.close()
    assert os.getxattr(unmounted.upload / "file", "user.keep.state") == b"storing"
    # Let the store go on, so that the mount can end.
    with (unmounted.store / md5sum).open("wb") as pipe:
        pipe.write(b"hello")
    wait_until(lambda: os.getxattr(unmounted.upload / "file", "user.keep.state") != b"storing")


def test_a_reader_with_direct_io_can_be_killed(unmounted: KeepfsMount) -> None:
    unmounted.options = ("--direct-io",)
    unmounted.mount()
    (unmounted.upload / "file").write_bytes(b"hello")
    assert unmounted.unmount().returncode == 0
    pipe = unmounted.store / "5d41402abc4b2a76b9719d911017c592"
    pipe.unlink()
    os.mkfifo(pipe)
    unmounted.mount()
    script = "import os, sys; f = os.open(sys.argv[1], os.O_RDONLY); os.read(f, 5)"
    with subprocess.Popen([sys.executable, "-c", script, unmounted.upload / "file"]) as client:
        wait_until(lambda: waits_for_mount(client.pid))

        client.kill()

        assert client.wait(timeout=PATIENCE) == -signal.SIGKILL
    assert (unmounted.upload / "file").stat().st_size == 5
    with pipe.open("r+b", buffering=0) as both_ends:  # opens without a reader, too
        both_ends.write(b"hello")
        assert unmounted.unmount().returncode == 0


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


def test_a_waiting_reader_does_not_delay_others(unmounted: KeepfsMount) -> None:
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


#: Opens a file, and has a child, which has it open too, write and close it when told to.
_PARENT_AND_CHILD = """
import os, signal, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
child = os.fork()
if child:
    os.close(file)
    print(child, flush=True)
    signal.pause()
sys.stdin.readline()
os.write(file, b"hello")
try:
    os.close(file)
    print("stored", flush=True)
except OSError as error:
    print(error, flush=True)
"""


@pytest.mark.parametrize("becomes", ["a zombie", "stopped, with a signal to come"])
def test_a_close_is_not_interrupted_when_the_opener_was_killed(
    unmounted: KeepfsMount, becomes: str
) -> None:
    unmounted.mount()
    unmounted.store.mkdir(exist_ok=True)
    pipes = [
        unmounted.store / hashlib.md5(content, usedforsecurity=False).hexdigest()
        for content in (b"hello", b"other")
    ]
    for each in pipes:
        os.mkfifo(each)  # a store that hangs
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT_AND_CHILD, unmounted.upload / "file"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        try:
            child = int(parent.stdout.readline())
            if becomes == "a zombie":
                parent.kill()
                wait_until(lambda: is_zombie(parent.pid))
            else:
                parent.send_signal(signal.SIGSTOP)
                os.waitpid(parent.pid, os.WUNTRACED)
                parent.terminate()
            parent.stdin.write(b"go\n")
            parent.stdin.flush()
            wait_until(lambda: waits_for_mount(child))

            # Another client that is killed in its close is gone: so the child was looked at too.
            with subprocess.Popen(
                [sys.executable, "-c", _WRITER, unmounted.upload / "other"],
                stdout=subprocess.PIPE,
            ) as other:
                assert other.stdout is not None
                assert other.stdout.readline() == b"written\n"
                wait_until(lambda: waits_for_mount(other.pid))
                other.kill()
            for each, content in zip(pipes, (b"hello", b"other"), strict=True):
                write_to_reader(each, content)

            assert parent.stdout.readline() == b"stored\n"
        finally:
            parent.kill()  # a stopped one too


_WRITER = """
import os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(file, b"other")
print("written", flush=True)
os.close(file)
"""


def write_to_reader(pipe: Path, content: bytes) -> None:
    """Write to a named pipe once somebody reads it."""

    def is_written() -> bool:
        try:
            descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        os.write(descriptor, content)
        os.close(descriptor)
        return True

    wait_until(is_written)


def waits_for_mount(pid: int) -> bool:
    """Tell whether a process is in a request."""
    return "fuse" in wchan(pid) or "request" in wchan(pid)


def test_a_client_that_opens_in_one_thread_and_closes_in_another_can_be_killed(
    unmounted: KeepfsMount,
) -> None:
    unmounted.mount()
    unmounted.store.mkdir(exist_ok=True)
    pipe = unmounted.store / "5d41402abc4b2a76b9719d911017c592"
    os.mkfifo(pipe)
    script = "import os,sys,threading; f=os.open(sys.argv[1],os.O_CREAT|os.O_WRONLY)\n"
    script += "os.write(f,b'hello'); t=threading.Thread(target=os.close,args=(f,)); t.start()\n"
    script += "print(t.native_id, flush=True); t.join()"
    with subprocess.Popen(
        [sys.executable, "-c", script, unmounted.upload / "file"], stdout=subprocess.PIPE
    ) as client:
        assert client.stdout is not None
        thread = int(client.stdout.readline())
        wait_until(lambda: waits_for_mount(thread))

        client.kill()

        assert client.wait(timeout=PATIENCE) == -signal.SIGKILL
    with pipe.open("wb") as stored:
        stored.write(b"hello")
