"""A directory of very many names: how long everything takes, others wait, and the memory it costs.

The names are made by mknod, which stores nothing but the name and the empty block,
so that the catalog is measured rather than the store.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tests.mounted.mounts import mounted
from tests.soak.arguments import numbers
from tests.soak.waits import Asker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.mounted.mounts import KeepfsMount


@dataclass
class Outcome:
    """What was measured.

    Attributes:
        seconds: By what was done.
        waits: Seconds another client waited meanwhile at most, by what was done.
        kilobytes: Resident memory of keepfs, by when.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    waits: dict[str, float] = field(default_factory=dict)
    kilobytes: dict[str, int] = field(default_factory=dict)

    def timed(self, what: str, work: Callable[[], object]) -> None:
        """Do something, and note how long it takes."""
        begin = time.monotonic()
        work()
        self.seconds[what] = time.monotonic() - begin

    def watched(self, what: str, work: Callable[[], object], elsewhere: Path) -> None:
        """Do the same, and note how long another client waits meanwhile."""
        with Asker(elsewhere) as asker:
            self.timed(what, work)
        self.waits[what] = asker.longest


def name_of(number: int) -> str:
    """Return a name as people give them: of some length, numbered."""
    return f"sample-{number:07}.fastq.gz"


def soak(mount: KeepfsMount, entries: int) -> Outcome:
    """Make entries in one directory, list them, look each up, before and after a remount.

    Raises:
        AssertionError: A name is missing, or one too many there, or its kind is wrong.
    """
    outcome = Outcome()
    directory = mount.upload / "many"

    def watched(what: str, work: Callable[[Path, int], None], most: int = entries) -> None:
        outcome.watched(what, lambda: work(directory, most), mount.upload)

    def remount() -> None:
        done = mount.unmount()
        assert (done.returncode, done.stderr) == (0, b"")
        outcome.timed("mounting again, until ready", mount.mount)

    outcome.kilobytes["at the start"] = resident(mount)
    watched("making them", _make)
    watched("listing them", _list_all)
    watched("looking each up, as the kernel knows it", _look_up)
    outcome.kilobytes["after that"] = resident(mount)
    outcome.timed("unmounting and mounting again", remount)
    outcome.kilobytes["mounted again"] = resident(mount)
    watched("the first lookup after that", _look_up, 1)
    outcome.kilobytes["after the first lookup"] = resident(mount)
    watched("looking each up, the kernel asks keepfs", _look_up)
    outcome.kilobytes["after looking each up"] = resident(mount)
    watched("listing them again", _list_all)
    outcome.kilobytes["after listing"] = resident(mount)
    outcome.timed("unmounting and mounting once more", remount)
    watched("listing them first", _list_all)
    outcome.kilobytes["after listing first"] = resident(mount)
    watched("removing them", _remove_all)
    outcome.kilobytes["after removing"] = resident(mount)
    assert os.listdir(mount.upload) == []
    return outcome


def _make(directory: Path, entries: int) -> None:
    directory.mkdir()
    for number in range(entries):
        # A symlink among ten, else files.
        if number % 10 == 9:
            os.symlink(name_of(number - 1), directory / name_of(number))
        else:
            os.mknod(directory / name_of(number), stat.S_IFREG | 0o644)


def _list_all(directory: Path, entries: int) -> None:
    assert sorted(os.listdir(directory)) == list(map(name_of, range(entries)))


def _look_up(directory: Path, entries: int) -> None:
    for number in range(entries):
        mode = os.lstat(directory / name_of(number)).st_mode
        assert stat.S_ISLNK(mode) == (number % 10 == 9)


def _remove_all(directory: Path, entries: int) -> None:
    for number in range(entries):
        os.unlink(directory / name_of(number))
    directory.rmdir()


def resident(mount: KeepfsMount) -> int:
    """Return the resident memory of keepfs, in KiB."""
    status = Path(f"/proc/{mount.pid()}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1])


def main() -> int:
    """Run as a script."""
    (entries,) = numbers(100_000)
    with tempfile.TemporaryDirectory() as base, mounted(Path(base)) as mount:
        outcome = soak(mount, entries)
    click.echo(f"{entries} entries in one directory")
    for what, seconds in outcome.seconds.items():
        waits = outcome.waits.get(what)
        waited = "" if waits is None else f"  others wait {waits * 1e3:6.0f} ms"
        each = f"{seconds / entries * 1e6:8.1f} µs each"
        click.echo(f"    {what:40} {seconds:8.3f} s  {each}{waited}")
    for when, kilobytes in outcome.kilobytes.items():
        click.echo(f"    resident {when:31} {kilobytes // 1024:8} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
