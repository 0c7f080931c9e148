"""Session sockets: the sockets of a user's session, limited by the pace of their thread.

Such a session makes its connections inside urllib3, which has no argument for a pace.
The connections of keepfs get theirs as an argument (`keepfs.keep.http.wire`).
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
    """Apply a pace to the `PacedSocket`s that this thread uses in the body."""
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
    """A connected socket of a user's session, limited by the pace of the thread that uses it.

    Outside `pacing` it behaves as the wrapped socket.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the socket has
        return getattr(self._socket, name)

    def fileno(self) -> int:
        """Return the descriptor, for `select` and `poll`."""
        return self._socket.fileno()

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """Send all bytes, without a copy. Blocks; raises as `send_all`."""
        send_all(self._socket, data, _current_pace(), flags)

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        """Return the file that http.client reads the answer from."""
        # This file keeps the socket open until the answer is read, even if the connection
        # was closed.
        held = self._socket.makefile("rb", buffering=0)
        return io.BufferedReader(_SessionReader(self._socket, held))


class _SessionReader(PacedReader):
    """The receiving half, limited by the pace of the current thread."""

    def __init__(self, connected: socket.socket, held: io.RawIOBase) -> None:
        super().__init__(connected, _current_pace())
        self._held = held

    def readinto(self, buffer: Buffer) -> int | None:
        # Do not read from `_held`: after a timeout it can't be read.
        self._pace = _current_pace()
        return super().readinto(buffer)

    def close(self) -> None:
        # urllib3 returns a connection to its pool as soon as its answer is closed.
        self._pace = _current_pace()
        self._held.close()
        super().close()


class _Connectable(Protocol):
    sock: Any

    def connect(self) -> None: ...


@functools.cache
def paced_connections(pool_class: Any) -> type[HTTPConnectionPool]:  # noqa: ANN401 - a class; its stubs hide the hash
    """Return a subclass of a urllib3 pool whose connections have `PacedSocket`s."""
    if hasattr(pool_class, "_keepfs_paced"):
        return cast("type[HTTPConnectionPool]", pool_class)
    plain = cast("type[_Connectable]", pool_class.ConnectionCls)

    def connect(self: _Connectable) -> None:
        plain.connect(self)
        self.sock = PacedSocket(self.sock)

    connection_class = type(plain.__name__, (plain,), {"connect": connect})
    members = {"ConnectionCls": connection_class, "_keepfs_paced": True}
    return type(pool_class.__name__, (pool_class,), members)
