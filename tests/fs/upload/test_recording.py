"""upload/ and its catalog: a change that can't be recorded changes nothing in memory either."""

from __future__ import annotations

import contextlib
import dataclasses
import stat
from typing import TYPE_CHECKING

import pytest

from keepfs.fs.bridge import open_blocks
from keepfs.fs.nodes import Changes, Metadata, RenameMode, directory_mode, file_mode
from keepfs.fs.upload.catalog import Catalog
from keepfs.fs.upload.directory import UploadDirectory, UploadNode
from keepfs.fs.upload.file import UploadFile
from keepfs.fs.upload.staging import Staging
from keepfs.fs.upload.storing import State
from tests.fakes.disk import full_disk
from tests.fakes.store import DictStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


def owner(mode: int) -> Metadata:
    return Metadata(mode, 1, 2, 3)


class Bench:
    """A tree over a catalog on the disk, where everything is dated 1970.

    Attributes:
        upload: The tree: a stored file `stored`, an unstored one `new`, a symlink
            `link`, an empty directory `empty`, and `full` with a stored file in it.
        catalog: Where it is recorded.
    """

    def __init__(self, staging: Staging, catalog: Catalog) -> None:
        self._staging, self.catalog = staging, catalog
        self.upload = self.mounted()

    async def fill(self) -> None:
        """Make the entries."""
        full = self.upload.mkdir("full", owner(directory_mode(0o755)))
        assert isinstance(full, UploadDirectory)
        empty = self.upload.mkdir("empty", owner(directory_mode(0o755)))
        self.upload.symlink("link", b"target", owner(stat.S_IFLNK | 0o777))
        for directory, name in ((self.upload, "stored"), (full, "inner")):
            file = self.new_file(name, directory)
            await file.write(0, name.encode())
            await file.store()
            await file.change(Changes(atime_ns=3, mtime_ns=3))
        await self.new_file("new", self.upload).write(0, b"new")
        for node in (full, empty, self.upload):
            await node.change(Changes(atime_ns=3, mtime_ns=3))

    def mounted(self) -> UploadDirectory:
        """Return the tree as the catalog has it."""
        metadata = owner(directory_mode(0o755))
        return UploadDirectory.mounted(metadata, self._staging, lambda *_: None, self.catalog)

    def new_file(self, name: str, directory: UploadDirectory) -> UploadFile:
        """Make a file that isn't stored."""
        file = directory.create(name, owner(file_mode(0o644)))
        assert isinstance(file, UploadFile)
        return file

    def node(self, path: str) -> UploadNode:
        """Find a node."""
        node: UploadNode = self.upload
        for name in path.split("/"):
            assert isinstance(node, UploadDirectory)
            found = node.entry_nowait(name)
            assert found is not None
            node = found
        return node

    def file(self, path: str) -> UploadFile:
        """Find a file."""
        node = self.node(path)
        assert isinstance(node, UploadFile)
        return node


def snapshot(directory: UploadDirectory, *, path: str = "") -> dict[str, object]:
    """Return all that can be seen of a tree; which node it is matters too, unless it is new."""
    found: dict[str, object] = {path: dataclasses.asdict(directory.metadata)}
    for name in directory.names():
        node = directory.entry_nowait(name)
        assert node is not None
        below = f"{path}/{name}"
        if isinstance(node, UploadDirectory):
            found |= snapshot(node, path=below)
            continue
        found[below] = (dataclasses.asdict(node.metadata), node.links, node.size)
        if isinstance(node, UploadFile):
            found[below] = (found[below], node.state, node.path, dict(node.xattrs()))
    return found


def nodes(directory: UploadDirectory) -> list[UploadNode]:
    """Return all nodes of a tree."""
    found: list[UploadNode] = [directory]
    for name in directory.names():
        node = directory.entry_nowait(name)
        assert node is not None
        found += nodes(node) if isinstance(node, UploadDirectory) else [node]
    return found


@contextlib.asynccontextmanager
async def open_bench(tmp_path: Path) -> AsyncIterator[Bench]:
    catalog = Catalog(tmp_path / "state" / "catalog")
    with contextlib.closing(catalog):
        async with open_blocks(DictStore(), copies=1) as blocks:
            bench = Bench(Staging(blocks), catalog)
            await bench.fill()
            yield bench


async def mkdir(bench: Bench) -> None:
    bench.upload.mkdir("made", owner(directory_mode(0o755)))


