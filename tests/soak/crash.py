"""Kill keepfs at random moments of copying a thousand files, and look for what is lost.

A writer, in a process of its own, goes through its files again and again, and
writes down for each version when it begins, and when the close, fsync or
rename that ends it has returned 0. It copies in different ways: in place with
close, in place with fsync, into a new file that is renamed over the old one,
and with cp. keepfs is killed; after the next mount each file must be the last
version that was ended, or a later one that was begun: whole, by its name and by
its locator.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tests.mount.mounts import PATIENCE, KeepfsMount, is_zombie, wait_until
from tests.soak.arguments import numbers_and_seed

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Files in a directory.
_PER_DIRECTORY = 50
#: Writers at once.
_WRITERS = 4


def content_of(number: int, version: int) -> bytes:
    """Return what a file has in a version: its length differs from version to version."""
    draw = random.Random(number * 1_000_003 + version)  # noqa: S311 - content, not secrets
    return f"{number} {version}\n".encode() + draw.randbytes(draw.choice((0, 50, 3000, 40_000)))


def version_of(number: int, found: bytes) -> int:
    """Return which version of a file this is.

    Raises:
        AssertionError: None, or not all of it.
    """
    head = found.partition(b"\n")[0].split()
    assert head[:1] == [str(number).encode()], f"{found[:20]!r} and so on is no version"
    version = int(head[1])
    assert found == content_of(number, version), f"{len(found)} bytes are not all of {head!r}"
    return version


def path_of(number: int) -> Path:
    """Return where a file is, below upload/."""
    return Path(f"{number // _PER_DIRECTORY:03}") / f"{number:05}"


# --- the writer, in a process of its own ---------------------------------------


class Writer:
    """Copies versions of files into a mount, and notes what has begun and ended.

    Args:
        place: Where in the mount.
        journal: Where to note it, on a local disk.
    """

    def __init__(self, place: Path, journal: Path) -> None:
        self._place = place
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND)
        self._base = journal.parent

    def copy(self, number: int, version: int) -> None:
        """Copy one version of a file, in the way that is the file's."""
        path = self._place / path_of(number)
        if number % _PER_DIRECTORY == 0 and not path.parent.exists():
            path.parent.mkdir()
            self._note("directory", number, version)
        ways = (self._in_place, self._synced, self._renamed, self._by_cp)
        self._note("begun", number, version)
        ways[number % len(ways)](path, number, version)

    def _in_place(self, path: Path, number: int, version: int) -> None:
        with path.open("wb") as file:
            file.write(content_of(number, version))
        self._note("ended", number, version)

    def _synced(self, path: Path, number: int, version: int) -> None:
        with path.open("wb") as file:
            file.write(content_of(number, version))
            file.flush()
            os.fsync(file.fileno())
            self._note("ended", number, version)

    def _renamed(self, path: Path, number: int, version: int) -> None:
        new = path.with_suffix(".new")
        new.write_bytes(content_of(number, version))
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


