"""Writing through the mount: small files, a block, many blocks, several writers."""

from __future__ import annotations

import functools
import itertools
import os
import time
from typing import TYPE_CHECKING

from bench import baselines, build
from bench.measure import Amount, Target, VerifyError, compare, mb
from bench.mounting import Mount, mounted
from bench.reading import at_once
from bench.services import BLOCK, md5

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.measure import Figure
    from bench.rig import Rig

_SMALL = 4096
_WRITERS = 4


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


class Writer:
    """Writes files of new bytes, and sees to it that the services have them."""

    def __init__(self, rig: Rig, mount: Mount) -> None:
        self._rig = rig
        self.mount = mount
        self._numbers = itertools.count()
        self._piece = bytearray(os.urandom(2**20))

    def path(self) -> Path:
        """Return a new name."""
        return self.mount.upload / f"w-{next(self._numbers)}"

    def pieces(self) -> list[bytes]:
        """Return a block's bytes, in pieces of 1 MiB, that nobody has."""
        blocks = []
        for _ in range(self._rig.block >> 20):
            self._piece[:16] = os.urandom(16)
            blocks.append(bytes(self._piece))
        return blocks

    def write(self, pieces: list[list[bytes]], path: Path) -> float:
        """Write a file of blocks and close it; return the seconds. Verified, then removed."""
        seconds = write(pieces, path)
        self.check(pieces, path)
        path.unlink()
        return seconds

    def check(self, pieces: list[list[bytes]], path: Path) -> None:
        """See that the file's locators are its bytes', and that the services have the last.

        Raises:
            VerifyError: They aren't, or haven't.
        """
        locators = os.getxattr(path, "user.keep.locator").decode().split(",")
        flat = [piece for block in pieces for piece in block]
        # keepfs cuts after 64 MiB, whatever a block is here.
        cut = BLOCK >> 20
        slots = [flat[at : at + cut] for at in range(0, len(flat), cut)]
        for slot, locator in zip(slots, locators, strict=True):
            if md5(b"".join(slot)) != locator[:32]:
                raise VerifyError(f"{path} has a wrong locator")
        if not self._rig.services.have(locators[-1]):
            raise VerifyError(f"{path} isn't in the services")


def write(pieces: list[list[bytes]], path: Path) -> float:
    """Write blocks to a file and close it; return the seconds."""
    begin = time.perf_counter()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for block in pieces:
        for piece in block:
            os.write(file, piece)
    os.close(file)
    return time.perf_counter() - begin


def _small(rig: Rig, writer: Writer, memfs: Path) -> Iterator[Figure]:
    data = bytearray(os.urandom(_SMALL))
    numbers = itertools.count()

    def files(directory: Path) -> float:
        contents = []
        for _ in range(rig.many):
            data[:16] = os.urandom(16)
            contents.append(bytes(data))
        names = [directory / f"s-{next(numbers)}" for _ in contents]
        begin = time.perf_counter()
        for path, content in zip(names, contents, strict=True):
            write([[content]], path)
        seconds = time.perf_counter() - begin
        if directory == writer.mount.upload:
            writer.check([[contents[-1]]], names[-1])
        for path in names:
            path.unlink()
        return seconds

    yield compare(
        f"mount: write {rig.many} files of 4 KiB",
        Amount(rig.many, "/s"),
        lambda: files(writer.mount.upload),
        {"memfs in C": lambda: files(memfs), "tmpfs": lambda: files(rig.memory)},
        repeats=rig.repeats,
        pid=writer.mount.pid,
    )


def _block(rig: Rig, writer: Writer) -> Iterator[Figure]:
    data, path = rig.file_in_memory()
    digest = md5(data)
    yield compare(
        f"mount: write {rig.block_name}, 2 copies",
        mb(rig.block),
        lambda: writer.write([writer.pieces()], writer.path()),
        {
            "2 curls": lambda: baselines.curl_put(rig.services, [(digest, path)]),
            "md5sum, 2 curls": lambda: baselines.md5sum_then_curl_put(rig.services, path),
            "dd to the disk": lambda: baselines.dd(rig.base / "dd", rig.block),
        },
        repeats=rig.repeats,
        pid=writer.mount.pid,
        target=Target(0.95),
    )


def _long(rig: Rig, writer: Writer) -> Iterator[Figure]:
    digest, path = rig.file_in_memory()[1].name, rig.memory
    files = [(digest, path / digest)] * rig.long
    size = rig.block * rig.long

    def once() -> float:
        return writer.write([writer.pieces() for _ in range(rig.long)], writer.path())

    def together() -> float:
        each = [
            ([writer.pieces() for _ in range(rig.long // _WRITERS)], writer.path())
            for _ in range(_WRITERS)
        ]
        seconds = at_once([functools.partial(write, *one) for one in each])
        for pieces, name in each:
            writer.check(pieces, name)
            name.unlink()
        return seconds

    curls = {
        "2 curls": lambda: baselines.curl_put(rig.services, files),
        "dd to the disk": lambda: baselines.dd(rig.base / "dd", size),
    }
    for name, trial in (
        (f"mount: write {rig.long_name}, 2 copies", once),
        (f"mount: write {rig.long_name} by {_WRITERS} writers, 2 copies", together),
    ):
        yield compare(
            name,
            mb(size),
            trial,
            curls,
            repeats=rig.repeats,
            pid=writer.mount.pid,
            target=Target(0.9),
        )
