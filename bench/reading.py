"""Reading through the mount: cold, from our cache, from the kernel's pages, at random."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import random
import shutil
import threading
import time
from typing import TYPE_CHECKING

from bench import baselines, build
from bench.measure import Amount, Stopwatch, Target, VerifyError, compare, mb
from bench.mounting import Mount, mounted
from bench.services import md5

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.measure import Figure, Taken
    from bench.rig import Rig
    from bench.services import Services

_PAGE = 4096
_PARALLEL = 4


def measure(rig: Rig) -> Iterator[Figure]:
    """Measure all kinds of reading."""
    blocks = rig.blocks(rig.long + 8)
    cache = max(4 * rig.block, 2**20)
    with mounted(rig, "--cache-size", str(cache)) as mount:
        reader = Reader(rig, mount)
        yield from _cold(rig, reader, blocks)
        yield from _parallel(rig, reader, blocks)
    with (
        mounted(rig, "--cache-size", str((rig.long + 2) * rig.block)) as mount,
        baselines.memfs(
            build.program("memfs", rig.programs), rig.base / "memfs", rig.long, rig.block, 0
        ) as memfs,
    ):
        reader = Reader(rig, mount)
        yield from _cached(rig, reader, blocks, memfs)


class Reader:
    """Reads blocks of a mount, and sees to it that they come from where they should.

    Args:
        rig: With which services.
        mount: Which mount.

    Attributes:
        buffer: What is read into.
        fresh: Blocks nobody has read.
        gets: Requests for each block, by how many were read in a trial, the last
            time. Over 1: fetched again, since the cache had no room.
    """

    def __init__(self, rig: Rig, mount: Mount) -> None:
        self._rig = rig
        self.mount = mount
        self.buffer = bytearray(2**20)
        self.fresh = Fresh(rig)
        self.gets: dict[int, float] = {}

    def files(self, names: list[str]) -> list[Path]:
        """Return the files of locators, or of comma lists of them."""
        return [self.mount.by_id / name for name in names]

    def cold(self, names: list[str]) -> Taken:
        """Read files one after the other whose blocks must be fetched; return what it took.

        Each is verified after it is read, and the kernel's pages of it are dropped then.
        """
        paths = self.files(names)
        watch, gets = Stopwatch(self.mount.pid), -self._gets()
        for path, name in zip(paths, names, strict=True):
            with watch:
                baselines.read_file(path, self.buffer)
            gets += self._gets()
            verify(path, name)
            baselines.drop_pages(path)
            gets -= self._gets()
        self._note(names, gets + self._gets())
        return watch.taken()

    def cold_at_once(self, names: list[str]) -> Taken:
        """Read files whose blocks must be fetched, each in a thread; return what it took."""
        paths = self.files(names)
        watch, gets = Stopwatch(self.mount.pid), -self._gets()
        with watch:
            at_once([_reading(path) for path in paths])
        self._note(names, gets + self._gets())
        for path, name in zip(paths, names, strict=True):
            verify(path, name)
        for path in paths:
            baselines.drop_pages(path)
        return watch.taken()

    def cold_by_many(self, names: list[str]) -> Taken:
        """Do the same with blocks that may be more than there should be pages of.

        Each is another, and no list. Its reader keeps what it reads, and drops the
        kernel's pages when it is through; so neither grows in the timed part. What
        was read is verified at the end.
        """
        paths = self.files(names)
        # Filled: zeros would be memory that is only touched when it is read into.
        buffers = [bytearray(b".") * (size_of(name) + 1) for name in names]
        watch, gets = Stopwatch(self.mount.pid), -self._gets()
        with watch:
            at_once(
                [
                    functools.partial(_read_and_drop, path, buffer)
                    for path, buffer in zip(paths, buffers, strict=True)
                ]
            )
        self._note(names, gets + self._gets())
        for path, name, buffer in zip(paths, names, buffers, strict=True):
            if md5(memoryview(buffer)[:-1]) != name[:32]:
                raise VerifyError(f"{path} has other bytes")
        return watch.taken()

    def cached(self, path: Path) -> float:
        """Read a file that is in a cache, but not in the kernel's pages; return the seconds."""
        baselines.drop_pages(path)
        return baselines.read_file(path, self.buffer)

    def _note(self, names: list[str], gets: int) -> None:
        """Note how often each block was fetched.

        A service that hasn't it is asked as well; fewer than one would mean a cache.
        """
        if self._rig.services.ours:
            fetched = sum(name.count(",") + 1 for name in set(names))
            self.gets[fetched] = gets / fetched
            if gets < fetched:
                raise VerifyError("a block came out of a cache")

    def _gets(self) -> int:
        """Return the requests that the services have counted; 0 where they don't."""
        counts = self._rig.services.counts()
        return counts["GET"] if counts else 0


