"""The sockets of a user's session: they keep the pace of the thread that uses them.

Such a session makes connections deep inside urllib3, which has no argument for a pace.
Connections of our own get theirs as an argument (`keepfs.keep.http.wire`).
"""

from __future__ import annotations

import contextlib
import functools
import io
import threading
from typing import TYPE_CHECKING, Any, Protocol, cast

from keepfs.keep.http.pace import PacedReader, send_all

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from typing_extensions import Buffer
    from urllib3.connectionpool import HTTPConnectionPool

    from keepfs.keep.http.pace import Pace

_current = threading.local()


@contextlib.contextmanager
def pacing(pace: Pace | None) -> Iterator[None]:
    """Let the `PacedSocket`s that this thread uses inside keep a pace."""
    _current.pace = pace
    try:
        yield
    finally:
        _current.pace = None
        if pace is not None:
            pace.detach()


def _current_pace() -> Pace | None:
    pace: Pace | None = getattr(_current, "pace", None)
    return pace


class PacedSocket:
    """A connected socket of a user's session, which keeps the pace of the thread that uses it.

    Outside `pacing` it is the socket it wraps.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the socket has
        return getattr(self._socket, name)

    def fileno(self) -> int:
        """Return the descriptor; what `select` and `poll` ask for."""
        return self._socket.fileno()

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """Send everything, without a copy."""
        send_all(self._socket, data, _current_pace(), flags)

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        """Return what http.client reads the answer from."""
        # It holds the socket open until the answer is read, though the connection may
        # have been closed.
        held = self._socket.makefile("rb", buffering=0)
        return io.BufferedReader(_SessionReader(self._socket, held))


class _SessionReader(PacedReader):
    """The receiving half, at the pace of the thread that uses it at the time."""

    def __init__(self, connected: socket.socket, held: io.RawIOBase) -> None:
        super().__init__(connected, _current_pace())
        self._held = held

    def readinto(self, buffer: Buffer) -> int | None:
        # Not by `_held`, which can't be read any more after a timeout.
        self._pace = _current_pace()
        return super().readinto(buffer)

    def close(self) -> None:
        # urllib3 gives a connection to others as soon as its answer is closed.
        self._pace = _current_pace()
        self._held.close()
        super().close()


class _Connectable(Protocol):
    sock: Any

    def connect(self) -> None: ...


@functools.cache
def paced_connections(pool_class: Any) -> type[HTTPConnectionPool]:  # noqa: ANN401 - a class; its stubs hide that it hashes
    """Derive a pool of urllib3 whose connections keep to the pace of the thread that uses them."""
    if hasattr(pool_class, "_keepfs_paced"):
        return cast("type[HTTPConnectionPool]", pool_class)
    plain = cast("type[_Connectable]", pool_class.ConnectionCls)

    def connect(self: _Connectable) -> None:
        plain.connect(self)
        self.sock = PacedSocket(self.sock)

    connection_class = type(plain.__name__, (plain,), {"connect": connect})
    members = {"ConnectionCls": connection_class, "_keepfs_paced": True}
    return type(pool_class.__name__, (pool_class,), members)
