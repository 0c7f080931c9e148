"""Writing through the mount: small files, a block, many blocks, several writers."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import time
from typing import TYPE_CHECKING

from bench import baselines, build
from bench.measure import Amount, Stopwatch, Target, VerifyError, compare, mb
from bench.mounting import Mount, mounted
from bench.reading import at_once
from bench.services import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from bench.measure import Figure, Taken
    from bench.rig import Rig

_SMALL = 4096
_WRITERS = 4
#: Seconds from one MiB to the next where a file comes slowly: 350 MB/s, slower than
#: MD5 takes it, as most sources are.
_SLOW = 0.003


def measure(rig: Rig) -> Iterator[Figure]:
    """Measure all kinds of writing, with two copies each."""
    with (
        mounted(rig, "--copies", "2") as mount,
        baselines.memfs(
            build.program("memfs", rig.programs), rig.base / "memfs-w", 0, 0, 0
        ) as memfs,
    ):
        writer = Writer(rig, mount)
        yield from _small(rig, writer, memfs)
        yield from _block(rig, writer)
        yield from _long(rig, writer)


class Content:
    """The bytes of a file that nobody has: pieces of 1 MiB that begin differently.

    Args:
        blocks: How many.
        block: Bytes of one.
    """

    def __init__(self, blocks: int, block: int) -> None:
        self._piece = bytearray(os.urandom(2**20))
        self._begins = [os.urandom(16) for _ in range(blocks * block >> 20)]

    def __iter__(self) -> Iterator[bytearray]:
        """Go through the pieces, which are all in the same memory."""
        for begin in self._begins:
            self._piece[:16] = begin
            yield self._piece


class Writer:
    """Writes files of new bytes, and sees to it that the services have them."""

    def __init__(self, rig: Rig, mount: Mount) -> None:
        self._rig = rig
        self.mount = mount
        self._numbers = itertools.count()

    def path(self) -> Path:
        """Return a new name."""
        return self.mount.upload / f"w-{next(self._numbers)}"

    def write(self, blocks: int, writers: int = 1) -> Taken:
        """Write files of so many blocks, all at once, and close them; return what it took.

        Verified, then removed.
        """
        files = [(Content(blocks, self._rig.block), self.path()) for _ in range(writers)]
        with Stopwatch(self.mount.pid) as watch:
            at_once([functools.partial(write, *file) for file in files])
        for file in files:
            self.check(*file)
        return watch.taken()

    def close(self) -> Taken:
        """Write a block slower than it is hashed; return what only closing it took."""
        content, path = Content(1, self._rig.block), self.path()
        file = _create(path)
        begin = time.perf_counter()
        for number, piece in enumerate(content, start=1):
            os.write(file, piece)
            time.sleep(max(0.0, begin + number * _SLOW - time.perf_counter()))
        with Stopwatch(self.mount.pid) as watch:
            os.close(file)
        self.check(content, path)
        return watch.taken()

    def check(self, content: Iterable[bytes | bytearray], path: Path) -> None:
        """See that the file's locators are its bytes', and that the services have the last.

        The file is removed.

        Raises:
            VerifyError: They aren't, or haven't.
        """
        locators = os.getxattr(path, "user.keep.locator").decode().split(",")
        # keepfs cuts after 64 MiB, whatever a block is here.
        digests = []
        for number, piece in enumerate(content):
            if number % (BLOCK >> 20) == 0:
                digests.append(hashlib.md5(usedforsecurity=False))
            digests[-1].update(piece)
        if [locator[:32] for locator in locators] != [it.hexdigest() for it in digests]:
            raise VerifyError(f"{path} has a wrong locator")
        if not self._rig.services.have(locators[-1]):
            raise VerifyError(f"{path} isn't in the services")
        path.unlink()


def write(content: Iterable[bytes | bytearray], path: Path) -> None:
    """Write pieces to a file and close it."""
    file = _create(path)
    for piece in content:
        os.write(file, piece)
    os.close(file)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)


def _small(rig: Rig, writer: Writer, memfs: Path) -> Iterator[Figure]:
    data = bytearray(os.urandom(_SMALL))
    numbers = itertools.count()

    def files(directory: Path) -> Taken:
        contents = []
        for _ in range(rig.many):
            data[:16] = os.urandom(16)
            contents.append(bytes(data))
        names = [directory / f"s-{next(numbers)}" for _ in contents]
        with Stopwatch(writer.mount.pid) as watch:
            for path, content in zip(names, contents, strict=True):
                write([content], path)
        if directory == writer.mount.upload:
            writer.check([contents[-1]], names.pop())
        for path in names:
            path.unlink()
        return watch.taken()

    yield compare(
        f"mount: write {rig.many} files of 4 KiB",
        Amount(rig.many, "/s"),
        lambda: files(writer.mount.upload),
        {"memfs in C": lambda: files(memfs), "tmpfs": lambda: files(rig.memory)},
        repeats=rig.repeats,
        pid=writer.mount.pid,
    )


def _block(rig: Rig, writer: Writer) -> Iterator[Figure]:
    digest, path = rig.file_in_memory()[1].name, rig.memory
    curls = {"2 curls": lambda: baselines.curl_put(rig.services, [(digest, path / digest)])}
    yield compare(
        f"mount: write {rig.block_name}, 2 copies",
        mb(rig.block),
        lambda: writer.write(1),
        {
            **curls,
            "md5sum, 2 curls": lambda: baselines.md5sum_then_curl_put(rig.services, path / digest),
            "dd to the disk": lambda: baselines.dd(rig.base / "dd", rig.block),
        },
        repeats=rig.repeats,
        pid=writer.mount.pid,
        target=Target(0.95),
        memory=4 * rig.block,
    )
    yield compare(
        f"mount: close {rig.block_name} that came slowly, 2 copies",
        mb(rig.block),
        writer.close,
        curls,
        repeats=rig.repeats,
        pid=writer.mount.pid,
        target=Target(0.95),
        memory=4 * rig.block,
    )


def _long(rig: Rig, writer: Writer) -> Iterator[Figure]:
    digest, path = rig.file_in_memory()[1].name, rig.memory
    files = [(digest, path / digest)] * rig.long
    size = rig.block * rig.long
    for name, trial in (
        (f"mount: write {rig.long_name}, 2 copies", lambda: writer.write(rig.long)),
        (
            f"mount: write {rig.long_name} by {_WRITERS} writers, 2 copies",
            lambda: writer.write(rig.long // _WRITERS, _WRITERS),
        ),
    ):
        yield compare(
            name,
            mb(size),
            trial,
            {
                "2 curls": lambda: baselines.curl_put(rig.services, files),
                "dd to the disk": lambda: baselines.dd(rig.base / "dd", size),
            },
            repeats=rig.repeats,
            pid=writer.mount.pid,
            target=Target(0.9),
            memory=2 * size,
        )
