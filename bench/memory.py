"""Memory under load: many readers of different blocks and many writers of long files at once."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING

from bench import reading
from bench.measure import Figure, Meter, Target, VerifyError
from bench.mounting import mounted
from bench.services import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.rig import Rig

_MIB = 2**20
#: The defaults of `keepfs mount`, in MiB.
_CACHE = 256
_STAGING = 512
#: Transfers at once: reads and writes that keepfs's bridge to threads allows.
_TRANSFERS = 16 + 4
#: What keepfs itself takes, in MiB.
_ITSELF = 60


def measure(rig: Rig) -> Iterator[Figure]:
    """Measure the peak of 64 readers and 8 writers of 1 GiB, against the stated bound."""
    readers, writers, long = (2, 2, 2) if rig.quick else (64, 8, 16)
    bound = _CACHE + _STAGING + _TRANSFERS * (BLOCK // _MIB) + _ITSELF
    blocks = rig.blocks(readers)
    with mounted(
        rig,
        *("--cache-size", f"{_CACHE}MiB", "--staging-size", f"{_STAGING}MiB", "--copies", "2"),
    ) as mount:
        meter = Meter(mount.pid)
        meter.restart()
        used = meter.cpu()
        before = rig.services.counts()
        work: list[Callable[[], object]] = [
            *(_reader(mount.by_id / name) for name in blocks),
            *(_writer(rig, mount.upload / f"long-{n}", long) for n in range(writers)),
        ]
        seconds = reading.at_once(work)
        peak = meter.peak()
        others = {"s of load": seconds}
        after = rig.services.counts()
        if before and after:
            # Writers' blocks are read once, to check them.
            gets = after["GET"] - before["GET"] - writers
            others["GETs of each block"] = gets / readers
        yield Figure(
            name=f"memory: {readers} readers, {writers} writers of {long * rig.block >> 20} MiB",
            value=peak,
            unit="MiB",
            baseline="the bound",
            baseline_value=bound,
            ratio=bound / peak,
            target=Target(bound, "value"),
            cpu=meter.cpu() - used,
            rss=peak,
            samples=[peak],
            others=others,
        )


def _reader(path: Path) -> Callable[[], object]:
    return lambda: reading.verify(path, path.name)


def _writer(rig: Rig, path: Path, blocks: int) -> Callable[[], object]:
    """Write a long file, hashed on the way; then the services must have its last block."""
    piece = bytearray(os.urandom(_MIB))

    def work() -> None:
        digests = []
        slot = BLOCK // _MIB
        digest = hashlib.md5(usedforsecurity=False)
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        pieces = blocks * rig.block // _MIB
        for number in range(pieces):
            piece[:16] = threading.get_ident().to_bytes(8) + number.to_bytes(8)
            digest.update(piece)
            os.write(file, piece)
            if number % slot == slot - 1 or number == pieces - 1:
                digests.append(digest.hexdigest())
                digest = hashlib.md5(usedforsecurity=False)
        os.close(file)
        locators = os.getxattr(path, "user.keep.locator").decode().split(",")
        if [locator[:32] for locator in locators] != digests:
            raise VerifyError(f"{path} has wrong locators")
        if not rig.services.have(locators[-1]):
            raise VerifyError(f"{path} isn't in the services")

    return work