def size_of(locator: str) -> int:
    """Return a block's size in bytes, as its locator says."""
    return int(locator.split("+")[1])


def _reading(path: Path) -> Callable[[], object]:
    buffer = bytearray(2**20)
    return lambda: baselines.read_file(path, buffer)


def _read_and_drop(path: Path, buffer: bytearray) -> None:
    """Read a file into a buffer that is a byte longer, and have the kernel forget it."""
    room = memoryview(buffer)
    file, at = os.open(path, os.O_RDONLY), 0
    try:
        while got := os.readv(file, [room[at : at + 2**20]]):
            at += got
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
    if at != len(buffer) - 1:
        raise VerifyError(f"{path} has {at} bytes")


def at_once(work: list[Callable[[], object]]) -> float:
    """Do several things in a thread each; return the seconds until all are done.

    Raises:
        VerifyError: One failed.
    """
    failures: list[BaseException] = []

    def run(one: Callable[[], object]) -> None:
        try:
            one()
        except BaseException as error:  # noqa: BLE001 - told by the caller's thread
            failures.append(error)

    # Daemons: where the bench is ended, its mount ends, and with it what they wait for.
    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in work]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    if failures:
        raise VerifyError("a thread failed") from failures[0]
    return seconds


def verify(path: Path, name: str) -> None:
    """Compare a file with the locator, or the comma list, of what it should have.

    Raises:
        VerifyError: It has other bytes.
    """
    with path.open("rb", buffering=0) as file:
        for locator in name.split(","):
            size = size_of(locator)
            digest = hashlib.md5(usedforsecurity=False)
            while size:
                piece = file.read(min(size, 2**20))
                if not piece:
                    raise VerifyError(f"{locator} is too short")
                digest.update(piece)
                size -= len(piece)
            if digest.hexdigest() != locator[:32]:
                raise VerifyError(f"{locator} has other bytes")


