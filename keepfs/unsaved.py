"""Files that couldn't be stored: their bytes on this machine's disk, until they can be.

Each is a directory of its own in the state directory, open to its owner
alone: `about.json` says what it is, `bytes` has what isn't in Keep. Both are
synced, `about.json` last: one that is there is whole. The bytes are checked
when they are read. Blocking; no trio, no FUSE.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from keepfs.keep.locator import KeepLocator
from keepfs.keep.receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from typing_extensions import Buffer

_ABOUT, _BYTES = "about.json", "bytes"
#: What a running mount says of its files that aren't stored.
_LIVE = "unsaved.json"


class UnsavedError(Exception):
    """An unsaved file can't be read; one line says why."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One slot's worth of a file.

    Attributes:
        length: Bytes of the file that it covers.
        receipt: The stored block that has them, or None.
        staged: Bytes that are in no store; zeros follow up to `length`. None for a hole.
    """

    length: int
    receipt: Receipt | None = None
    staged: Buffer | None = None


@dataclass(frozen=True, slots=True)
class About:
    """What is known of an unsaved file, but for its bytes.

    Attributes:
        path: Below upload/.
        size: Bytes of the whole file.
        mode: As in st_mode.
        uid: Owner.
        gid: Group.
        atime_ns: Last access.
        mtime_ns: Last change of the content.
        version: Names the stored version that it was to replace; empty if there was none.
        error: Why it couldn't be stored.
    """

    path: str
    size: int
    mode: int = 0o100644
    uid: int = 0
    gid: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    version: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class UnsavedFile:
    """A file that was put aside.

    Attributes:
        directory: Where.
        about: What it is.
    """

    directory: Path
    about: About

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return self.directory.name

    def pieces(self) -> list[Piece]:
        """Read its bytes, and check them.

        Raises:
            UnsavedError: They aren't what was put aside.
        """
        try:
            described = json.loads((self.directory / _ABOUT).read_text())["pieces"]
            with (self.directory / _BYTES).open("rb") as file:
                return [_read_piece(each, file.read(each["staged"] or 0)) for each in described]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnsavedError(f"{self.directory} can't be read: {error}") from error

    def remove(self) -> None:
        """Forget it; after a crash in the middle it is forgotten as well."""
        (self.directory / _ABOUT).unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)


def put_aside(state_dir: Path, about: About, pieces: Sequence[Piece]) -> UnsavedFile:
    """Put a file aside; when this returns, it survives a power cut.

    Raises:
        OSError: The disk doesn't take it.
    """
    parent = state_dir / "unsaved"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = parent / os.path.basename(tempfile.mkdtemp(prefix="", dir=parent))  # noqa: PTH119
    described = []
    with _created(directory / _BYTES) as file:
        for piece in pieces:
            staged = None if piece.staged is None else memoryview(piece.staged).cast("B")
            if staged is not None:
                file.write(staged)
            described.append(_describe(piece, staged))
    text = json.dumps({**asdict(about), "pieces": described}, indent=1)
    with _created(directory / f"{_ABOUT}.new") as file:
        file.write(text.encode())
    (directory / f"{_ABOUT}.new").rename(directory / _ABOUT)
    for each in (directory, parent):
        _sync_directory(each)
    return UnsavedFile(directory, about)


def find_all(state_dir: Path) -> list[UnsavedFile]:
    """Return the files that were put aside, the oldest first.

    Raises:
        UnsavedError: One can't be understood.
    """
    found = []
    for path in sorted((state_dir / "unsaved").glob(f"*/{_ABOUT}"), key=_changed_at):
        try:
            described = json.loads(path.read_text())
            described.pop("pieces")
            found.append(UnsavedFile(path.parent, About(**described)))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UnsavedError(f"{path} can't be understood: {error}") from error
    return found


def tell(state_dir: Path, files: Sequence[About]) -> None:
    """Let others know which files of the running mount aren't stored, and why."""
    with tempfile.NamedTemporaryFile("w", dir=state_dir, delete=False) as file:
        json.dump([asdict(each) for each in files], file)
    os.replace(file.name, state_dir / _LIVE)  # noqa: PTH105 - names, not paths


def told(state_dir: Path) -> list[About]:
    """Return what the running mount has told; nothing where none runs."""
    try:
        return [About(**each) for each in json.loads((state_dir / _LIVE).read_text())]
    except (OSError, ValueError, TypeError):
        return []


def forget_told(state_dir: Path) -> None:
    """Take back what was told: the mount has ended."""
    (state_dir / _LIVE).unlink(missing_ok=True)


def _describe(piece: Piece, staged: memoryview | None) -> dict[str, Any]:
    receipt = piece.receipt
    return {
        "length": piece.length,
        "staged": None if staged is None else staged.nbytes,
        "sha256": None if staged is None else hashlib.sha256(staged).hexdigest(),
        "receipt": receipt and [str(receipt.locator), receipt.copies, list(receipt.services)],
    }


def _read_piece(described: dict[str, Any], staged: bytes) -> Piece:
    receipt = described["receipt"]
    if receipt is not None:
        locator, copies, services = receipt
        found = Receipt(KeepLocator(locator), copies, tuple(services))
        return Piece(described["length"], found)
    if described["staged"] is None:
        return Piece(described["length"])
    if hashlib.sha256(staged).hexdigest() != described["sha256"]:
        raise ValueError("the bytes aren't those that were put aside")
    return Piece(described["length"], staged=staged)


@contextlib.contextmanager
def _created(path: Path) -> Any:  # noqa: ANN401 - a binary file
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        yield _Whole(file)
        os.fsync(file.fileno())


class _Whole:
    """Writes all of what it is given: a raw file may take less at once."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401 - a raw file
        self._file = file

    def write(self, content: Buffer) -> None:
        view = memoryview(content)
        while view:
            view = view[self._file.write(view) :]


def _changed_at(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
