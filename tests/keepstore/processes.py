"""Test servers in processes of their own, steered from the test.

A process has one end of a socket pair; calls go to it as pickles, and each
runs in a thread of its own there, so a waiting call holds up no other. When
the test's end closes, for whatever reason, the process ends.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tests.keepstore.controls import Controls

_Controls = TypeVar("_Controls", bound="Controls")

_ROOT = Path(__file__).parents[2]
# Seconds a process may take to end before it is killed.
_PATIENCE = 10.0


def start_process(kind: type[_Controls], **arguments: Any) -> _Controls:  # noqa: ANN401 - those of `kind`
    """Start a server in a process of its own, and wait until it listens.

    Returns:
        What has the methods of `kind`, each of which is called over there; use
        it as a context manager, or call `stop`.
    """
    return cast("_Controls", _Remote(kind, arguments))


class _Remote:
    """Stands for the controls of a server in another process."""

    def __init__(self, kind: type[Controls], arguments: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.keepstore", "--control", str(theirs.fileno())],
                cwd=_ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._pipe = Connection(ours.detach())
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._results: dict[int, queue.SimpleQueue[tuple[bool, Any]]] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        try:
            self._pipe.send((kind, arguments))
            self.url, self.host, self.port = self._pipe.recv()
        except BaseException:
            self._end()
            raise
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process, to measure it."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments: object, **named: object) -> object:
            return self._call(name, arguments, named)

        return call

    def stop(self) -> None:
        """End the server and its process; raises what the server's `stop` raises."""
        if self._process.poll() is not None:
            self._end()
            return
        try:
            self._call("stop", (), {})
        finally:
            self._end()

    def _call(self, name: str, arguments: tuple[object, ...], named: dict[str, object]) -> object:
        number = next(self._numbers)
        result = self._results[number] = queue.SimpleQueue()
        with self._sending:
            self._pipe.send((number, name, arguments, named))
        is_good, value = result.get()
        if is_good:
            return value
        raise value

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, is_good, value = self._pipe.recv()
                self._results.pop(number).put((is_good, value))
        for result in list(self._results.values()):
            result.put((False, ConnectionError("the test server's process has ended")))

    def _end(self) -> None:
        # Shut down first: closing alone wouldn't wake the thread that reads.
        with contextlib.suppress(OSError), socket.socket(fileno=self._pipe.fileno()) as end:
            end.shutdown(socket.SHUT_RDWR)
            end.detach()
        if self._reader.is_alive():
            self._reader.join()
        self._pipe.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve_controls(descriptor: int) -> None:
    """Be the process at the other end, until that one closes.

    Args:
        descriptor: Of this process's end of the socket pair.
    """
    pipe = Connection(descriptor)
    sending = threading.Lock()
    kind, arguments = pipe.recv()
    controls = kind(**arguments)
    pipe.send((controls.url, controls.host, controls.port))

    def call(number: int, name: str, values: tuple[object, ...], named: dict[str, object]) -> None:
        try:
            is_good, result = True, getattr(controls, name)(*values, **named)
        except Exception as error:  # noqa: BLE001 - raised where the call was made
            is_good, result = False, error
        with sending, contextlib.suppress(OSError):
            pipe.send((number, is_good, result))

    try:
        while True:
            threading.Thread(target=call, args=pipe.recv(), daemon=True).start()
    except (EOFError, OSError):
        controls.stop()