def write(place: str, journal: str, files: str, version: str) -> None:
    """Be the writer, for as long as the mount lives: each child has directories of its own.

    Not threads: the child that is to be `cp` would close what other threads
    have open, which stores it as it is then.
    """
    writer = Writer(Path(place), Path(journal))
    numbers = range(int(files))

    def copy_all(child: int) -> None:
        mine = [each for each in numbers if each // _PER_DIRECTORY % _WRITERS == child]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            for round_ in itertools.count(int(version)):
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


# --- who kills and looks --------------------------------------------------------


@dataclass
class Outcome:
    """What was killed and found.

    Attributes:
        kills: Of keepfs.
        checked: Files looked at, after all kills together.
        versions: Versions ended before a kill.
        interrupted: Versions begun and not ended when keepfs was killed.
        newer: Of these, found all the same.
    """

    kills: int = 0
    checked: int = 0
    versions: int = 0
    interrupted: int = 0
    newer: int = 0


@dataclass
class Journal:
    """What the writer has noted since the mount was made.

    Attributes:
        begun: The last version begun, of each file.
        ended: The last version ended.
        directories: Those made.
        count: Versions ended.
    """

    begun: dict[int, int] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)
    count: int = 0

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Read what there is."""
        found = cls()
        for line in path.read_text().splitlines():
            what, number, version = line.split()
            if what == "begun":
                found.begun[int(number)] = int(version)
            elif what == "ended":
                found.ended[int(number)] = int(version)
                found.count += 1
            else:
                found.directories.add(path_of(int(number)).parent.name)
        return found


class Soak:
    """Kills of one mount, and what must be there after each.

    The mount isn't made yet, and isn't there any more at the end.

    Args:
        mount: Where.
        files: How many are copied, again and again.
        seed: Of the moments.
    """

    def __init__(self, mount: KeepfsMount, files: int, seed: int) -> None:
        self._mount = mount
        self._files = files
        self._seed = seed
        self._draw = random.Random(seed)  # noqa: S311 - moments, not secrets
        #: What the last look found: versions by number, and directories.
        self._stored: dict[int, int] = {}
        self._directories: set[str] = set()
        self.outcome = Outcome()

    def run(self, kills: int) -> Outcome:
        """Kill keepfs that many times, each time at a random moment of a copy.

        Raises:
            AssertionError: Something is lost, or half of it; says what.
        """
        self._mount.mount()
        for _ in range(kills):
            journal = self._write_and_kill()
            try:
                self._check_catalog()
                self._mount.mount()
                self._check_files(journal)
            except AssertionError as error:
                error.add_note(f"seed {self._seed}, after kill {self.outcome.kills}")
                raise
        done = self._mount.unmount()
        assert (done.returncode, done.stderr) == (0, b"")
        assert list(processes_of(self._mount)) == []
        return self.outcome

    def _write_and_kill(self) -> Journal:
        journal = self._mount.base / "journal"
        journal.write_bytes(b"")
        command = (sys.executable, "-m", "tests.soak.crash", "--write", self._mount.upload)
        version = self.outcome.kills * 1000  # more than any writer gets round
        arguments = (journal, self._files, version)
        writer = subprocess.Popen([*map(str, command), *map(str, arguments)])
        try:
            # A random moment: so many versions later, and then a little.
            wanted = self._draw.randint(0, self._files)

            def is_time() -> bool:
                return journal.read_bytes().count(b"ended") >= wanted or writer.poll() is not None

            wait_until(is_time)
            time.sleep(self._draw.random() / 100)
            self._mount.kill(signal.SIGKILL)
            writer.wait(PATIENCE)
        finally:
            writer.kill()
            writer.wait()
        found = Journal.read(journal)
        self.outcome.kills += 1
        self.outcome.versions += found.count
        return found

    def _check_catalog(self) -> None:
        """See that the database is sound as the kill left it; a copy, as opening it repairs it."""
        with tempfile.TemporaryDirectory(dir=self._mount.base) as copy:
            for part in (self._mount.base / "state").glob("catalog.sqlite*"):
                shutil.copy(part, copy)
            with contextlib.closing(sqlite3.connect(Path(copy) / "catalog.sqlite")) as database:
                assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def _check_files(self, journal: Journal) -> None:
        """See that each file is the last version ended, or a later one, and all of it."""
        there = {path.name for path in self._mount.upload.iterdir()}
        self._directories |= journal.directories
        assert there >= self._directories, f"directories lost: {self._directories - there}"
        for number in {**self._stored, **journal.begun}:
            ended = journal.ended.get(number, self._stored.get(number))
            begun = journal.begun.get(number, ended)
            found = self._version_there(number)
            assert found in {ended, begun}, (
                f"{path_of(number)} has version {found}; {ended} was ended, {begun} begun"
            )
            self.outcome.checked += 1
            self.outcome.interrupted += begun != ended
            self.outcome.newer += found != ended
            if found is not None:
                self._stored[number] = found

    def _version_there(self, number: int) -> int | None:
        """Return which version of a file is there, by its name and by its locator."""
        path = self._mount.upload / path_of(number)
        new = path.with_suffix(".new")
        if new.exists():  # never renamed: it is whole all the same
            version_of(number, new.read_bytes())
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            return None
        version = version_of(number, found)
        locator = self._mount.locator(path)
        assert (self._mount.by_id / locator).read_bytes() == found, f"{path}: not by its locator"
        return version


def processes_of(mount: KeepfsMount) -> Iterator[int]:
    """Go through the processes that have the mount in their command line."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(process.name)
            words = (process / "cmdline").read_bytes().split(b"\0")
            if bytes(mount.path) in words and not is_zombie(pid):
                yield pid


def main() -> int:
    """Run as a script."""
    if sys.argv[1:2] == ["--write"]:
        write(*sys.argv[2:])
        return 0
    kills, seed = numbers_and_seed(100)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as base:
        mount = KeepfsMount(Path(base))
        try:
            outcome = Soak(mount, 1000, seed).run(kills)
        finally:
            mount.clean_up()
    click.echo(
        f"{outcome.kills} kills, {outcome.versions} versions stored before them,"
        f" {outcome.checked} files checked, {outcome.interrupted} of which were being written"
        f" ({outcome.newer} then have the new version): nothing lost;"
        f" {time.monotonic() - begin:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
