"""Control: carries out the requests of other processes of the user that concern upload/.

`control_requests` defines the format of requests; `control_server` receives them. For the
trio thread only.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
from typing import TYPE_CHECKING, Any

from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import Metadata, file_mode
from keepfs.fs.upload.directory import UploadDirectory, UploadNode
from keepfs.fs.upload.file import MAX_FILE_SIZE, UploadFile
from keepfs.fs.upload.stored import MOST_RANGES, StoredBytes, checked_range
from keepfs.keep.locator import EMPTY_BLOCK, KeepLocator
from keepfs.keep.store import Receipt
from keepfs.messages import of_commands
from keepfs.mount.control_requests import MOST_NAMES

if TYPE_CHECKING:
    from keepfs.fs.upload.drain import Drain

_log = logging.getLogger(__name__)


class Control:
    """Carries out control requests that concern upload/.

    Args:
        upload: The directory upload/ of the mount.
        drain: Once it has begun, changes are refused.
        is_read_only: Whether changes are refused.
    """

    def __init__(self, upload: UploadDirectory, drain: Drain, *, is_read_only: bool) -> None:
        self._upload = upload
        self._drain = drain
        self._is_read_only = is_read_only

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out a request; return the answer, with `error` after a failure. Never raises."""
        try:
            return self._carried_out(request)
        except (ValueError, TypeError, KeyError) as error:
            return {"error": f"a request that is none: {type(error).__name__}: {error}"}
        except RefusedError as error:
            return {"error": os.strerror(error.errno)}
        except OSError as error:
            return {"error": error.strerror or str(error)}
        except Exception:  # noqa: BLE001 - it must not end the mount
            _log.exception("%s", of_commands.UNEXPECTED(what="a control request"))
            return {"error": "the request failed unexpectedly: see the log of the mount"}

    def _carried_out(self, request: dict[str, Any]) -> dict[str, Any]:
        """Handle one request; return the answer."""
        if request["do"] == "unstored":
            return {"paths": self._unstored(request["path"])}
        if request["do"] != "add_stored":
            return {"error": f"the mount knows no request {request['do']!r}"}
        if self._drain.has_begun:
            return {"error": "the mount ends"}
        if self._is_read_only:
            return {"error": "the mount is read-only"}
        self._add_stored(request["directory"], request["files"])
        return {}

    def _add_stored(self, path: str, files: list[list[Any]]) -> None:
        directory = self._directory(path)
        added = {}
        blocks: dict[str, Receipt] = {}
        for name, mode, mtime_ns, ranges in files:
            _check_entry_name(name)
            stored = _stored(ranges, blocks)
            if stored.size > MAX_FILE_SIZE or len(stored) > MOST_RANGES:
                raise ValueError(f"{name!r}: it is too long")
            metadata = Metadata(file_mode(stat.S_IMODE(mode) & 0o777), 0, 0, mtime_ns)
            added[name] = (metadata, stored)
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


def _stored(ranges: list[list[Any]], blocks: dict[str, Receipt]) -> StoredBytes:
    """Return where the bytes of a file are.

    Args:
        ranges: Locator, offset and length of each range; none for an empty file.
        blocks: The receipts of the blocks, by locator; new ones are added.
    """
    found = []
    for locator, offset, length in ranges or [[str(EMPTY_BLOCK), 0, 0]]:
        receipt = blocks.get(locator)
        if receipt is None:
            # The mount has confirmed no copies: another client stored the block.
            receipt = blocks[locator] = Receipt(KeepLocator(locator), 0, ())
        found.append(checked_range(receipt, offset, length))
    return StoredBytes(found)


def _check_entry_name(name: object) -> None:
    """Check that a name is valid for an entry of a directory.

    Raises:
        ValueError: It isn't.
    """
    if not isinstance(name, str) or name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is no name")
