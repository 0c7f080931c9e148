"""Kill clients at random moments of stat, open, read, write and close, while others read.

pyfuse3's blocking read of /dev/fuse freezes the whole process when a client
is killed between the poll and the read; this shows for how long, at worst.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tests.mounted.mounts import mounted
from tests.soak.arguments import numbers_and_seed

if TYPE_CHECKING:
    from tests.mounted.mounts import KeepfsMount

#: Seconds the others may wait, as promised.
MOST_SECONDS = 0.2
_AT_ONCE = 4

# A client that never pauses. It runs without site, to start quickly.
_CLIENT = """
import os, random, sys
mount, block = sys.argv[1:]
mine = f"{mount}/upload/client-{os.getpid()}"
while True:
    os.stat(f"{mount}/README")
    try:
        os.stat(f"{mount}/by_id/{random.getrandbits(128):032x}+3")
    except FileNotFoundError:
        pass
    file = os.open(block, os.O_RDONLY)
    os.pread(file, 65536, random.randrange(1 << 20))
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    file = os.open(mine, os.O_RDWR | os.O_CREAT)
    os.pwrite(file, os.urandom(5000), random.randrange(100000))
    os.close(file)
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the readers who weren't killed saw.

    Attributes:
        kills: Clients killed.
        looks: How often the others asked for something the kernel didn't know.
        longest: Seconds the slowest of these took.
        median: Seconds half of them took at most.
    """

    kills: int
    looks: int
    longest: float
    median: float


def soak(mount: KeepfsMount, kills: int, seed: int) -> Outcome:
    """Kill that many clients, and watch what others see.

    Raises:
        subprocess.TimeoutExpired: A killed client didn't end.
    """
    (mount.upload / "block").write_bytes(os.urandom(1 << 21))
    block = mount.by_id / mount.locator(mount.upload / "block")
    draw = random.Random(seed)  # noqa: S311 - moments, not secrets
    waits: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            begin = time.monotonic()
            with contextlib.suppress(FileNotFoundError):
                (mount.by_id / f"{draw.getrandbits(128):032x}+3").stat()
            with block.open("rb", buffering=0) as file:
                os.pread(file.fileno(), 4096, 4096 * draw.randrange(256))
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            waits.append(time.monotonic() - begin)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(0, kills, _AT_ONCE):
            clients = [
                subprocess.Popen([sys.executable, "-S", "-c", _CLIENT, mount.path, block])
                for _ in range(_AT_ONCE)
            ]
            time.sleep(0.05 + draw.random() / 10)  # the random moment
            for client in clients:
                client.kill()
            for client in clients:
                client.wait(timeout=10)
    finally:
        over.set()
        for looker in lookers:
            looker.join()
    waits.sort()
    return Outcome(-(-kills // _AT_ONCE) * _AT_ONCE, len(waits), waits[-1], waits[len(waits) // 2])


def main() -> int:
    """Run as a script."""
    kills, seed = numbers_and_seed(500)
    with tempfile.TemporaryDirectory() as base, mounted(Path(base)) as mount:
        outcome = soak(mount, kills, seed)
    click.echo(
        f"{outcome.kills} clients killed; the others looked {outcome.looks} times, and waited"
        f" {outcome.median * 1000:.1f} ms (median), {outcome.longest * 1000:.0f} ms at most"
    )
    return 1 if outcome.longest > MOST_SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
