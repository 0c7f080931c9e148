"""The disk cache beside arv-mount's and beside plain files: second runs, random reads, sharing.

Every trial has new processes, as the second run of a job has, and begins without a page of
the files that it reads: neither the kernel's pages of a mount nor those of the cache's files.
So the caches and the plain files are all read from the disk, by the same code.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import subprocess
import sys
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from bench.arvmount import arv_mount_caching, arv_mount_is_here
from bench.baselines import drop_pages, read_file
from bench.measure import (
    Amount,
    Meter,
    NotMeasuredError,
    Stopwatch,
    Target,
    VerifyError,
    compare,
    mb,
    prepare_memory,
)
from bench.mounting import environment, mounted
from bench.reading import at_once
from tests.keepstore import portable_data_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from bench.measure import Figure, Taken
    from bench.mounting import Mount
    from bench.rig import Rig

_PAGE = 4096
#: Bytes that the kernel reads ahead of a page, at most; and that are prepared for a trial.
_AHEAD, _MOST_PREPARED = 128 * 1024, 8 * 2**30
#: Memory for the blocks of each keepfs process: four blocks.
_MEMORY_BLOCKS = 4
#: Of the disk's rate; times arv-mount's, in sequence and at random.
_OF_DISK, _OF_ARV_MOUNT, _AT_RANDOM = 0.7, 2, 10
#: Processes that share the cache, and readers at once of one file.
_SHARING, _READERS = 4, 16
#: Blocks that are put at a time: our services forget them later.
_BATCH = 16
#: Blocks of each process of several.
_SHARED_BLOCKS = 16
#: Rounds of what takes minutes.
_MOST_ROUNDS = 3
_NAME = "data"
#: As the API server signs names. Our services check none, and are asked about none.
_SIGNATURE = f"+A{'5' * 40}@f0000000"
#: A page that was read: its place in the file, and its bytes.
_Read: TypeAlias = tuple[int, bytes]


@dataclass(frozen=True)
class View:
    """A file as one process shows it.

    Attributes:
        path: The file.
        pid: The process that serves it; the reader's own for a plain file.
    """

    path: Path
    pid: int


class _Opening(Protocol):
    def __call__(self) -> AbstractContextManager[View]: ...


@dataclass
class Contender:
    """A way to the bytes.

    Attributes:
        name: What it is called in a figure.
        backing: Where its files are on the disk.
        open: Shows the file for a while, by a new process.
        has_cache: Whether a request to the services would be a mistake.
        peak: Most memory of a process of it in any trial since it was set to 0, in MiB.
    """

    name: str
    backing: Path
    open: _Opening
    has_cache: bool = True
    peak: float = 0.0

    def drop(self) -> None:
        """Have the kernel forget the pages of its files."""
        for directory, _, names in os.walk(self.backing):
            for name in names:
                drop_pages(Path(directory, name))

    @contextmanager
    def views(self, count: int) -> Iterator[list[View]]:
        """Mount the file in this number of processes."""
        with ExitStack() as stack:
            views = [stack.enter_context(self.open()) for _ in range(count)]
            for view in views:
                view.path.stat()
            yield views


def measure(rig: Rig) -> Iterator[Figure]:
    """Measure reads that the disk cache answers.

    Raises:
        NotMeasuredError: The disk has no room.
    """
    blocks = 4 if rig.quick else rig.disk_blocks
    _check_room(rig, blocks)
    os.sync()
    runs = _Runs(rig, blocks)
    yield from runs.in_sequence()
    yield runs.in_sequence_from_pages()
    yield from runs.at_random(1)
    yield from runs.at_random(_READERS)
    yield from runs.shared()


def _check_room(rig: Rig, blocks: int) -> None:
    disk = os.statvfs(rig.base)
    free = disk.f_bavail * disk.f_frsize
    kept = max(disk.f_blocks * disk.f_frsize // 10, 5 * 2**30)  # keepfs leaves it free
    needed = 3 * blocks * rig.block
    if not rig.quick and free - kept < needed:
        raise NotMeasuredError(
            f"three copies of {blocks} blocks need {needed >> 30} GiB of the disk, beside"
            f" {kept >> 30} GiB that stay free; there are {free >> 30} GiB: give --disk-blocks"
        )


class _Runs:
    """The figures, over one file of `blocks` blocks that all contenders have on the disk."""

    def __init__(self, rig: Rig, blocks: int) -> None:
        self._rig = rig
        self._blocks = blocks
        self._size = blocks * rig.block
        what = f"{self._size >> 30} GiB" if self._size >= 1 << 30 else f"{self._size >> 20} MiB"
        self._what = f"disk: {what}"
        self._plain = rig.base / "plain"
        self._plain.mkdir()
        self._file = self._plain / _NAME
        self._has_arv_mount = arv_mount_is_here()
        self._their_cache = rig.base / "their-cache"
        self._their_cache.mkdir()
        our_cache = rig.base / "our-cache"
        budget = str((2 * blocks + 4) * rig.block)
        self._our_options = ("--disk-cache", budget, "--disk-cache-dir", str(our_cache))
        self._collection = self._known(list(self._store()))
        self._ours = Contender("keepfs", our_cache, self._open_ours)
        disk = Contender("the disk", self._plain, self._open_plain, has_cache=False)
        self._others = [disk]
        if self._has_arv_mount:
            self._others.append(Contender("arv-mount", self._their_cache, self._open_theirs))

    def in_sequence(self) -> Iterator[Figure]:
        """Read the file from front to back, as the second run of a job."""
        yield from self._beside(
            f"{self._what} in sequence, second run",
            mb(self._size),
            lambda views: read_file(views[0].path, bytearray(2**20)),
            1,
            Target(_OF_DISK),
            Target(_OF_ARV_MOUNT),
            2 * self._size,
        )

    def in_sequence_from_pages(self) -> Figure:
        """Read part of the file, while the kernel has all pages of the files on the disk."""
        size = min(_SHARED_BLOCKS, self._blocks) * self._rig.block

        def trial(contender: Contender) -> Taken:
            with contender.views(1) as (view,):
                _read_range(view.path, 0, size)
                if view.path != self._file:
                    drop_pages(view.path)
                return self._timed(contender, [view], lambda: _read_range(view.path, 0, size))

        return self._compared(
            f"disk: {size >> 20} MiB in sequence, its files in the page cache", mb(size), trial
        )

    def at_random(self, readers: int) -> Iterator[Figure]:
        """Read single pages anywhere in the file, by threads that each read their own."""
        count = self._rig.many * (1 if readers == 1 else 2) // readers
        turns = iter(range(10**6))

        def work(views: list[View]) -> list[_Read]:
            places = random.Random(next(turns))  # noqa: S311 - any places will do
            pages = [
                [places.randrange(self._size // _PAGE) * _PAGE for _ in range(count)]
                for _ in range(readers)
            ]
            read: list[_Read] = []
            at_once([functools.partial(_read_pages, views[0].path, it, read) for it in pages])
            return read

        by = "" if readers == 1 else f" by {readers} readers"
        figures = self._beside(
            f"{self._what} at random, 4 KiB{by}",
            Amount(count * readers, "/s"),
            work,
            1,
            None,
            None,
            count * readers * _AHEAD,
        )
        for number, figure in enumerate(figures):
            if number == 0 and figure.baseline_value is not None:
                bound = figure.baseline_value
                if "arv-mount" in figure.others:
                    bound = min(bound, _AT_RANDOM * figure.value / figure.others["arv-mount"])
                figure.target = Target(bound, "value")
            yield figure

    def shared(self) -> Iterator[Figure]:
        """Read the same part of the file by several processes at once, which share the cache."""
        processes = 2 if self._rig.quick else _SHARING
        size = min(_SHARED_BLOCKS, self._blocks) * self._rig.block
        yield from self._beside(
            f"disk: {size >> 20} MiB by each of {processes} processes that share it",
            mb(size * processes),
            lambda views: at_once(
                [functools.partial(_read_range, it.path, 0, size) for it in views]
            ),
            processes,
            Target(_OF_DISK),
            Target(_OF_ARV_MOUNT),
            size * (processes + 1),
        )

    # --- trials -----------------------------------------------------------------

    def _beside(
        self,
        name: str,
        amount: Amount,
        work: Callable[[list[View]], object],
        processes: int,
        of_disk: Target | None,
        of_arv_mount: Target | None,
        memory: int,
    ) -> Iterator[Figure]:
        """Compare with the disk, and yield the same once more as beside arv-mount.

        Args:
            name: The figure's.
            amount: What one trial does.
            work: Reads.
            processes: The number of mounts.
            of_disk: What to reach beside the disk.
            of_arv_mount: What to reach beside arv-mount.
            memory: Bytes of pages that a trial fills; see `prepare_memory`.
        """

        def trial(contender: Contender) -> Taken:
            contender.drop()
            with contender.views(processes) as views:
                contender.drop()
                prepare_memory(min(memory, _MOST_PREPARED))
                return self._timed(contender, views, lambda: work(views))

        figure = self._compared(name, amount, trial)
        figure.target = of_disk
        yield figure
        if "arv-mount" in figure.others:
            ratio = figure.others["arv-mount"]
            yield dataclasses.replace(
                figure,
                baseline="arv-mount",
                baseline_value=figure.value / ratio,
                ratio=ratio,
                target=of_arv_mount,
                others={},
            )

    def _compared(self, name: str, amount: Amount, trial: Callable[[Contender], Taken]) -> Figure:
        self._ours.peak = 0.0
        figure = compare(
            name,
            amount,
            functools.partial(trial, self._ours),
            {it.name: functools.partial(trial, it) for it in self._others},
            repeats=min(_MOST_ROUNDS, self._rig.repeats),
        )
        return dataclasses.replace(figure, rss=self._ours.peak)

    def _timed(self, contender: Contender, views: list[View], work: Callable[[], object]) -> Taken:
        """Do the timed part of a trial; verify what was read, and from where."""
        before = self._rig.services.counts()
        watches = [Stopwatch(view.pid) for view in views]
        with ExitStack() as stack:
            for watch in watches:
                stack.enter_context(watch)
            read = work()
        taken = [watch.taken() for watch in watches]
        contender.peak = max(contender.peak, *(Meter(view.pid).peak() for view in views))
        now = self._rig.services.counts()
        if contender.has_cache and now != before:
            raise VerifyError(f"{contender.name} asked a service: {before}, then {now}")
        self._verify(views[0].path, read if isinstance(read, list) else [])
        return dataclasses.replace(taken[0], cpu=sum(it.cpu for it in taken))

    def _verify(self, path: Path, read: list[_Read]) -> None:
        """Compare pages that were read, and a few of each block, with the plain file."""
        with path.open("rb", buffering=0) as file, self._file.open("rb", buffering=0) as plain:
            for block in range(self._blocks):
                for page in (0, random.randrange(self._rig.block // _PAGE)):  # noqa: S311 - any
                    place = block * self._rig.block + page * _PAGE
                    read.append((place, os.pread(file.fileno(), _PAGE, place)))
            for place, content in read:
                if os.pread(plain.fileno(), _PAGE, place) != content:
                    raise VerifyError(f"{path} has other bytes at {place}")

    # --- the bytes, and who has them ------------------------------------------------

    def _open_plain(self) -> AbstractContextManager[View]:
        return nullcontext(View(self._file, os.getpid()))

    @contextmanager
    def _open_ours(self) -> Iterator[View]:
        memory = str(_MEMORY_BLOCKS * self._rig.block)
        with mounted(self._rig, "--cache-size", memory, *self._our_options) as mount:
            yield View(mount.path / "collections" / self._collection / _NAME, mount.pid)

    @contextmanager
    def _open_theirs(self) -> Iterator[View]:
        with self._arv_mount() as mount:
            yield View(mount.path / self._collection / _NAME, mount.pid)

    def _arv_mount(self) -> AbstractContextManager[Mount]:
        room = (2 * self._blocks + 4) * self._rig.block
        return arv_mount_caching(self._rig, self._their_cache, room)

    def _store(self) -> Iterator[str]:
        """Have the services, the plain file and both caches keep the blocks; yield locators."""
        with self._file.open("wb") as plain, ExitStack() as stack:
            theirs = stack.enter_context(self._arv_mount()) if self._has_arv_mount else None
            for begin in range(0, self._blocks, _BATCH):
                names = []
                for _ in range(begin, min(begin + _BATCH, self._blocks)):
                    block = os.urandom(self._rig.block)
                    names.append(self._rig.services.store(block, for_good=False))
                    plain.write(block)
                self._warm(names)
                if theirs is not None:
                    read_file(theirs.path / self._known(names) / _NAME, bytearray(2**20))
                os.sync()
                yield from names

    def _warm(self, names: list[str]) -> None:
        words = ["-m", "keepfs", "warm", *self._our_options, *names]
        where = environment(self._rig, self._rig.base)
        subprocess.run([sys.executable, *words], env=where, check=True)

    def _known(self, names: list[str]) -> str:
        """Have the API server know a collection of one file; return its portable data hash."""
        api = self._rig.services.api
        if api is None:
            raise NotMeasuredError("collections need an API server of ours: not with --services")
        size = len(names) * self._rig.block
        signed = " ".join(f"{name}{_SIGNATURE}" for name in names)
        manifest = f". {signed} 0:{size}:{_NAME}\n"
        name: str = portable_data_hash(manifest)
        api.configure(collections={name: manifest})
        return name


def _read_range(path: Path, begin: int, size: int) -> None:
    """Read bytes of a file, 1 MiB at a time into one buffer."""
    file, buffer, end = os.open(path, os.O_RDONLY), bytearray(2**20), begin + size
    try:
        while begin < end:
            got = os.preadv(file, [buffer], begin)
            if not got:
                raise VerifyError(f"{path} is too short")
            begin += got
    finally:
        os.close(file)


def _read_pages(path: Path, places: list[int], read: list[_Read]) -> None:
    """Read a page at each place of a file; append what was read."""
    file = os.open(path, os.O_RDONLY)
    try:
        read += [(place, os.pread(file, _PAGE, place)) for place in places]
    finally:
        os.close(file)
