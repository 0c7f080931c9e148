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
    from bench.mounting import Mount
    from bench.rig import Rig


def measure(rig: Rig) -> Iterator[Figure]:
    """Measure what is done with names."""
    program = build.program("memfs", rig.programs)
    with (
        mounted(rig) as mount,
        baselines.memfs(program, rig.base / "memfs-n", 1, 4096, 10**6) as memfs,
    ):
        yield _known(rig, mount, memfs)
        yield _new(rig, mount, memfs)
        yield from _listing(rig, mount.upload / "many", mount.pid)


def _known(rig: Rig, mount: Mount, memfs: Path) -> Figure:
    """Measure names that the kernel has been told."""
    small = rig.services.store_blocks(rig.many, 4096)
    many = rig.memory / "many"
    many.mkdir()
    for name in small:
        os.mknod(many / name)
    paths = {
        "keepfs": [str(mount.by_id / name) for name in small],
        "tmpfs": [str(many / name) for name in small],
        "memfs in C": [_name_in_c(memfs, number) for number in range(rig.many)],
    }
    for each in paths.values():
        stat_all(each, 1)
    times = 50
    return compare(
        "mount: stat of known names",
        Amount(times * rig.many, "/s"),
        lambda: stat_all(paths["keepfs"], times),
        {
            "tmpfs": lambda: stat_all(paths["tmpfs"], times),
            "memfs in C": lambda: stat_all(paths["memfs in C"], times),
        },
        repeats=rig.repeats,
        pid=mount.pid,
        target=Target(300_000, "value"),
    )


def _new(rig: Rig, mount: Mount, memfs: Path) -> Figure:
    """Measure names nobody has asked this mount for: each lookup begins a fetch."""
    numbers = itertools.count(rig.many)

    def ours() -> float:
        small = rig.services.store_blocks(rig.many, 4096)
        return stat_all([str(mount.by_id / name) for name in small], 1)

    def in_c() -> float:
        return stat_all([_name_in_c(memfs, next(numbers)) for _ in range(rig.many)], 1)

    return compare(
        "mount: stat of new names",
        Amount(rig.many, "/s"),
        ours,
        {"memfs in C": in_c},
        repeats=rig.repeats,
        pid=mount.pid,
    )


def _name_in_c(memfs: Path, number: int) -> str:
    return str(memfs / "many" / f"name-{number:07}")


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
