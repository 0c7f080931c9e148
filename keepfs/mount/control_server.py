"""Control server: takes control requests on a socket of the mount, in threads.

These threads answer a request for the status without the event loop, so that a stuck loop
does not delay it. Other requests are carried out in the trio thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import socket
import threading
from typing import TYPE_CHECKING, Any

import trio

from keepfs.keep.counters import HistogramCounts
from keepfs.keep.threads import NoThreadError, Thread
from keepfs.messages import of_commands, of_running
from keepfs.mount.control_requests import MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keepfs.mount.figures import MountFigures

_log = logging.getLogger(__name__)

#: Most connections that wait to be accepted, and most that are served concurrently. Guessed.
_BACKLOG, _MOST_CONNECTIONS = 64, 64
#: Seconds that a connection may be idle: a client that hangs must not keep a thread for ever.
_IDLE = 600.0


class ControlServer:
    """Serves the control socket of a mount.

    Args:
        path: The path of the socket. A socket that a killed mount left is replaced.
        figures: Returns the figures of the mount; called in threads.
        carry_out: Answers any other request; called in the trio thread.
        token: The token of the running event loop.
    """

    def __init__(
        self,
        path: Path,
        figures: Callable[[], MountFigures],
        carry_out: Callable[[dict[str, Any]], dict[str, Any]],
        token: trio.lowlevel.TrioToken,
    ) -> None:
        self._path = path
        self._figures = figures
        self._carry_out = carry_out
        self._token = token
        self._places = threading.Semaphore(_MOST_CONNECTIONS)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Serve until exit; if the socket or the thread can't be created, log the reason."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            listener.bind(str(self._path))
            self._path.chmod(0o600)  # its directory is closed to others in any case
            listener.listen(_BACKLOG)
            Thread(
                target=self._accept, args=(listener,), name="keepfs control", daemon=True
            ).start()
        except (OSError, RuntimeError) as error:  # a path of more than 107 bytes, for one
            _log.warning(
                "%s",
                of_running.NO_CONTROL_SOCKET(
                    path=self._path, reason=getattr(error, "strerror", None) or error
                ),
            )
        try:
            yield
        finally:
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # ends `accept`
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            self._places.acquire()
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if listener.fileno() < 0 or not self._path.exists():
                    return
                _log.warning("%s", of_running.CONTROL_REQUEST_LOST(reason=error))
                self._places.release()
                threading.Event().wait(1.0)  # out of descriptors, most likely
                continue
            try:
                Thread(
                    target=self._serve, args=(connection,), name="keepfs request", daemon=True
                ).start()
            except NoThreadError as error:
                self._places.release()
                connection.close()
                _log.warning("%s", of_running.CONTROL_REQUEST_LOST(reason=error))

    def _serve(self, connection: socket.socket) -> None:
        """Answer one connection, until the other side ends it."""
        try:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_IDLE)
                with connection.makefile("rb") as lines:
                    while (line := lines.readline(MOST_BYTES)).endswith(b"\n"):
                        connection.sendall(json.dumps(self._answer(line)).encode() + b"\n")
        finally:
            self._places.release()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if request.get("do") == "status":
                return {"status": as_json(self._figures())}
        except (ValueError, AttributeError) as error:
            return {"error": f"a request that is none: {error}"}
        except Exception:  # noqa: BLE001 - the caller waits for an answer
            _log.exception("%s", of_commands.UNEXPECTED(what="reading the figures of the mount"))
            return {"error": "the figures can't be read: see the log of the mount"}
        try:
            answer: dict[str, Any] = trio.from_thread.run_sync(
                self._carry_out, request, trio_token=self._token
            )
        except trio.RunFinishedError:
            return {"error": "the mount has ended"}
        return answer


def as_json(value: object) -> Any:  # noqa: ANN401 - JSON
    """Convert figures to the types of JSON: objects, arrays, texts, numbers and null.

    A histogram becomes an object of `count`, and of `total`, `mean`, `median` and `p99` in
    seconds. The last two are upper bounds of buckets; null above the last bound.
    """
    if isinstance(value, HistogramCounts):
        found = {"count": value.number, "total": value.total, "mean": value.mean}
        for name, fraction in (("median", 0.5), ("p99", 0.99)):
            bound = value.quantile(fraction)
            found[name] = None if bound == float("inf") else bound  # type: ignore[assignment] # null
        return found
    if dataclasses.is_dataclass(value):
        return {
            each.name: as_json(getattr(value, each.name)) for each in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {key: as_json(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [as_json(each) for each in value]
    return value
