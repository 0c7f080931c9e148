"""Spill records: files that could not be stored, on the local disk until they can be.

Each record is a directory in `unsaved/` of the state directory, private to its
owner: `about.json` describes the file, `bytes` has the bytes that aren't in Keep.
Both are synced, `about.json` last: a record with this file is complete. Nothing in
a record is trusted: lengths and paths are checked before anything is allocated or
created; bytes are checked against their digest when they are read.

Blocking; no trio, no FUSE.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from keepfs.fs.upload.stored import NOTHING, StoredBytes, as_rows, from_rows
from keepfs.keep.locator import MAX_BLOCK_SIZE
from keepfs.privacy import sync_directory

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from typing_extensions import Buffer

#: Seconds after the deadline of the drain in which the client is closed and the rest is
#: spilled. The service manager must wait for --drain-timeout plus GRACE; the unit does.
GRACE = 25.0
_ABOUT, _BYTES = "about.json", "bytes"
_FOLDER = "unsaved"
#: Most bytes of `about.json`: about 300 for each of the most ranges that a file may have.
_MAX_ABOUT = 64 * 2**20
#: Most bytes of a name, as in Linux, and of a path: a tree may be deeper than PATH_MAX.
_MAX_NAME, _MAX_PATH = 255, 2**20
#: The times that the catalog can hold, in nanoseconds since 1970.
_TIMES = range(-(2**63), 2**63)
_IDS = range(2**32)


class UnsavedError(Exception):
    """A spill record can't be read; the message has its path and the reason."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a file in one slot.

    Attributes:
        length: Its length, in bytes.
        stored: Where its bytes are, or the first of them; nothing for a hole.
        staged: Its unstored bytes, to be padded with zeros to `length`. None for a hole, or
            if bytes are stored.
    """

    length: int
    stored: StoredBytes = NOTHING
    staged: Buffer | None = None


@dataclass(frozen=True, slots=True)
class About:
    """The description of an unsaved file.

    Attributes:
        path: Its path below upload/.
        size: The size of the whole file, in bytes.
        mode: Its st_mode.
        uid: Its owner.
        gid: Its group.
        atime_ns: Last access, in nanoseconds since 1970.
        mtime_ns: Last change of the content, likewise.
        version: Which stored version it replaces, as `version.identity_of` says; or empty.
        error: The error that prevented storing it.
        is_partial: Whether its writer had not closed it: it must not replace
            the stored version.
        replaces: Names of earlier records of the same file.
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
    is_partial: bool = False
    replaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnsavedFile:
    """A spill record.

    Attributes:
        directory: Its directory.
        about: The description of the file.
        staged: The number of unstored bytes.
    """

    directory: Path
    about: About
    staged: int = 0

    def exists(self) -> bool:
        """Return whether the record exists, complete or not."""
        return os.path.lexists(self.directory)

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return self.directory.name

    def pieces(self) -> list[Piece]:
        """Read and check the bytes.

        Raises:
            UnsavedError: They can't be read, or differ from what was spilled.
        """
        try:
            described = _read_about(self.directory)["pieces"]
            expected = sum(each["staged"] or 0 for each in described)
            with _open_private(self.directory / _BYTES) as file:
                size = os.fstat(file.fileno()).st_size
                if size != expected:
                    raise ValueError(f"{_BYTES} has {size} bytes instead of {expected}")  # noqa: TRY301 - one message for all flaws
                return [_read_piece(each, file.read(each["staged"] or 0)) for each in described]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnsavedError(f"{self.directory} can't be read: {error}") from error

    def remove(self) -> None:
        """Delete the record, durably; an error is ignored. See `delete`."""
        with contextlib.suppress(OSError):
            self.delete()

    def delete(self) -> None:
        """Delete the record, durably. After a crash it is either complete or no record.

        Raises:
            OSError: The record is still there.
        """
        (self.directory / _ABOUT).unlink(missing_ok=True)
        sync_directory(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)


def spill(state_dir: Path, about: About, pieces: Sequence[Piece]) -> UnsavedFile:
    """Write and sync a record; when this returns, it survives a power cut.

    Raises:
        OSError: It couldn't be written; nothing of it is left.
    """
    parent = state_dir / _FOLDER
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="", dir=parent))
    try:
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
        for each in (directory, parent, state_dir):
            sync_directory(each)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return UnsavedFile(directory, about, sum(piece["staged"] or 0 for piece in described))


def find_records(state_dir: Path) -> tuple[list[UnsavedFile], list[str]]:
    """Return the records, the oldest first, and a message for each that can't be used.

    Records that a later one replaces are left out.
    """
    found, flaws = _scan(state_dir)
    replaced = _replaced(found)
    return [each for each in found if each.name not in replaced], flaws


def sweep(state_dir: Path, obsolete: Collection[str]) -> None:
    """Delete the records that are `obsolete`, replaced by a later record, or incomplete.

    A killed process leaves incomplete records. Damaged records are kept. No other
    process may use the state directory meanwhile.
    """
    gone = {*obsolete, *_replaced(_scan(state_dir)[0])}
    for directory in _directories(state_dir):
        with contextlib.suppress(OSError):  # perhaps another user's
            if directory.name in gone or _is_incomplete(directory):
                UnsavedFile(directory, About("", 0)).remove()


