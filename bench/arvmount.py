"""Beside arv-mount, Arvados's own mount: cold reads, and reads from each one's cache."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench import baselines
from bench.baselines import wait_mounted
from bench.measure import Target, compare, mb
from bench.mounting import Mount, mounted, new_base
from bench.reading import Reader, verify
from tests.keepstore import portable_data_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.measure import Figure, Taken
    from bench.rig import Rig
    from bench.services import Services

#: Seconds it may take to end.
_PATIENCE = 20.0
#: At least twice as fast.
_TARGET = Target(2)


def _program() -> Path:
    return Path(sys.executable).with_name("arv-mount")


def why_not() -> str | None:
    """Return why nothing can be measured; None if it can."""
    if _program().exists():
        return None
    return "there is no arv-mount: scripts/setup --bench installs it"


def measure(rig: Rig) -> Iterator[Figure]:
    """Measure reading beside arv-mount; nothing where there is none.

    Cold, keepfs has the cache that it has by default; arv-mount has room for all
    that is read in a trial, since it fetches several blocks ahead. It keeps them on
    the disk by default, or in memory as keepfs does.
    """
    if why_not() is not None:
        return
    roomy = str((rig.long + 2) * rig.block)
    with (
        mounted(rig, "--cache-size", str(4 * rig.block)) as mount,
        mounted(rig, "--cache-size", roomy) as caching,
        _listed(rig) as services,
        _mounted(rig, services, "--disk-cache", "--file-cache", roomy) as on_disk,
        _mounted(rig, services, "--ram-cache", "--file-cache", roomy) as in_memory,
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
        services: Whose API server has the collections.
    """

    def __init__(self, rig: Rig, mount: Mount, services: Services) -> None:
        super().__init__(rig, mount)
        self._api = services.api

    def files(self, names: list[str]) -> list[Path]:
        """Make a collection with a file for each locator or comma list.

        arv-mount has its manifest, and knows the files, when this returns.
        """
        manifest = _manifest(names)
        name = portable_data_hash(manifest)
        if self._api is None:
            raise AssertionError
        self._api.configure(collections={name: manifest})
        return sorted((self.mount.path / name).iterdir())

    def cold(self, names: list[str]) -> Taken:
        """Read as `Reader` does; then have the disk take what arv-mount wrote there."""
        taken = super().cold(names)
        os.sync()
        return taken


def _manifest(names: list[str]) -> str:
    """Return the manifest of a collection of files 0000, 0001, ... as in Arvados."""
    files, position = [], 0
    for number, name in enumerate(names):
        size = sum(int(locator.split("+")[1]) for locator in name.split(","))
        files.append(f"{position}:{size}:{number:04}")
        position += size
    locators = ",".join(names).split(",")
    return " ".join([".", *locators, *files]) + "\n"


@contextmanager
def _listed(rig: Rig) -> Iterator[Services]:
    """Have an API server for a while, whose collections may be set."""
    if rig.services.api is not None:
        yield rig.services
        return
    services = dataclasses.replace(rig.services)
    services.announce(rig.base)
    try:
        yield services
    finally:
        services.close()


@contextmanager
def _mounted(rig: Rig, services: Services, *options: str) -> Iterator[ArvMountReader]:
    """Mount all collections for a while.

    Raises:
        RuntimeError: It didn't come up; with the log's end.
    """
    base = new_base(rig)
    log = base / "log"
    words = ["--foreground", "--by-pdh", *options, str(base / "mnt")]
    environment = {**services.environment, "HOME": str(base)}
    with (
        log.open("wb") as errors,
        subprocess.Popen([_program(), *words], env=environment, stderr=errors) as process,
    ):
        try:
            try:
                wait_mounted(process, base / "mnt")
            except RuntimeError as error:
                raise RuntimeError(f"{error}:\n{log.read_text()[-2000:]}") from None
            yield ArvMountReader(rig, Mount(base / "mnt", process.pid), services)
        finally:
            # A signal alone wakes none of its threads that wait for the kernel.
            subprocess.run(["fusermount3", "-u", "-z", base / "mnt"], check=False)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _cold(
    rig: Rig, ours: Reader, theirs: dict[str, ArvMountReader], count: int, *, together: bool
) -> Figure:
    def trial(reader: Reader) -> Taken:
        names = ours.fresh.take(count)
        return reader.cold([",".join(names)] if together else names)

    what = f"{count} blocks of one file" if together else f"{count} blocks in turn"
    return compare(
        f"mount: cold, {what}",
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

    def trial(reader: Reader, path: Path) -> float:
        baselines.drop_pages(path)
        return baselines.read_file(path, reader.buffer)

    def cached(reader: Reader) -> Callable[[], float]:
        (path,) = reader.files([name])
        verify(path, name)
        return functools.partial(trial, reader, path)

    return compare(
        f"mount: {rig.block_name} from the cache, pages dropped",
        mb(rig.block),
        cached(ours),
        {kind: cached(reader) for kind, reader in theirs.items()},
        repeats=rig.repeats,
        pid=ours.mount.pid,
        target=_TARGET,
    )
