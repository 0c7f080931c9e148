"""Collections beside arv-mount: opened, listed, found in, read; and the memory of both."""

from __future__ import annotations

import functools
import itertools
import os
import random
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.arvmount import arv_mounted
from bench.baselines import drop_pages, read_file
from bench.measure import (
    Amount,
    Figure,
    Meter,
    Stopwatch,
    Target,
    VerifyError,
    compare,
    mb,
    timed,
)
from bench.mounting import mounted
from bench.reading import size_of, verify
from bench.services import md5
from tests.keepstore import portable_data_hash

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Protocol

    from bench.measure import Taken
    from bench.rig import Rig
    from tests.keepstore import ApiControls

    class _Trial(Protocol):
        def __call__(self, side: Side, /) -> float | Taken: ...


#: At least twice as fast, and at most half the memory.
_TARGET = Target(2)
#: Files of a listed collection; those of one folder have a block of small files.
_STEPS = (10, 1_000, 100_000)
#: Folders, and files in each, of the tree for `find`.
_FOLDERS, _IN_EACH = 100, 100
#: Bytes of a small file.
_SMALL = 4096
#: Files of one block each.
_BLOCKS = 16
#: Blocks of the long file: 4 GiB.
_LONG = 64
#: Room for the long files of all trials.
_DISK_CACHE = "32GiB"
#: Rounds of what takes minutes.
_MOST_ROUNDS = 3


@dataclass(frozen=True)
class Side:
    """A mount that shows collections.

    Attributes:
        folders: Where a portable data hash is a folder.
        pid: The process that serves it.
    """

    folders: Path
    pid: int


def measure(rig: Rig) -> Iterator[Figure]:
    """Measure collections beside arv-mount with its disk cache, both as by default.

    Each trial has a collection that neither program has seen. Both ask the same API server.
    Long files are read a second time with keepfs's disk cache, which is off by default.

    Raises:
        NotMeasuredError: There is no arv-mount, or no API server of ours.
    """
    with mounted(rig) as mount, arv_mounted(rig) as (theirs, api):
        ours = Side(mount.path / "collections", mount.pid)
        trees = _Trees(rig, api, ours, Side(theirs.path, theirs.pid))
        for count in (10, 20) if rig.quick else _STEPS:
            yield trees.listed(count)
        yield trees.found()
        yield trees.small_files()
        yield trees.files_of_a_block()
        yield from trees.long_file()
        yield from trees.memory()
    with mounted(rig, "--disk-cache", _DISK_CACHE) as mount, arv_mounted(rig) as (theirs, api):
        ours = Side(mount.path / "collections", mount.pid)
        yield from _Trees(rig, api, ours, Side(theirs.path, theirs.pid)).long_file(
            ", both with a disk cache"
        )


