"""A directory of very many names: how long everything takes, and what it costs in memory.

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

from tests.mount.mounts import mounted
from tests.soak.arguments import numbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.mount.mounts import KeepfsMount


@dataclass
class Outcome:
    """What was measured.

    Attributes:
        seconds: By what was done.
        kilobytes: Resident memory of keepfs, by when.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    kilobytes: dict[str, int] = field(default_factory=dict)

    def timed(self, what: str, work: Callable[[], object]) -> None:
        """Do something, and note how long it takes."""
        begin = time.monotonic()
        work()
        self.seconds[what] = time.monotonic() - begin


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
    expected = {name_of(number) for number in range(entries)}

    def make() -> None:
        os.mkdir(directory)
        for number in range(entries):
            # A symlink among ten, else files.
            if number % 10 == 9:
                os.symlink(name_of(number - 1), directory / name_of(number))
            else:
                os.mknod(directory / name_of(number), stat.S_IFREG | 0o644)

    def list_all() -> None:
        assert sorted(os.listdir(directory)) == sorted(expected)

    def look_up_all() -> None:
        for number in range(entries):
            mode = os.lstat(directory / name_of(number)).st_mode
            assert stat.S_ISLNK(mode) == (number % 10 == 9)

    def remount() -> None:
        done = mount.unmount()
        assert (done.returncode, done.stderr) == (0, b"")
        outcome.timed("mounting again, until ready", mount.mount)

    def remove_all() -> None:
        for name in expected:
            os.unlink(directory / name)
        os.rmdir(directory)

    outcome.kilobytes["at the start"] = resident(mount)
    outcome.timed("making them", make)
    outcome.timed("listing them", list_all)
    outcome.timed("looking each up, as the kernel knows it", look_up_all)
    outcome.kilobytes["after that"] = resident(mount)
    outcome.timed("unmounting and mounting again", remount)
    outcome.kilobytes["mounted again"] = resident(mount)
    outcome.timed("the first lookup after that", lambda: os.lstat(directory / name_of(0)))
    outcome.timed("looking each up, the kernel asks keepfs", look_up_all)
    outcome.kilobytes["after looking each up"] = resident(mount)
    outcome.timed("listing them again", list_all)
    outcome.kilobytes["after listing"] = resident(mount)
    outcome.timed("removing them", remove_all)
    assert os.listdir(mount.upload) == []
    return outcome


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
        click.echo(f"    {what:40} {seconds:8.2f} s  {seconds / entries * 1e6:8.1f} µs each")
    for when, kilobytes in outcome.kilobytes.items():
        click.echo(f"    resident {when:31} {kilobytes // 1024:8} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
