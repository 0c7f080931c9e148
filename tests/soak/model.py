"""The same random operations on a mount and on a local disk: every answer and byte is equal.

After every step the two trees are compared: names, modes, sizes, bytes, links,
and times as far as they were set; and again after every remount.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import stat
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.mounted.mounts import mounted
from tests.soak.arguments import numbers_and_seed
from tests.soak.twins import (
    LONG_AGO_NS,
    Twins,
    check_alike,
    check_equal,
    outcome,
    read_twice,
    status_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.mounted.mounts import KeepfsMount

#: Steps between two remounts of an example: one takes as long as a hundred other steps.
_STEPS_MOUNTED = 15
_MOST_HANDLES = 6
_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)

names = st.sampled_from(["a", "b", "c"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
contents = st.tuples(st.binary(min_size=1, max_size=9), st.integers(1, 3000)).map(
    lambda it: it[0] * it[1]
)
sizes = st.integers(0, 20_000)
modes = st.sampled_from([0o644, 0o600, 0o400, 0o000, 0o755, 0o4755, 0o2755, 0o1777])
times = st.integers(0, LONG_AGO_NS - 1)
ways = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
extras = st.sets(st.sampled_from([os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND])).map(sum)
numbers = st.integers(0, _MOST_HANDLES - 1)


@dataclass(frozen=True, slots=True)
class _Handle:
    """One file, open in both places."""

    on_disk: int
    mounted: int
    flags: int


def _renamed(old: Path, new: Path, flags: int) -> None:
    arguments = (_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags)
    if _libc.renameat2(*arguments) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


class UploadModel(RuleBasedStateMachine):
    """A directory of a mount against one of a local disk."""

    def __init__(self, twins: Twins) -> None:
        super().__init__()
        self.twins = twins
        self.disk, self.mounted = twins.fresh()
        self.handles: list[_Handle] = []
        self.steps_mounted = 0

    # --- by name -----------------------------------------------------------------

    @rule(path=paths, way=ways, extra=extras, offset=sizes, content=contents)
    def write(self, path: str, way: int, extra: int, offset: int, content: bytes) -> None:
        def work(place: Path) -> object:
            file = os.open(place / path, way | extra, 0o640)
            try:
                return os.pwrite(file, content, offset)
            finally:
                os.close(file)

        self._both(work)

    @rule(path=paths, content=contents)
    def write_all(self, path: str, content: bytes) -> None:
        self._both(lambda place: (place / path).write_bytes(content))

    @rule(path=paths, content=contents)
    def append(self, path: str, content: bytes) -> None:
        def work(place: Path) -> None:
            with (place / path).open("ab") as file:
                file.write(content)

        self._both(work)

    @rule(path=paths, offset=sizes, size=sizes)
    def read(self, path: str, offset: int, size: int) -> None:
        def work(place: Path) -> bytes:
            with (place / path).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)

        self._both(work)

    @rule(path=paths, size=sizes)
    def truncate(self, path: str, size: int) -> None:
        self._both(lambda place: os.truncate(place / path, size))

    @rule(path=paths, offset=sizes, content=contents, flushes=st.booleans())
    def write_through_a_mapping(
        self, path: str, offset: int, content: bytes, *, flushes: bool
    ) -> None:
        def work(place: Path) -> object:
            with (place / path).open("r+b", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if offset >= size:
                    return "there is nothing to map"
                taken = content[: size - offset]
                with mmap.mmap(file.fileno(), size) as mapped:
                    mapped[offset : offset + len(taken)] = taken
                    if flushes:
                        mapped.flush()
                    return mapped[:]

        self._both(work)

    @rule(path=paths, mode=modes)
    def make_a_node(self, path: str, mode: int) -> None:
        self._both(lambda place: os.mknod(place / path, stat.S_IFREG | mode))

    @rule(path=paths, mode=modes)
    def make_a_directory(self, path: str, mode: int) -> None:
        self._both(lambda place: os.mkdir(place / path, mode))

    @rule(path=paths)
    def remove_a_directory(self, path: str) -> None:
        self._both(lambda place: os.rmdir(place / path))

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        self._both(lambda place: os.unlink(place / path))

    @rule(path=paths, new=paths)
    def rename(self, path: str, new: str) -> None:
        self._both(lambda place: os.rename(place / path, place / new))

    @rule(path=paths, new=paths, flags=st.sampled_from([_RENAME_NOREPLACE, _RENAME_EXCHANGE]))
    def rename_with_flags(self, path: str, new: str, flags: int) -> None:
        self._both(lambda place: _renamed(place / path, place / new, flags))

    @rule(path=paths, content=paths)
    def make_a_symlink(self, path: str, content: str) -> None:
        self._both(lambda place: os.symlink(content, place / path))

    @rule(path=paths, mode=modes)
    def change_the_mode(self, path: str, mode: int) -> None:
        self._both(lambda place: os.chmod(place / path, mode))

    @rule(path=paths, atime=times, mtime=times, follow=st.booleans())
    def set_the_times(self, path: str, atime: int, mtime: int, *, follow: bool) -> None:
        def work(place: Path) -> object:
            os.utime(place / path, ns=(atime, mtime), follow_symlinks=follow)
            status = os.stat(place / path, follow_symlinks=follow)
            return status.st_atime_ns, status.st_mtime_ns

        self._both(work)

    @rule(path=paths)
    def sync_a_directory(self, path: str) -> None:
        def work(place: Path) -> None:
            directory = os.open(place / path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

        self._both(work)

    @rule(path=paths, length=st.sampled_from([254, 255, 256, 300]))
    def use_a_long_name(self, path: str, length: int) -> None:
        long = f"{path[:-1]}{'n' * length}"
        self._both(lambda place: os.stat(place / long).st_size)
        self._both(lambda place: os.close(os.open(place / long, os.O_CREAT | os.O_WRONLY, 0o600)))
        self._both(lambda place: os.rename(place / path, place / long))
        self._both(lambda place: os.unlink(place / long))

    # --- by handle ---------------------------------------------------------------

    @precondition(lambda self: len(self.handles) < _MOST_HANDLES)
    @rule(path=paths, way=ways, extra=extras, mode=modes)
    def open(self, path: str, way: int, extra: int, mode: int) -> None:
        flags = way | extra
        opened = [
            outcome(lambda place=place: os.open(place / path, flags, mode))  # type: ignore[misc] # bound now
            for place in (self.disk, self.mounted)
        ]
        match opened:
            case [int(on_disk), int(on_mount)]:
                self.handles.append(_Handle(on_disk, on_mount, flags))
            case _:
                for file in opened:
                    if isinstance(file, int):
                        os.close(file)
                check_equal(opened[1], opened[0], path)

    @precondition(lambda self: self.handles)
    @rule(number=numbers, offset=sizes, content=contents)
    def write_to_a_handle(self, number: int, offset: int, content: bytes) -> None:
        self._both_handles(number, lambda file: os.pwrite(file, content, offset))

    @precondition(lambda self: self.handles)
    @rule(number=numbers, content=contents)
    def go_on_writing(self, number: int, content: bytes) -> None:
        self._both_handles(number, lambda file: os.write(file, content))

    @precondition(lambda self: self.handles)
    @rule(number=numbers, size=sizes)
    def go_on_reading(self, number: int, size: int) -> None:
        self._both_handles(number, lambda file: os.read(file, size))

    @precondition(lambda self: self.handles)
    @rule(number=numbers, size=sizes)
    def truncate_a_handle(self, number: int, size: int) -> None:
        self._both_handles(number, lambda file: os.ftruncate(file, size))

    @precondition(lambda self: self.handles)
    @rule(number=numbers, mode=modes, mtime=times)
    def change_a_handle(self, number: int, mode: int, mtime: int) -> None:
        self._both_handles(number, lambda file: os.fchmod(file, mode))
        self._both_handles(number, lambda file: os.utime(file, ns=(mtime, mtime)))

    @precondition(lambda self: self.handles)
    @rule(number=numbers)
    def sync_a_handle(self, number: int) -> None:
        self._both_handles(number, os.fsync)

    @precondition(lambda self: self.handles)
    @rule(number=numbers)
    def flush_a_handle(self, number: int) -> None:
        self._both_handles(number, lambda file: os.close(os.dup(file)))

    @precondition(lambda self: self.handles)
    @rule(number=numbers)
    def close(self, number: int) -> None:
        handle = self.handles.pop(number % len(self.handles))
        os.close(handle.on_disk)
        os.close(handle.mounted)

    # --- all of it ---------------------------------------------------------------

    @precondition(lambda self: self.steps_mounted >= _STEPS_MOUNTED)
    @rule()
    def remount(self) -> None:
        self._close_all()
        self._all_is_stored()
        self.twins.remount()
        self._all_is_stored()
        self.steps_mounted = 0

    @invariant()
    def both_places_are_alike(self) -> None:
        self.twins.steps += 1
        self.steps_mounted += 1
        check_alike(self.mounted, self.disk)
        for handle in self.handles:
            on_disk, on_mount = os.fstat(handle.on_disk), os.fstat(handle.mounted)
            check_equal(status_of(on_mount), status_of(on_disk), handle)
            if handle.flags & os.O_ACCMODE != os.O_WRONLY and stat.S_ISREG(on_disk.st_mode):
                content = read_twice(handle.on_disk)
                check_equal(read_twice(handle.mounted), content, handle)

    def teardown(self) -> None:
        self._close_all()
        self.both_places_are_alike()
        self._all_is_stored()

    # --- how -----------------------------------------------------------------------

    def _both(self, work: Callable[[Path], object]) -> None:
        expected = outcome(lambda: work(self.disk))
        check_equal(outcome(lambda: work(self.mounted)), expected, "outcome")

    def _both_handles(self, number: int, work: Callable[[int], object]) -> None:
        handle = self.handles[number % len(self.handles)]
        expected = outcome(lambda: work(handle.on_disk))
        check_equal(outcome(lambda: work(handle.mounted)), expected, handle)

    def _close_all(self) -> None:
        while self.handles:
            self.close(0)

    def _all_is_stored(self) -> None:
        for path in self.mounted.rglob("*"):
            if stat.S_ISREG(path.lstat().st_mode):
                with contextlib.suppress(PermissionError):  # of mode 0, for others than root
                    assert self.twins.is_stored(path), path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was compared.

    Attributes:
        steps: Operations after which all was.
        remounts: Of the mount.
    """

    steps: int
    remounts: int


def soak(mount: KeepfsMount, disk: Path, examples: int, steps: int, seed: int) -> Outcome:
    """Run examples, and compare all of them once more after a last remount.

    Raises:
        AssertionError: A difference; hypothesis prints the shortest way to it.
    """
    twins = Twins(mount, disk)

    @hypothesis.seed(seed)
    def machine() -> UploadModel:
        return UploadModel(twins)

    run_state_machine_as_test(
        machine,  # type: ignore[arg-type] # what makes one is as good, its docstring says
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    twins.remount()
    twins.compare()
    return Outcome(twins.steps, twins.remounts)


def main() -> int:
    """Run as a script."""
    examples, steps, seed = numbers_and_seed(500, 50)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as base, mounted(Path(base)) as mount:
        disk = Path(base) / "disk"
        disk.mkdir()
        outcome = soak(mount, disk, examples, steps, seed)
        assert not [line for line in mount.logged() if " WARNING " not in line]
    seconds = time.monotonic() - begin
    click.echo(
        f"{examples} examples, {outcome.steps} steps, {outcome.remounts} remounts:"
        f" no difference; {seconds:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
