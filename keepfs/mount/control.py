"""Control: a mount answers requests of other processes of its user, on a socket of its own.

`control_requests` says what they look like. For the trio thread only.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import stat
from typing import TYPE_CHECKING, Any

import trio

from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import Metadata, file_mode
from keepfs.fs.upload.directory import UploadDirectory, UploadNode
from keepfs.fs.upload.file import UploadFile
from keepfs.fs.upload.version import is_whole
from keepfs.keep.locator import MAX_BLOCK_SIZE, KeepLocator
from keepfs.keep.store import Receipt
from keepfs.mount.control_requests import MOST_BYTES, MOST_NAMES

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

#: Connections that wait to be accepted, and bytes received at once.
_BACKLOG, _AT_ONCE = 8, 64 * 1024


class Control:
    """Answers control requests.

    Args:
        path: Of the socket; one that a killed mount left is replaced.
        upload: What is changed.
        is_read_only: Whether changes are refused.
    """

    def __init__(self, path: Path, upload: UploadDirectory, *, is_read_only: bool) -> None:
        self._path = path
        self._upload = upload
        self._is_read_only = is_read_only

    async def run(self) -> None:
        """Listen and answer, until cancelled; without a socket, log why and return."""
        with trio.socket.socket(trio.socket.AF_UNIX) as listener:
            try:
                self._path.unlink(missing_ok=True)
                await listener.bind(str(self._path))
                self._path.chmod(0o600)  # its directory is closed to others in any case
                listener.listen(_BACKLOG)
            except OSError as error:  # a path of more than 107 bytes, for one
                _log.warning(
                    "keepfs commit, manifest and import will not work here: no socket %s: %s",
                    self._path,
                    error.strerror or error,
                )
                return
            try:
                async with trio.open_nursery() as nursery:
                    while True:
                        connection, _ = await listener.accept()
                        nursery.start_soon(self._serve, trio.SocketStream(connection))
            finally:
                self._path.unlink(missing_ok=True)

    async def _serve(self, stream: trio.SocketStream) -> None:
        """Answer one connection, until the other side ends it."""
        received = bytearray()
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                while len(received) <= MOST_BYTES:
                    piece = await stream.receive_some(_AT_ONCE)
                    if not piece:
                        return
                    received += piece
                    if piece.endswith(b"\n"):
                        answer = self._answer(bytes(received))
                        received.clear()
                        await stream.send_all(json.dumps(answer).encode() + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return self._carried_out(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            return {"error": f"a request that is none: {type(error).__name__}: {error}"}
        except RefusedError as error:
            return {"error": os.strerror(error.errno)}
        except OSError as error:
            return {"error": error.strerror or str(error)}
        except Exception:  # noqa: BLE001 - it must not end the other connections
            _log.exception("a control request failed unexpectedly")
            return {"error": "the request failed unexpectedly: see the log of the mount"}

    def _carried_out(self, request: dict[str, Any]) -> dict[str, Any]:
        """Handle one request; return the answer."""
        if request["do"] == "unstored":
            return {"paths": self._unstored(request["path"])}
        if request["do"] != "add_files":
            return {"error": f"the mount knows no request {request['do']!r}"}
        if self._is_read_only:
            return {"error": "the mount is read-only"}
        self._add_files(request["directory"], request["files"])
        return {}

    def _add_files(self, path: str, files: list[list[Any]]) -> None:
        directory = self._directory(path)
        added = {}
        for name, mode, mtime_ns, locators in files:
            _check_entry_name(name)
            receipts = [Receipt(KeepLocator(each), 0, ()) for each in locators]
            is_sized = all(each.locator.size is not None for each in receipts)
            if (
                not receipts
                or not is_sized
                or not is_whole(receipts, len(receipts), MAX_BLOCK_SIZE)
            ):
                raise ValueError(f"{name!r}: all blocks but the last must be full")
            metadata = Metadata(file_mode(stat.S_IMODE(mode) & 0o777), 0, 0, mtime_ns)
            added[name] = (metadata, receipts)
        directory.add_stored(added)

    def _unstored(self, path: str) -> list[str]:
        """Return paths of files that are not stored."""
        node = self._node(path)
        files = node.files() if isinstance(node, UploadDirectory) else (node,)
        unstored = (
            file.path
            for file in files
            if isinstance(file, UploadFile) and file.has_unstored_changes
        )
        return list(itertools.islice(unstored, MOST_NAMES))

    def _directory(self, path: str) -> UploadDirectory:
        """Return a directory of upload/.

        Raises:
            RefusedError: ENOENT; ENOTDIR.
        """
        directory = self._node(path)
        if not isinstance(directory, UploadDirectory):
            raise RefusedError(errno.ENOTDIR)
        return directory

    def _node(self, path: str) -> UploadNode:
        """Return a node of upload/.

        Raises:
            RefusedError: ENOENT; ENOTDIR.
        """
        node: UploadNode = self._upload
        for name in path.split("/") if path else ():
            if not isinstance(node, UploadDirectory):
                raise RefusedError(errno.ENOTDIR)
            found = node.entry_nowait(name)
            if found is None:
                raise RefusedError(errno.ENOENT)
            node = found
        return node


def _check_entry_name(name: object) -> None:
    """See that a name can be one.

    Raises:
        ValueError: It can't.
    """
    if not isinstance(name, str) or name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is no name")
