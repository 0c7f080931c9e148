"""Kill keepfs at random moments of copying a thousand files, and look for what is lost.

A writer (`crash_writer`) goes through its files again and again, and writes
down for each version when it begins, and when the close, fsync or rename that
ends it has returned 0. It copies in different ways: in place with close, in
place with fsync, into a new file that is renamed over the old one, and with
cp. Now and then it renames a directory while it has a file open there. keepfs
is killed; after the next mount each file must be the last version that was
ended, or a later one that was begun: whole, by its name and by its locator.
Each directory must have its last name, or the next if that rename had begun.

At every other kill the store takes nothing for a while before: closes fail,
and files wait for another attempt. Half the time it is back when keepfs is
killed, and what failed is being tried again.
"""

from __future__ import annotations

import collections
import contextlib
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

from tests.mounted.mounts import PATIENCE, KeepfsMount, is_zombie, wait_until
from tests.soak.arguments import numbers_and_seed
from tests.soak.crash_writer import (
    ELSEWHERE,
    PER_DIRECTORY,
    content_of,
    directories_in,
    directory_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@dataclass
class Outcome:
    """What was killed and found.

    Attributes:
        kills: Of keepfs.
        checked: Files looked at, after all kills together.
        versions: Versions ended before a kill.
        interrupted: Versions begun and not ended when keepfs was killed.
        newer: Of these, found all the same.
        failed: Closes that reported an error, since the store took nothing.
        moves: Directories renamed before a kill.
        moving: Directories that were being renamed when keepfs was killed.
    """

    kills: int = 0
    checked: int = 0
    versions: int = 0
    interrupted: int = 0
    newer: int = 0
    failed: int = 0
    moves: int = 0
    moving: int = 0


@dataclass
class Journal:
    """What the writer has noted since the mount was made.

    Attributes:
        begun: The versions of each file that were begun after the last that ended.
        ended: The last version ended.
        moving: How often each directory was renamed, the rename that was begun last included.
        moved: The same without it, if it hadn't ended.
        notes: How many there are of each kind.
    """

    begun: dict[int, list[int]] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)
    moving: dict[int, int] = field(default_factory=dict)
    moved: dict[int, int] = field(default_factory=dict)
    notes: collections.Counter[str] = field(default_factory=collections.Counter)

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Read what there is."""
        found = cls()
        for line in path.read_text().splitlines():
            what, number, version = line.split()[0], *map(int, line.split()[1:])
            found.notes[what] += 1
            if what == "begun":
                found.begun.setdefault(number, []).append(version)
            elif what == "ended":
                found.ended[number] = version
                found.begun[number] = []
            elif what == "moving":
                found.moving[number] = version
            elif what == "moved":
                found.moved[number] = version
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
        #: What the last look found: versions, and how often each directory was renamed.
        self._stored: dict[int, int] = {}
        self._directories: dict[int, int] = {}
        self.outcome = Outcome()

    def run(self, kills: int) -> Outcome:
        """Kill keepfs that many times, each time at a random moment of a copy.

        Raises:
            AssertionError: Something is lost, or half of it; says what.
        """
        self._make_store()
        self._mount.mount()
        (self._mount.upload / ELSEWHERE).mkdir()
        for _ in range(kills):
            journal = self._write_and_kill()
            try:
                self._check_catalog()
                self._mount.mount()
                self._check_directories(journal)
                self._check_files(journal)
            except AssertionError as error:
                error.add_note(f"seed {self._seed}, after kill {self.outcome.kills}")
                raise
        done = self._mount.unmount()
        assert (done.returncode, done.stderr) == (0, b"")
        assert list(processes_of(self._mount)) == []
        return self.outcome

    def _write_and_kill(self) -> Journal:
        path = self._mount.base / "journal"
        path.write_bytes(b"")
        version = self.outcome.kills * 1000  # more than any writer gets round
        command = (sys.executable, "-m", "tests.soak.crash_writer", self._mount.upload)
        writer = subprocess.Popen([*map(str, (*command, path, self._files, version))])
        try:
            # A random moment: so many versions later, and then a little.
            self._wait_for(b"ended", self._draw.randint(0, self._files), writer)
            if self.outcome.kills % 2:
                self._let_the_store_fail(writer)
            time.sleep(self._draw.random() / 100)
            self._mount.kill(signal.SIGKILL)
            writer.wait(PATIENCE)
        finally:
            writer.kill()
            writer.wait()
            self._point_store_to("blocks.real")
        return self._counted(Journal.read(path))

    def _counted(self, journal: Journal) -> Journal:
        self.outcome.kills += 1
        self.outcome.versions += journal.notes["ended"]
        self.outcome.failed += journal.notes["failed"]
        self.outcome.moves += journal.notes["moved"]
        return journal

    def _let_the_store_fail(self, writer: subprocess.Popen[bytes]) -> None:
        """Let closes fail for a while; half the time the store is back then."""
        self._point_store_to("no-directory")
        self._wait_for(b"failed", self._draw.randint(1, self._files // 4), writer)
        if self._draw.random() < 0.5:
            self._point_store_to("blocks.real")
            os.kill(self._mount.pid(), signal.SIGUSR1)  # try what failed at once

    def _wait_for(self, what: bytes, times: int, writer: subprocess.Popen[bytes]) -> None:
        """Wait until something was noted so often, or the writer has ended."""
        path = self._mount.base / "journal"
        wait_until(
            lambda: path.read_bytes().count(what) >= times or writer.poll() is not None,
        )

    def _make_store(self) -> None:
        """Have the store behind a symlink, which can be changed in one step."""
        (self._mount.base / "blocks.real").mkdir()
        (self._mount.base / "no-directory").touch()
        self._point_store_to("blocks.real")

    def _point_store_to(self, name: str) -> None:
        link = self._mount.base / "link"
        link.symlink_to(name)
        link.replace(self._mount.store)

    def _check_catalog(self) -> None:
        """See that the database is sound as the kill left it; a copy, as opening it repairs it."""
        with tempfile.TemporaryDirectory(dir=self._mount.base) as copy:
            for part in (self._mount.base / "state").glob("catalog.sqlite*"):
                shutil.copy(part, copy)
            with contextlib.closing(sqlite3.connect(Path(copy) / "catalog.sqlite")) as database:
                assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def _check_directories(self, journal: Journal) -> None:
        """See that each directory is there once, by the last name or the next."""
        there = list(directories_in(self._mount.upload))
        found = dict(there)
        assert len(there) == len(found), f"one directory has two names: {sorted(there)}"
        for directory in {**self._directories, **journal.moving}:
            moved = journal.moved.get(directory, self._directories.get(directory))
            moving = journal.moving.get(directory, moved)
            generation = found.get(directory)
            assert generation in {moved, moving}, (
                f"directory {directory} was renamed {generation} times; {moved} ended,"
                f" {moving} begun"
            )
            self.outcome.moving += moving != moved
        self._directories = found

    def _check_files(self, journal: Journal) -> None:
        """See that each file is the last version ended, or a later one, and all of it."""
        for number in {**self._stored, **journal.begun}:
            ended = journal.ended.get(number, self._stored.get(number))
            begun = journal.begun.get(number, [])
            found = self._version_there(number)
            assert found in {ended, *begun}, (
                f"file {number} has version {found}; {ended} was ended, {begun} begun after it"
            )
            self.outcome.checked += 1
            self.outcome.interrupted += bool(begun)
            self.outcome.newer += found != ended
            if found is not None:
                self._stored[number] = found

    def _version_there(self, number: int) -> int | None:
        """Return which version of a file is there, by its name and by its locator."""
        directory = number // PER_DIRECTORY
        if directory not in self._directories:
            return None
        above = directory_path(directory, self._directories[directory])
        path = self._mount.upload / above / f"{number:05}"
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
        f" ({outcome.newer} then have a new version), {outcome.failed} closes failed;"
        f" {outcome.moves} directories renamed, {outcome.moving} in the middle: nothing lost;"
        f" {time.monotonic() - begin:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
