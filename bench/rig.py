"""What everything is measured with: the services, the blocks in them, places for files."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench import baselines, build
from bench.services import BLOCK, Kind, Services

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Blocks: both copies of what is long, and a few more; and where many blocks are read.
ROOM, MUCH_ROOM = 40, 72


@dataclass
class Rig:
    """What a run of the bench has.

    Attributes:
        services: That are measured with.
        programs: Where the programs in C are.
        base: A directory on the local disk, for this run.
        memory: A directory in memory, for this run.
        repeats: Of each measurement.
        block: Bytes of a block; fewer than 64 MiB in a quick run.
        many: Small things that are done in a row.
        long: Blocks in what is long.
        names: Of a long listing.
        disk_blocks: Blocks that are read from caches on the disk.
        quick: Whether amounts are tiny, to try the bench itself.
    """

    services: Services
    programs: Path
    base: Path
    memory: Path
    repeats: int = 5
    block: int = BLOCK
    many: int = 1000
    long: int = 16
    names: int = 10_000
    disk_blocks: int = 64
    quick: bool = False
    _blocks: list[str] = field(default_factory=list)

    @property
    def block_name(self) -> str:
        """How much a block is, for a figure's name."""
        return f"{self.block >> 20} MiB"

    @property
    def long_name(self) -> str:
        """How much the long is, for a figure's name."""
        size = self.block * self.long
        return f"{size >> 30} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"

    def blocks(self, count: int) -> list[str]:
        """Return the locators of so many blocks in the services; always the same ones."""
        missing = count - len(self._blocks)
        if missing > 0:
            self._blocks += self.services.store_blocks(missing, self.block)
        return self._blocks[:count]

    def file_in_memory(self) -> tuple[bytes, Path]:
        """Write a block nobody has into a file in memory."""
        data = os.urandom(self.block)
        return data, baselines.file_in_memory(self.memory, data)[1]


@contextmanager
def rig(
    urls: tuple[str, ...],
    programs: Path,
    repeats: int,
    *,
    quick: bool,
    kind: Kind = Kind.MEMORY,
    room: int = ROOM,
) -> Iterator[Rig]:
    """Start the services, unless some are given, and make the places; clear all away after.

    `room`: blocks that our services have room for, but for those that never go away.
    """
    block = 2**20 if quick else BLOCK
    program = None  # compiled before there is anything to clear away
    if not urls:
        is_go = kind is Kind.KEEPSTORE
        program = build.keepstore(programs) if is_go else build.program("server", programs)
    base = Path(tempfile.mkdtemp(prefix="keepfs-bench-"))
    memory = Path(tempfile.mkdtemp(prefix="keepfs-bench-", dir=baselines.MEMORY))
    if program is None:
        services = Services.given(urls)
    elif kind is Kind.KEEPSTORE:
        services = Services.keepstores(program, room * (block >> 10), base)
    else:
        services = Services.started(program, room * (block >> 10), block, kind)
    try:
        if services.ours:
            services.announce(base)
        it = Rig(services, programs, base, memory, repeats, block)
        if quick:
            it.many, it.long, it.names, it.quick = 20, 4, 100, True
        yield it
    finally:
        services.close()
        shutil.rmtree(memory, ignore_errors=True)
        shutil.rmtree(base, ignore_errors=True)