class Fresh:
    """Stores new blocks: no cache can have them, whatever it keeps."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def take(self, count: int) -> list[str]:
        """Return so many."""
        return self._rig.services.store_blocks(count, self._rig.block, for_good=False)


class Turns:
    """Takes blocks in turn, for who has no cache."""

    def __init__(self, blocks: list[str]) -> None:
        self._turn = itertools.cycle(blocks)

    def take(self, count: int) -> list[str]:
        """Return the next ones."""
        return list(itertools.islice(self._turn, count))


def _cold(rig: Rig, reader: Reader, blocks: list[str]) -> Iterator[Figure]:
    curls, pid = Turns(blocks), reader.mount.pid
    for count in dict.fromkeys((1, 4, rig.long)):
        yield compare(
            f"mount: cold, {count} block{'s' * (count > 1)} in turn",
            mb(rig.block * count),
            functools.partial(_read_cold, reader, count),
            {"curl": functools.partial(_curl, rig.services, curls, count)},
            repeats=rig.repeats,
            pid=pid,
            target=Target(0.85) if count > 1 else None,
            memory=4 * rig.block,
        )
    yield compare(
        f"mount: cold, comma list of {rig.long}",
        mb(rig.block * rig.long),
        lambda: reader.cold([",".join(reader.fresh.take(rig.long))]),
        {"curl": lambda: baselines.curl_get(rig.services, curls.take(rig.long))},
        repeats=rig.repeats,
        pid=pid,
        target=Target(0.85),
        memory=2 * rig.long * rig.block,
    )


def _read_cold(reader: Reader, count: int) -> Taken:
    return reader.cold(reader.fresh.take(count))


def _curl(services: Services, turns: Turns, count: int) -> float:
    return baselines.curl_get(services, turns.take(count))


def _parallel(rig: Rig, reader: Reader, blocks: list[str]) -> Iterator[Figure]:
    fresh, curls = reader.fresh, Turns(blocks)
    pid, services = reader.mount.pid, rig.services
    yield compare(
        f"mount: cold, {_PARALLEL} readers of {_PARALLEL} blocks",
        mb(rig.block * _PARALLEL),
        lambda: reader.cold_at_once(fresh.take(_PARALLEL)),
        {"4 curls": lambda: baselines.curl_get_parallel(services, curls.take(_PARALLEL))},
        repeats=rig.repeats,
        pid=pid,
        memory=2 * _PARALLEL * rig.block,
    )
    yield compare(
        f"mount: cold, {_PARALLEL} readers of one block",
        mb(rig.block * _PARALLEL),
        lambda: reader.cold_at_once(fresh.take(1) * _PARALLEL),
        {"4 curls": lambda: baselines.curl_get_parallel(services, curls.take(1) * _PARALLEL)},
        repeats=rig.repeats,
        pid=pid,
        memory=2 * _PARALLEL * rig.block,
    )


def _cached(rig: Rig, reader: Reader, blocks: list[str], memfs: Path) -> Iterator[Figure]:
    names = blocks[: rig.long]
    paths = reader.files(names)
    for path, name in zip(paths, names, strict=True):
        verify(path, name)

    yield compare(
        f"mount: {rig.block_name} from our cache, pages dropped",
        mb(rig.block),
        lambda: reader.cached(paths[0]),
        {"memfs in C": lambda: reader.cached(memfs / "block-0")},
        repeats=rig.repeats,
        pid=reader.mount.pid,
        target=Target(0.8),
    )
    verify(paths[0], names[0])
    yield _from_pages(rig, reader, paths[0])
    c_files = [memfs / f"block-{number}" for number in range(rig.long)]
    count = rig.many * 4
    yield compare(
        f"mount: random 4 KiB reads over {rig.long} blocks",
        Amount(count, "/s"),
        lambda: read_at_random(paths, rig.block, count),
        {"memfs in C": lambda: read_at_random(c_files, rig.block, count)},
        repeats=rig.repeats,
        pid=reader.mount.pid,
    )


def _from_pages(rig: Rig, reader: Reader, path: Path) -> Figure:
    """Measure a block that the kernel has all pages of.

    It gets them anew for each trial: which ones it has makes a difference.
    """
    in_memory = rig.memory / "pages"
    times = 8  # one reading takes too short to be measured

    def read(file: Path) -> float:
        return sum(baselines.read_file(file, reader.buffer) for _ in range(times))

    def ours() -> float:
        baselines.drop_pages(path)
        baselines.read_file(path, reader.buffer)
        return read(path)

    def tmpfs() -> float:
        in_memory.unlink(missing_ok=True)
        shutil.copyfile(path, in_memory)
        return read(in_memory)

    figure = compare(
        f"mount: {rig.block_name} from the page cache",
        mb(rig.block * times),
        ours,
        {"tmpfs": tmpfs},
        repeats=rig.repeats,
        pid=reader.mount.pid,
        target=Target(0.95),
    )
    verify(path, path.name)
    in_memory.unlink()
    return figure


def read_at_random(paths: list[Path], size: int, count: int) -> float:
    """Read so many pages of files of `size` bytes that the kernel has none of; return seconds."""
    places = random.Random(count)  # noqa: S311 - the same for all, not a secret
    for path in paths:
        baselines.drop_pages(path)
    opened = [os.open(path, os.O_RDONLY) for path in paths]
    where = [
        (places.choice(opened), places.randrange(size // _PAGE) * _PAGE) for _ in range(count)
    ]
    got = 0
    begin = time.perf_counter()
    for file, offset in where:
        got += len(os.pread(file, _PAGE, offset))
    seconds = time.perf_counter() - begin
    for file in opened:
        os.close(file)
    if got != count * _PAGE:
        raise VerifyError("a page is too short")
    return seconds
