"""Control requests: requests of the user's other processes to a running mount.

A request is one line of JSON on the mount's control socket, its answer another:

    {"do": "add_stored", "directory": PATH, "files": [[NAME, MODE, MTIME_NS, [RANGE, ...]], ...]}
    {}
    {"do": "unstored", "path": PATH}
    {"paths": [PATH, ...]}
    {"do": "status"}
    {"status": {...}}                 the fields of `figures.MountFigures`

An answer may be {"error": TEXT} instead. PATH is below upload/, empty for upload/ itself. RANGE
is [LOCATOR, OFFSET, LENGTH], as in a manifest. Names and paths are as `os.fsdecode` returns them.
"""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

from keepfs.messages import of_running
from keepfs.messages.message import MessageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from keepfs.collections.manifest import Range

#: Most bytes of a request or an answer. The request for a file of 65,536 signed ranges fits.
MOST_BYTES = 16 * 1024 * 1024
#: Most paths in an answer.
MOST_NAMES = 2000
#: Seconds that an answer may take; a mount that takes longer counts as hung. Guessed.
_TIMEOUT = 60.0


class ControlError(MessageError):
    """A mount refused a control request, or failed at it; the message is one line."""


class ControlConnection:
    """A connection to a running mount, for one thread; a context manager that closes it.

    Args:
        path: The control socket.
        patience: Seconds that each answer may take.

    Raises:
        ControlError: No mount listens there.
    """

    def __init__(self, path: Path, patience: float = _TIMEOUT) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(patience)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ControlError(of_running.NO_CONTROL(reason=error.strerror or error)) from error
        self._answers = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._answers.close()
        self._socket.close()

    def add_stored(
        self, directory: str, files: Iterable[tuple[str, int, int, list[Range]]]
    ) -> None:
        """Add files with stored bytes to a directory of upload/: all of them or none. Blocks.

        Args:
            directory: Its path below upload/.
            files: (name, permissions, mtime in nanoseconds since 1970, ranges) of each.

        Raises:
            ControlError: The mount refused, or did not answer.
        """
        self._ask({"do": "add_stored", "directory": directory, "files": list(files)})

    def unstored(self, path: str) -> list[str]:
        """Return the paths of files whose latest changes are not stored. Blocks.

        Args:
            path: The path of a file or directory, relative to upload/.

        Returns:
            Paths below upload/; `MOST_NAMES` at most.

        Raises:
            ControlError: The mount refused, or did not answer.
        """
        return list(self._ask({"do": "unstored", "path": path}).get("paths", ()))

    def status(self) -> dict[str, Any]:
        """Return the figures of the mount, decoded from JSON. Blocks.

        Raises:
            ControlError: The mount did not answer, or is of an older version.
        """
        status = self._ask({"do": "status"}).get("status")
        if not isinstance(status, dict):
            raise ControlError(
                of_running.CONTROL_UNANSWERED(reason="there is no status in its answer")
            )
        return status

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(self._answers.readline(MOST_BYTES))
        except (OSError, ValueError) as error:
            raise ControlError(of_running.CONTROL_UNANSWERED(reason=error)) from error
        if not isinstance(answer, dict) or "error" in answer:
            raise ControlError(
                of_running.CONTROL_REFUSED(
                    reason=answer["error"] if isinstance(answer, dict) else answer
                )
            )
        return answer