def _scan(state_dir: Path) -> tuple[list[UnsavedFile], list[str]]:
    found, flaws = [], []
    known = {each.name for each in fields(About)}
    for directory in _directories(state_dir):
        try:
            _check_is_directory(directory)
            if not os.path.lexists(directory / _ABOUT):
                continue  # incomplete
            described = _read_about(directory)
            about = About(**{key: value for key, value in described.items() if key in known})
            staged = sum(piece["staged"] or 0 for piece in described["pieces"])
            found.append(UnsavedFile(directory, about, staged))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            flaws.append(f"{directory} is not a usable spill record: {error}")
    return found, flaws


def _replaced(records: Iterable[UnsavedFile]) -> set[str]:
    return {name for each in records for name in each.about.replaces}


def _directories(state_dir: Path) -> list[Path]:
    """Return the directories that may be records, the oldest first."""
    try:
        return sorted((state_dir / _FOLDER).iterdir(), key=_changed_at)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_incomplete(directory: Path) -> bool:
    """Return whether it is the incomplete record of a killed process, without other files."""
    if directory.is_symlink() or not directory.is_dir():
        return False
    return {each.name for each in directory.iterdir()} <= {_BYTES, f"{_ABOUT}.new"}


def _check_is_directory(directory: Path) -> None:
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise ValueError("it isn't a directory")
    if status.st_uid != os.geteuid():
        raise ValueError(f"it belongs to user {status.st_uid}")


def _read_about(directory: Path) -> dict[str, Any]:
    """Read and check the description in a record.

    Raises:
        ValueError, KeyError, TypeError: It is invalid.
        OSError: It can't be read.
    """
    with _open_private(directory / _ABOUT) as file:
        if os.fstat(file.fileno()).st_size > _MAX_ABOUT:
            raise ValueError(f"{_ABOUT} is too long")
        described = json.loads(file.read())
    if not isinstance(described, dict):
        raise TypeError(f"{_ABOUT} holds no object")
    described["replaces"] = tuple(described.get("replaces", ()))
    _check_about(described)
    return described


def _check_about(described: dict[str, Any]) -> None:
    _check_path(described["path"])
    pieces = described["pieces"]
    for number, piece in enumerate(pieces, 1):
        _check_piece(piece, is_last=number == len(pieces))
    if not pieces or described["size"] != sum(piece["length"] for piece in pieces):
        raise ValueError("the pieces don't make up the size")
    for key, allowed in (
        ("uid", _IDS), ("gid", _IDS), ("atime_ns", _TIMES), ("mtime_ns", _TIMES),
    ):  # fmt: skip
        _check_number(key, described[key], allowed)
    _check_number("mode", described["mode"], range(2**16))
    if not stat.S_ISREG(described["mode"]):
        raise ValueError("mode is not that of a file")
    for key in ("version", "error"):
        if not isinstance(described[key], str):
            raise TypeError(f"{key} is no text")
    if not isinstance(described.get("is_partial", False), bool):
        raise TypeError("is_partial is neither true nor false")
    if not all(isinstance(each, str) for each in described["replaces"]):
        raise TypeError("replaces is not a list of names")


def _check_path(path: object) -> None:
    if not isinstance(path, str) or "\0" in path or len(os.fsencode(path)) > _MAX_PATH:
        raise ValueError("the path is invalid")
    for name in path.split("/"):
        if name in {"", ".", ".."} or len(os.fsencode(name)) > _MAX_NAME:
            raise ValueError(f"the path has a part that is no name: {path[:100]!r}")


def _check_piece(piece: dict[str, Any], *, is_last: bool) -> None:
    length = _check_number("length", piece["length"], range(MAX_BLOCK_SIZE + 1))
    if length == 0 and not is_last:
        raise ValueError("a piece in the middle is empty")
    stored = _stored(piece)
    if stored.size > length:
        raise ValueError(f"the blocks have more bytes than their piece: {stored.size}")
    if not stored and piece["staged"] is not None:
        _check_number("staged", piece["staged"], range(length + 1))
        if not isinstance(piece["sha256"], str):
            raise TypeError("sha256 is not a string")


def _check_number(key: str, value: object, allowed: range) -> int:
    if type(value) is not int or value not in allowed:
        raise ValueError(f"{key} is {str(value)[:40]}, not from {allowed[0]} to {allowed[-1]}")
    return value


def _describe(piece: Piece, staged: memoryview | None) -> dict[str, Any]:
    return {
        "length": piece.length,
        "staged": None if staged is None else staged.nbytes,
        "sha256": None if staged is None else hashlib.sha256(staged).hexdigest(),
        "blocks": as_rows(piece.stored),
    }


def _stored(piece: dict[str, Any]) -> StoredBytes:
    """Return the ranges of a piece, also of a record that an older keepfs has written."""
    if "blocks" in piece:
        return from_rows(piece["blocks"])
    return from_rows([piece["receipt"]] if piece["receipt"] is not None else [])


def _read_piece(described: dict[str, Any], staged: bytes) -> Piece:
    if stored := _stored(described):
        return Piece(described["length"], stored)
    if described["staged"] is None:
        return Piece(described["length"])
    if hashlib.sha256(staged).hexdigest() != described["sha256"]:
        raise ValueError("the bytes aren't those that were spilled")
    return Piece(described["length"], staged=staged)


@contextlib.contextmanager
def _open_private(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file to read; refuse symlinks and files that could block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path.name} is no file")
        yield file


@contextlib.contextmanager
def _created(path: Path) -> Iterator[_Whole]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        yield _Whole(file)
        os.fsync(file.fileno())


class _Whole:
    """Writes all bytes of a buffer: one write to a raw file may write fewer."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401 - a raw file
        self._file = file

    def write(self, content: Buffer) -> None:
        view = memoryview(content)
        while view:
            view = view[self._file.write(view) :]


def _changed_at(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime_ns
    return 0