async def symlink(bench: Bench) -> None:
    bench.upload.symlink("made", b"target", owner(stat.S_IFLNK | 0o777))


async def unlink(bench: Bench) -> None:
    bench.upload.unlink("stored")


async def unlink_link(bench: Bench) -> None:
    bench.upload.unlink("link")


async def rmdir(bench: Bench) -> None:
    bench.upload.rmdir("empty")


async def rename(bench: Bench) -> None:
    full = bench.node("full")
    assert isinstance(full, UploadDirectory)
    bench.upload.rename("stored", full, "moved", RenameMode.REPLACE)


async def rename_over(bench: Bench) -> None:
    full = bench.node("full")
    assert isinstance(full, UploadDirectory)
    bench.upload.rename("stored", full, "inner", RenameMode.REPLACE)


async def rename_unstored(bench: Bench) -> None:
    bench.upload.rename("new", bench.upload, "stored", RenameMode.REPLACE)


async def exchange(bench: Bench) -> None:
    bench.upload.rename("stored", bench.upload, "full", RenameMode.EXCHANGE)


async def chmod(bench: Bench) -> None:
    await bench.file("stored").change(Changes(mode=0o600))


async def chmod_directory(bench: Bench) -> None:
    await bench.node("empty").change(Changes(mode=0o700))


async def chmod_link(bench: Bench) -> None:
    await bench.node("link").change(Changes(mtime_ns=5))


async def truncate_to_the_same_size(bench: Bench) -> None:
    await bench.file("stored").truncate(len(b"stored"))


@pytest.mark.parametrize(
    "operation",
    [
        mkdir, symlink, unlink, unlink_link, rmdir, rename, rename_over, rename_unstored,
        exchange, chmod, chmod_directory, chmod_link, truncate_to_the_same_size,
    ],
)  # fmt: skip
async def test_a_failed_record_of_an_operation_changes_nothing(
    tmp_path: Path, operation: Callable[[Bench], Awaitable[None]]
) -> None:
    async with open_bench(tmp_path) as bench:
        before, nodes_before = snapshot(bench.upload), nodes(bench.upload)
        mounted_before = snapshot(bench.mounted())

        with full_disk(), pytest.raises(OSError, match="the catalog can't be written"):
            await operation(bench)
        after, nodes_after = snapshot(bench.upload), nodes(bench.upload)

        assert after == before
        assert nodes_after == nodes_before
        assert snapshot(bench.mounted()) == mounted_before
        await operation(bench)
        assert snapshot(bench.upload) != before  # nothing is in its way


@pytest.mark.parametrize("name", ["new", "stored"])
async def test_a_version_that_cannot_be_recorded_is_not_stored(tmp_path: Path, name: str) -> None:
    async with open_bench(tmp_path) as bench:
        file = bench.file(name)
        await file.write(0, b"changed")
        number, version, mounted = file.number, file.version, snapshot(bench.mounted())

        with full_disk(), pytest.raises(OSError, match="the catalog can't be written"):
            await file.store()

        state = file.state
        assert state is State.FAILED
        assert "the catalog can't be written" in file.error
        assert (file.number, file.version) == (number, version)
        assert snapshot(bench.mounted()) == mounted
        await file.store()
        state = file.state
        assert state is State.STORED
        assert file.path == name
        assert set(bench.mounted().names()) >= {name}


async def test_an_unstored_file_renamed_twice_leaves_no_old_name() -> None:
    async with open_blocks(DictStore(), copies=1) as blocks:
        bench = Bench(Staging(blocks), Catalog())
        await bench.fill()

        bench.upload.rename(
            "new", bench.upload, "stored", RenameMode.REPLACE
        )  # whose version the catalog keeps
        bench.upload.rename("stored", bench.upload, "other", RenameMode.REPLACE)
        names = list(bench.upload.names())

        assert names == ["empty", "full", "link", "other"]
        assert bench.upload.entry_nowait("stored") is None
        assert list(bench.mounted().names()) == ["empty", "full", "link"]


async def test_a_synced_file_has_its_record_on_the_disk(tmp_path: Path, synced: list[str]) -> None:
    async with open_bench(tmp_path) as bench:
        file = bench.node("stored")
        assert isinstance(file, UploadFile)
        synced.clear()

        await file.sync()

        assert synced == [str(tmp_path / "state" / "catalog-wal")]
