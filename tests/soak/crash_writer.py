"""The writer of the crash soak: copies versions of files, and notes what has begun and ended.

A process of its own for each child: with threads, a child that is to be `cp`
would close what other threads have open, which stores it as it is then.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Files in a directory.
PER_DIRECTORY = 50
#: Where directories are at times: they are moved there and back.
ELSEWHERE = "elsewhere"
#: Writers at once.
_WRITERS = 4
#: One file among so many is written while its directory is renamed.
_MOVES = 12


def content_of(number: int, version: int) -> bytes:
    """Return what a file has in a version: its length differs from version to version."""
    draw = random.Random(number * 1_000_003 + version)  # noqa: S311 - content, not secrets
    return f"{number} {version}\n".encode() + draw.randbytes(draw.choice((0, 50, 3000, 40_000)))


def directory_path(directory: int, generation: int) -> Path:
    """Return where a directory is after so many renames, below upload/."""
    name = f"{directory:03}-{generation}"
    return Path(ELSEWHERE) / name if generation % 2 else Path(name)


def directories_in(upload: Path) -> Iterator[tuple[int, int]]:
    """Go through the directories there are: their number, and how often they were renamed."""
    for path in (*upload.iterdir(), *(upload / ELSEWHERE).iterdir()):
        if path.name != ELSEWHERE:
            directory, generation = map(int, path.name.split("-"))
            yield directory, generation


class Writer:
    """Copies versions of files into a mount, and notes what has begun and ended.

    Args:
        upload: Where.
        journal: Where to note it, on a local disk.
    """

    def __init__(self, upload: Path, journal: Path) -> None:
        self._upload = upload
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND)
        self._base = journal.parent
        self._generations = dict(directories_in(upload))

    def copy(self, number: int, version: int) -> None:
        """Copy one version of a file, in the way that is the file's.

        Raises:
            OSError: The mount is dead. That a version isn't stored is noted.
        """
        directory = number // PER_DIRECTORY
        if directory not in self._generations:
            self._generations[directory] = 0
            self._note("moving", directory, 0)
            self._directory(directory).mkdir()
            self._note("moved", directory, 0)
        ways = (self._in_place, self._synced, self._renamed, self._by_cp)
        self._note("begun", number, version)
        try:
            ways[number % len(ways)](self._directory(directory) / f"{number:05}", number, version)
        except (OSError, subprocess.CalledProcessError):
            with contextlib.suppress(FileNotFoundError):
                os.stat(self._upload / f"no-{number}-{version}")  # fails if the mount is dead
            self._note("failed", number, version)

    def _directory(self, directory: int) -> Path:
        return self._upload / directory_path(directory, self._generations[directory])

    def _move(self, directory: int) -> None:
        """Rename a directory; what is open in it stays so."""
        before, generation = self._directory(directory), self._generations[directory] + 1
        self._note("moving", directory, generation)
        before.rename(self._upload / directory_path(directory, generation))
        self._generations[directory] = generation
        self._note("moved", directory, generation)

    def _in_place(self, path: Path, number: int, version: int) -> None:
        with path.open("wb") as file:
            file.write(content_of(number, version))
            if number % _MOVES == 0:
                self._move(number // PER_DIRECTORY)
        self._note("ended", number, version)

    def _synced(self, path: Path, number: int, version: int) -> None:
        with path.open("wb") as file:
            file.write(content_of(number, version))
            file.flush()
            os.fsync(file.fileno())
            self._note("ended", number, version)

    def _renamed(self, path: Path, number: int, version: int) -> None:
        new = path.with_suffix(".new")
        try:
            new.write_bytes(content_of(number, version))
        finally:  # also if it isn't stored: then the old one is kept until it is
            new.replace(path)
        self._note("ended", number, version)

    def _by_cp(self, path: Path, number: int, version: int) -> None:
        source = self._base / f"source-{number}"
        source.write_bytes(content_of(number, version))
        subprocess.run(["cp", source, path], check=True, stderr=subprocess.DEVNULL)
        source.unlink()
        self._note("ended", number, version)

    def _note(self, what: str, number: int, version: int) -> None:
        os.write(self._journal, f"{what} {number} {version}\n".encode())


def write(upload: Path, journal: Path, files: int, version: int) -> None:
    """Write for as long as the mount lives: each child has directories of its own."""

    def copy_all(child: int) -> None:
        mine = [each for each in range(files) if each // PER_DIRECTORY % _WRITERS == child]
        with contextlib.suppress(OSError):
            writer = Writer(upload, journal)
            for round_ in itertools.count(version):
                for number in mine:
                    writer.copy(number, round_)

    children = []
    for child in range(_WRITERS):
        pid = os.fork()
        if pid == 0:
            copy_all(child)
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
