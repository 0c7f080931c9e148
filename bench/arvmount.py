"""Beside arv-mount, Arvados's own mount: cold reads, and reads from each one's cache."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bench.baselines import wait_mounted
from bench.measure import NotMeasuredError, Target, VerifyError, compare, mb
from bench.mounting import Mount, environment, mounted, new_base
from bench.reading import Reader, size_of, verify
from tests.keepstore import portable_data_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.measure import Figure, Taken
    from bench.rig import Rig
    from tests.keepstore import ApiControls

#: Seconds it may take to end.
_PATIENCE = 20.0
#: At least twice as fast.
_TARGET = Target(2)


def measure(rig: Rig) -> Iterator[Figure]:
    """Measure reading beside arv-mount.

    Cold, keepfs has the cache that it has by default; arv-mount has room for all
    that is read in a trial, since it fetches several blocks ahead. It keeps them on
    the disk by default, or in memory as keepfs does.

    Raises:
        NotMeasuredError: There is no arv-mount, it doesn't come up, or there is no
            API server of ours to have its collections.
    """
    program, api = _arv_mount(rig)
    roomy = str((rig.long + 2) * rig.block)
    with (
        mounted(rig, "--cache-size", str(4 * rig.block)) as mount,
        mounted(rig, "--cache-size", roomy) as caching,
        _mounted(rig, api, program, "--disk-cache", "--file-cache", roomy) as on_disk,
        _mounted(rig, api, program, "--ram-cache", "--file-cache", roomy) as in_memory,
    ):
        ours = Reader(rig, mount)
        theirs = {"arv-mount": on_disk, "its --ram-cache": in_memory}
        for count in dict.fromkeys((4, rig.long)):
            yield _cold(rig, ours, theirs, count, together=False)
        yield _cold(rig, ours, theirs, rig.long, together=True)
        yield _cached(rig, Reader(rig, caching), theirs)


class ArvMountReader(Reader):
    """Reads blocks as files of collections, which arv-mount shows.

    Args:
        rig: Where the blocks are.
        mount: The running arv-mount.
        api: The API server that has the collections.
    """

    def __init__(self, rig: Rig, mount: Mount, api: ApiControls) -> None:
        super().__init__(rig, mount)
        self._api = api

    def files(self, names: list[str]) -> list[Path]:
        """Make a collection with a file for each locator or comma list.

        arv-mount has its manifest, and knows the files, when this returns.
        """
        manifest = manifest_of(names)
        name = portable_data_hash(manifest)
        self._api.configure(collections={name: manifest})
        return sorted((self.mount.path / name).iterdir())

    def cold(self, names: list[str]) -> Taken:
        """Read as `Reader` does; then have the disk take what arv-mount wrote there."""
        taken = super().cold(names)
        os.sync()
        return taken


def _arv_mount(rig: Rig) -> tuple[Path, ApiControls]:
    """Return the program, and the API server that has its collections.

    Raises:
        NotMeasuredError: There is none.
    """
    program = Path(sys.executable).with_name("arv-mount")
    if not arv_mount_is_here():
        raise NotMeasuredError("there is no arv-mount: scripts/setup --bench installs it")
    if rig.services.api is None:
        raise NotMeasuredError("its collections need an API server of ours: not with --services")
    return program, rig.services.api


@contextmanager
def arv_mounted(rig: Rig) -> Iterator[tuple[Mount, ApiControls]]:
    """Mount with arv-mount for a while; its cache has room for 80 blocks on the disk.

    Raises:
        NotMeasuredError: There is no arv-mount, or it doesn't come up.
    """
    program, api = _arv_mount(rig)
    room = str(80 * rig.block)
    with _mounted(rig, api, program, "--disk-cache", "--file-cache", room) as reader:
        yield reader.mount, api


def arv_mount_is_here() -> bool:
    """Return whether arv-mount is installed beside this Python."""
    return Path(sys.executable).with_name("arv-mount").exists()


@contextmanager
def arv_mount_caching(rig: Rig, cache: Path, room: int) -> Iterator[Mount]:
    """Mount with arv-mount for a while, with a cache of `room` bytes in a directory.

    Raises:
        NotMeasuredError: There is no arv-mount, or it doesn't come up.
    """
    program, api = _arv_mount(rig)
    where = ("--disk-cache", "--disk-cache-dir", str(cache))
    with _mounted(rig, api, program, *where, "--file-cache", str(room)) as reader:
        yield reader.mount


def manifest_of(names: list[str]) -> str:
    """Return the manifest of a collection of files 0000, 0001, ... as in Arvados."""
    files, position = [], 0
    for number, name in enumerate(names):
        size = sum(size_of(locator) for locator in name.split(","))
        files.append(f"{position}:{size}:{number:04}")
        position += size
    locators = ",".join(names).split(",")
    return " ".join([".", *locators, *files]) + "\n"


@contextmanager
def _mounted(rig: Rig, api: ApiControls, program: Path, *options: str) -> Iterator[ArvMountReader]:
    """Mount all collections for a while.

    Raises:
        NotMeasuredError: It didn't come up; with the log's end.
    """
    base = new_base(rig)
    log = base / "log"
    words = ["--foreground", "--by-pdh", *options, str(base / "mnt")]
    with (
        log.open("wb") as errors,
        subprocess.Popen([program, *words], env=environment(rig, base), stderr=errors) as process,
    ):
        try:
            try:
                wait_mounted(process, base / "mnt")
            except RuntimeError as error:
                raise NotMeasuredError(f"{error}:\n{log.read_text()[-2000:]}") from None
            yield ArvMountReader(rig, Mount(base / "mnt", process.pid), api)
        finally:
            # A signal alone wakes none of its threads that wait for the kernel.
            unmount = ["fusermount3", "-u", "-z", str(base / "mnt")]
            subprocess.run(unmount, stderr=errors, check=False)
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_PATIENCE)
            finally:
                process.kill()


def _cold(
    rig: Rig, ours: Reader, theirs: dict[str, ArvMountReader], count: int, *, together: bool
) -> Figure:
    def trial(reader: Reader) -> Taken:
        names = ours.fresh.take(count)
        return reader.cold([",".join(names)] if together else names)

    what = f"{count} blocks of one file" if together else f"{count} blocks in turn"
    return compare(
        f"beside arv-mount: cold, {what}",
        mb(rig.block * count),
        functools.partial(trial, ours),
        {name: functools.partial(trial, reader) for name, reader in theirs.items()},
        repeats=rig.repeats,
        pid=ours.mount.pid,
        target=_TARGET,
        memory=2 * count * rig.block,
    )


def _cached(rig: Rig, ours: Reader, theirs: dict[str, ArvMountReader]) -> Figure:
    (name,) = rig.blocks(1)

    def cached(reader: Reader) -> Callable[[], float]:
        (path,) = reader.files([name])
        verify(path, name)
        return functools.partial(reader.cached, path)

    subject, others = cached(ours), {kind: cached(it) for kind, it in theirs.items()}
    before = rig.services.counts()
    figure = compare(
        f"beside arv-mount: {rig.block_name} from the cache, pages dropped",
        mb(rig.block),
        subject,
        others,
        repeats=rig.repeats,
        pid=ours.mount.pid,
        target=_TARGET,
    )
    if rig.services.counts() != before:
        raise VerifyError("a block didn't come out of a cache")
    return figure