class _Trees:
    def __init__(self, rig: Rig, api: ApiControls, ours: Side, theirs: Side) -> None:
        self._rig = rig
        self._api = api
        self._ours, self._theirs = ours, theirs
        self._meters = [Meter(side.pid) for side in (ours, theirs)]
        self._numbers = itertools.count()
        #: Peaks of both by what was done, in MiB.
        self._peaks: dict[str, list[float]] = {}
        self._long = 2 if rig.quick else _LONG

    def listed(self, count: int) -> Figure:
        """Open and list a collection of one folder with this number of files."""
        names = [f"file-{number:06}" for number in range(count)]

        def trial(side: Side) -> float:
            folder = side.folders / self._collection({"": names})
            found: list[str] = []
            seconds = timed(lambda: found.extend(os.listdir(folder)))  # noqa: PTH208 - bare names
            if sorted(found) != names:
                raise VerifyError(f"{len(found)} names in {folder}")
            return seconds

        return self._compared(f"collections: open and list {count:,} files", Amount(0, "s"), trial)

    def found(self) -> Figure:
        """Open a tree and go through it by `find`, with each file's size."""
        folders, each = (3, 5) if self._rig.quick else (_FOLDERS, _IN_EACH)
        tree = {
            f"folder-{number:03}": [f"file-{name:03}" for name in range(each)]
            for number in range(folders)
        }

        def trial(side: Side) -> float:
            words = ["find", str(side.folders / self._collection(tree)), "-size", "-2"]
            found: list[str] = []
            seconds = timed(
                lambda: found.extend(
                    subprocess.run(words, capture_output=True, check=True, text=True)
                    .stdout.strip()
                    .split("\n")
                )
            )
            if len(set(found)) < folders * each:
                raise VerifyError(f"{len(found)} files found")
            return seconds

        return self._compared(
            f"collections: find in {folders * each:,} files", Amount(0, "s"), trial
        )

    def small_files(self) -> Figure:
        """Read small files that share a block, with a reader that opens each."""
        count = self._rig.many
        data = random.Random(0).randbytes(count * _SMALL)  # noqa: S311 - any bytes
        names = [f"file-{number:06}" for number in range(count)]

        def trial(side: Side) -> float:
            block = next(self._numbers).to_bytes(16) + data[16:]
            locator = self._rig.services.store(block, for_good=False)
            text = " ".join(
                [".", locator, *(f"{n * _SMALL}:{_SMALL}:{name}" for n, name in enumerate(names))]
            )
            folder = side.folders / self._known(f"{text}\n")
            read: list[bytes] = []
            paths = [folder / name for name in names]
            seconds = timed(lambda: read.extend(path.read_bytes() for path in paths))
            if b"".join(read) != block:
                raise VerifyError(f"{folder} has other bytes")
            return seconds

        return self._compared(
            f"collections: read {count:,} small files", Amount(count, "/s"), trial
        )

    def files_of_a_block(self) -> Figure:
        """Read files of one block each, cold, in the order of their names."""
        count, block = (3 if self._rig.quick else _BLOCKS), self._rig.block
        buffer = bytearray(2**20)

        def trial(side: Side) -> Taken:
            names = self._rig.services.store_blocks(count, block, for_good=False)
            files = (f"{block * number}:{block}:{number:03}" for number in range(count))
            folder = side.folders / self._known(f". {' '.join([*names, *files])}\n")
            os.listdir(folder)  # noqa: PTH208 - the collection is loaded before
            paths = [folder / f"{number:03}" for number in range(count)]
            watch = Stopwatch(side.pid)
            with watch:
                for path in paths:
                    read_file(path, buffer)
            for path, name in zip(paths, names, strict=True):
                verify(path, name)
                drop_pages(path)
            return watch.taken()

        return self._compared(
            f"collections: {count} files of a block each, cold", mb(count * block), trial
        )

    def long_file(self, how: str = "") -> Iterator[Figure]:
        """Read a long file from front to back, cold and then again.

        Args:
            how: What the names of the figures end with.
        """
        size = self._long * self._rig.block
        what = f"{size >> 30} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"
        buffer = bytearray(2**20)

        def cold(side: Side) -> Taken:
            names = self._rig.services.store_blocks(self._long, self._rig.block, for_good=False)
            path = self._long_path(side, names)
            watch = Stopwatch(side.pid)
            with watch:
                read_file(path, buffer)
            verify(path, ",".join(names))
            drop_pages(path)
            os.sync()  # what arv-mount wrote to its cache
            return watch.taken()

        yield self._compared(f"collections: {what} in sequence, cold{how}", mb(size), cold)
        names = self._rig.services.store_blocks(self._long, self._rig.block, for_good=False)

        def warm(side: Side) -> float:
            path = self._long_path(side, names)
            return read_file(path, buffer)

        yield self._compared(f"collections: {what} in sequence, again{how}", mb(size), warm)

    def memory(self) -> Iterator[Figure]:
        """Give the most memory of both, by what was done."""
        for what, (ours, theirs) in self._peaks.items():
            yield Figure(
                name=f"{what}: memory",
                value=ours,
                unit="MiB",
                baseline="arv-mount",
                baseline_value=theirs,
                ratio=theirs / ours,
                target=_TARGET,
                samples=[ours],
            )

    def _compared(self, name: str, amount: Amount, trial: _Trial) -> Figure:
        for meter in self._meters:
            meter.restart()
        figure = compare(
            name,
            amount,
            functools.partial(trial, self._ours),
            {"arv-mount": functools.partial(trial, self._theirs)},
            repeats=min(_MOST_ROUNDS, self._rig.repeats),
            target=_TARGET,
            memory=4 * self._rig.block,
        )
        self._peaks[name] = [meter.peak() for meter in self._meters]
        return figure

    def _long_path(self, side: Side, names: list[str]) -> Path:
        size = sum(map(size_of, names))
        return side.folders / self._known(f". {' '.join(names)} 0:{size}:long\n") / "long"

    def _collection(self, tree: dict[str, list[str]]) -> str:
        """Make a collection of files of 100 bytes, a block for 500; no block is stored."""
        lines = []
        for folder, names in tree.items():
            salt = next(self._numbers)
            blocks = [
                f"{md5(f'{salt} {number}'.encode())}+50000"
                for number in range(-(-len(names) // 500))
            ]
            files = (f"{100 * number}:100:{name}" for number, name in enumerate(names))
            lines.append(" ".join([f"./{folder}" if folder else ".", *blocks, *files]))
        return self._known("\n".join([*lines, ""]))

    def _known(self, manifest: str) -> str:
        """Have the API server know a collection; return its portable data hash."""
        name: str = portable_data_hash(manifest)
        self._api.configure(collections={name: manifest})
        return name
