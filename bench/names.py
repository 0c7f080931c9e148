"""Names: stat of known and of new ones, and listing many."""

from __future__ import annotations

import itertools
import os
import stat
from typing import TYPE_CHECKING

from bench import baselines, build
from bench.measure import Amount, Target, VerifyError, compare, timed
from bench.mounting import mounted
from bench.services import md5

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.measure import Figure
    from bench.rig import Rig


def measure(rig: Rig) -> Iterator[Figure]:
    """Measure what is done with names."""
    small = rig.services.store_blocks(rig.many, 4096)
    with (
        mounted(rig) as mount,
        baselines.memfs(
            build.program("memfs", rig.programs), rig.base / "memfs-n", 1, 4096, 10**6
        ) as memfs,
    ):
        known = [str(mount.by_id / name) for name in small]
        many = rig.memory / "many"
        many.mkdir()
        in_memory = [str(many / name) for name in small]
        for path in in_memory:
            os.mknod(path)
        in_c = [str(memfs / "many" / f"name-{number:07}") for number in range(rig.many)]
        times = 50
        for paths in (known, in_memory, in_c):
            stat_all(paths, 1)
        yield compare(
            "mount: stat of known names",
            Amount(times * rig.many, "/s"),
            lambda: stat_all(known, times),
            {
                "tmpfs": lambda: stat_all(in_memory, times),
                "memfs in C": lambda: stat_all(in_c, times),
            },
            repeats=rig.repeats,
            pid=mount.pid,
            target=Target(300_000, "value"),
        )
        # Nobody has asked for these, in this mount: each lookup begins a fetch.
        new = itertools.count(rig.many)
        yield compare(
            "mount: stat of new names",
            Amount(rig.many, "/s"),
            lambda: stat_all(
                [str(mount.by_id / it) for it in rig.services.store_blocks(rig.many, 4096)], 1
            ),
            {
                "memfs in C": lambda: stat_all(
                    [str(memfs / "many" / f"name-{next(new):07}") for _ in range(rig.many)], 1
                )
            },
            repeats=rig.repeats,
            pid=mount.pid,
        )
        yield from _listing(rig, mount.upload / "many", mount.pid)


def stat_all(paths: list[str], times: int) -> float:
    """Ask for the size of each path, so many times over; return the seconds."""

    def work() -> None:
        for _ in range(times):
            for path in paths:
                os.stat(path)  # noqa: PTH116 - a Path costs more than the call

    return timed(work)


def _listing(rig: Rig, directory: Path, pid: int) -> Iterator[Figure]:
    fill(directory, rig.names)
    in_memory = rig.memory / "listing"
    fill(in_memory, rig.names)
    with baselines.memfs(
        build.program("memfs", rig.programs), rig.base / "memfs-l", 0, 0, rig.names
    ) as memfs:

        def names(path: Path) -> float:
            found: list[str] = []
            seconds = timed(lambda: found.extend(os.listdir(path)))  # noqa: PTH208 - bare names
            if len(set(found)) != rig.names:
                raise VerifyError(f"{len(found)} names in {path}")
            return seconds

        yield compare(
            f"mount: readdir of {rig.names:,} names",
            Amount(rig.names, "/s"),
            lambda: names(directory),
            {
                "memfs in C": lambda: names(memfs / "many"),
                "tmpfs": lambda: names(in_memory),
            },
            repeats=rig.repeats,
            pid=pid,
        )


def fill(directory: Path, count: int) -> None:
    """Make a directory of empty files with names as long as locators."""
    directory.mkdir()
    for number in range(count):
        os.mknod(directory / md5(str(number).encode()), stat.S_IFREG | 0o644)
