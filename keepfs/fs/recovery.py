"""Files that couldn't be stored: put aside when the mount ends, taken up by the next.

For the trio thread; disks are waited for in worker threads.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pyfuse3 import FUSEError

from keepfs import unsaved
from keepfs.fs.nodes import Metadata, Node, directory_mode
from keepfs.fs.upload import UploadDirectory
from keepfs.fs.upload_file import UploadFile
from keepfs.unsaved import About, UnsavedError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from keepfs.fs.blocks import AsyncBlocks
    from keepfs.unsaved import Piece, UnsavedFile

_log = logging.getLogger(__name__)


def about(file: UploadFile) -> About:
    """Describe a file that isn't stored."""
    metadata = file.metadata
    return About(
        path=file.path,
        size=file.size,
        mode=metadata.mode,
        uid=metadata.uid,
        gid=metadata.gid,
        atime_ns=metadata.atime_ns,
        mtime_ns=metadata.mtime_ns,
        version=file.version,
        error=file.error,
    )


async def put_aside(
    blocks: AsyncBlocks, state_dir: Path, files: Iterable[UploadFile]
) -> list[UploadFile]:
    """Put files aside, on the disk; return those that it didn't take."""
    lost = []
    for file in files:
        description, pieces = about(file), file.pieces()
        try:
            aside = await blocks.spill(
                lambda it=description, of=pieces: unsaved.put_aside(state_dir, it, of)  # type: ignore[misc]
            )
        except OSError as error:
            _log.error("LOST, since it can't be put aside either: %s: %s", file.path, error)
            lost.append(file)
        else:
            _log.warning("not stored, put aside as %s: %s", aside.name, file.path)
    return lost


async def take_up(
    blocks: AsyncBlocks, state_dir: Path, upload: UploadDirectory
) -> dict[UploadFile, UnsavedFile]:
    """Make what earlier mounts put aside files of upload/ again, which wait to be stored.

    One whose name has got another version meanwhile comes back as `NAME~unsaved`.

    Returns:
        What is to be removed when the file is stored.
    """
    taken: dict[UploadFile, UnsavedFile] = {}
    try:
        found = await blocks.run(lambda: unsaved.find_all(state_dir))
    except UnsavedError as error:
        _log.error("unsaved files stay aside: %s", error)
        return taken
    for aside in found:
        try:
            pieces = await blocks.run(aside.pieces)
        except UnsavedError as error:
            _log.error("an unsaved file stays aside: %s", error)
            continue
        file = _place_for(aside, upload)
        _restore(file, aside.about, pieces)
        taken[file] = aside
        _log.info("taking up what wasn't stored: %s", file.path)
    return taken


def _restore(file: UploadFile, described: About, pieces: list[Piece]) -> None:
    file.restore(
        Metadata(
            described.mode, described.uid, described.gid, described.atime_ns, described.mtime_ns
        ),
        pieces,
    )


def _place_for(aside: UnsavedFile, upload: UploadDirectory) -> UploadFile:
    """Find the file to restore, or make it, with the directories above it."""
    described = aside.about
    *above, name = described.path.split("/")
    directory = upload
    for part in above:
        node: Node | None = directory.entry_nowait(part)
        if node is None:
            owner = Metadata(directory_mode(0o755), described.uid, described.gid)
            node = directory.mkdir(part, owner)
        if not isinstance(node, UploadDirectory):
            return _made(upload, name, described)  # a file stands in the way: to the top with it
        directory = node
    there = directory.entry_nowait(name)
    if isinstance(there, UploadFile) and there.version == described.version:
        return there
    return _made(directory, name, described)


def _made(directory: UploadDirectory, name: str, described: About) -> UploadFile:
    """Make a file of that name, or the first like it that is free."""
    free = name
    number = 0
    while directory.entry_nowait(free) is not None:
        number += 1
        free = f"{name}~unsaved" + (f"-{number}" if number > 1 else "")
    try:
        file = directory.create(free, Metadata(described.mode, described.uid, described.gid))
    except FUSEError:  # too long a name
        return _made(directory, f"unsaved-{described.mtime_ns}", described)
    if not isinstance(file, UploadFile):
        raise TypeError("upload/ makes upload files")
    return file
