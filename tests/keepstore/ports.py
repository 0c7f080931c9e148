"""Ports of 127.0.0.1: some behind which nobody is, and the connections to one."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from tests.keepstore.server import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """Keep a port on which connections are refused."""
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        yield bound.getsockname()[1]


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """Keep a port on which connecting never ends, as if packets were lost."""
    with contextlib.ExitStack() as exits:
        listener = exits.enter_context(socket.socket())
        listener.bind((HOST, 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        # A queue of length 0 has room for one; what comes after isn't answered.
        for _ in range(3):
            filler = exits.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex((HOST, port))
        yield port


def connections_to(port: int) -> int:
    """Return the number of open connections to a port, of all processes."""
    established = "01"
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(
        state == established and int(remote.partition(":")[2], 16) == port
        for _, _, remote, state, *_ in lines
    )
