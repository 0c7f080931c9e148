"""What was on the volumes before each recording, and which other clients were at work.

Most recordings need no more than the block they ask for; `OVERRIDES` names
the others.
"""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from tests.keepstore.clock import SECOND
from tests.keepstore.controls import Controls, KeepstoreControls, Listening
from tests.keepstore.recordings import Recording, known_blocks, recordings
from tests.keepstore.server import HOST

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable

    from tests.keepstore.certificates import Certificate

#: Early answers end their connections sooner than Go's half second.
LISTENING = Listening(linger=0.05)


@dataclass(slots=True)
class World:
    """The servers of one replay.

    Attributes:
        server: The one that is asked.
        stores: The keepstores, first the one asked if it is one.
        replace: Texts of the recorded request and what stands for them here.
        restore: Texts of our answer and what the recording has for them.
        meanwhile: What others do while the request waits.
    """

    recording: Recording
    certificate: Certificate
    exits: contextlib.ExitStack
    server: Controls
    stores: list[KeepstoreControls] = field(default_factory=list)
    replace: list[tuple[str, str]] = field(default_factory=list)
    restore: list[tuple[str, str]] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None


def time_of(recording: Recording) -> int:
    """Return when a recording was made, in nanoseconds since 1970."""
    # The quarter of a second makes a fraction in the TTL visible.
    date = recording.header("Date")
    if date is None:
        return 1_795_329_000 * SECOND
    return int(parsedate_to_datetime(date).timestamp()) * SECOND + SECOND // 4


def place_expected(world: World) -> None:
    """Place the block that is asked for, unless the recording says it wasn't there."""
    recording = world.recording
    # The body of a HEAD isn't recorded, but that of the GET before is.
    shown = recordings()["index-root"] if recording.name == "index-head" else recording
    lines = re.findall(r"([0-9a-f]{32})\+(\d+) (\d+)\n", shown.answer_text)
    if lines:
        _place_listed(world, lines)
    elif recording.status != 404 and recording.method != "PUT":
        _place(world)


def _place_listed(world: World, lines: list[tuple[str, str, str]]) -> None:
    # The proxy shows the blocks of one store after those of the other.
    number = 0
    seen: set[str] = set()
    for digest, size, mtime in lines:
        if digest in seen:
            number, seen = 1, set()
        seen.add(digest)
        store = world.stores[number]
        store.store_block(bytes(int(size)), digest=digest, mtime=int(mtime))


def _place(world: World, content: bytes | None = None, volume: int = 0) -> None:
    digest = world.recording.digest
    block = known_blocks().get(digest) if content is None else content
    if block is None:
        return
    # Of a remote block, the remote cluster has it.
    is_remote = "+R" in world.recording.target and len(world.stores) > 1
    stores = world.stores[1:] if is_remote else world.stores
    for store in stores:
        store.store_block(block, digest=digest, volume=volume)


def _with(content: bytes) -> Callable[[World], None]:
    return lambda world: _place(world, content)


def _flipped(block: bytes, position: int) -> bytes:
    spoilt = bytearray(block)
    spoilt[position] ^= 1
    return bytes(spoilt)


def _place_directory(world: World) -> None:
    world.stores[0].place_directory(world.recording.digest)


def _place_and_remove(world: World) -> None:
    _place(world, b"file gone")
    world.stores[0].remove_block(world.recording.digest)


def _old(world: World) -> None:
    _aged(world, 10)


def _aged(world: World, seconds: int) -> str:
    digest = re.findall(r"[0-9a-f]{32}", world.recording.target)[0]
    mtime = time_of(world.recording) - seconds * SECOND
    world.stores[0].store_block(known_blocks()[digest], digest=digest, mtime=mtime)
    return str(digest)


def _trashed(world: World) -> None:
    world.stores[0].trash(_aged(world, 10))


def _trashed_long_ago(world: World) -> None:
    now = time_of(world.recording)
    world.stores[0].set_clock(now - 8 * SECOND)
    _trashed(world)
    world.stores[0].set_clock(now)


def _trashed_and_live(world: World) -> None:
    _trashed(world)
    _aged(world, 1)


def _as_listed(world: World, shift: int = 0) -> None:
    [wish] = json.loads(world.recording.body or b"")
    digest = wish["locator"][:32]
    mtime = wish["block_mtime"] + shift
    world.stores[0].store_block(known_blocks()[digest], digest=digest, mtime=mtime)


def _as_listed_wrongly(world: World) -> None:
    _as_listed(world, 1)


def _another_store(world: World) -> None:
    other = world.exits.enter_context(KeepstoreControls(listening=LISTENING))
    other.store_block(b"pull me over 2b57ac")
    world.replace.append((f"{HOST}:26101", other.host))


def _read_only_copy(world: World) -> None:
    _place(world, volume=1)


# --- other clients --------------------------------------------------------------


def _open_put(world: World) -> socket.socket:
    # An unfinished PUT of one byte.
    stream = socket.create_connection((HOST, world.server.port))
    world.exits.callback(stream.close)
    stream.sendall(b"PUT /0cc175b9c0f1b6a831c399e269772661 HTTP/1.1\r\nContent-Length: 1\r\n\r\n")
    world.stores[0].wait_slots_taken(1)
    world.stores[0].wait_buffers_taken(1)
    return stream


def _busy(world: World) -> None:
    place_expected(world)
    _open_put(world)


def _busy_for_a_while(world: World) -> None:
    place_expected(world)
    other = _open_put(world)

    def finish() -> None:
        world.stores[0].wait_slots_queued(1)
        other.sendall(b"a")

    world.meanwhile = finish


def _busy_and_queued(world: World) -> None:
    _busy(world)
    stream = socket.create_connection((HOST, world.server.port))
    world.exits.callback(stream.close)
    stream.sendall(b"GET / HTTP/1.1\r\n\r\n")
    world.stores[0].wait_slots_queued(1)


def _buffer_taken_for_a_while(world: World) -> None:
    place_expected(world)
    other = _open_put(world)

    def finish() -> None:
        world.stores[0].wait_buffers_queued(1)
        other.sendall(b"a")

    world.meanwhile = finish


_COUNTING = bytes(range(256)) * 1024
_OTHER_22 = _with(b"other bytes, same size")
_SHORT = _with(b"short")
_LONG = _with(b"21 bytes, 3 too many.")
_NONE = _with(b"")
_FIRST_FLIPPED = _with(_flipped(_COUNTING, 0))
_LAST_FLIPPED = _with(_flipped(_COUNTING, -1))
_OVERSIZE = _with(bytes((1 << 26) + 1))

#: How to make the state before these recordings.
OVERRIDES: dict[str, Callable[[World], None]] = {
    "get-corrupt-small": _OTHER_22,
    "get-corrupt-small-after-put": _OTHER_22,
    "head-corrupt-small": _OTHER_22,
    "head-corrupt-small-no-size": _OTHER_22,
    "put-over-corrupt": _OTHER_22,
    "get-truncated-on-disk": _SHORT,
    "head-truncated-on-disk": _SHORT,
    "put-over-truncated": _SHORT,
    "get-lengthened-on-disk": _LONG,
    "head-lengthened-on-disk": _LONG,
    "get-emptied-on-disk": _NONE,
    "head-emptied-on-disk": _NONE,
    "put-over-emptied": _NONE,
    "get-corrupt-256KiB-first-byte": _FIRST_FLIPPED,
    "head-corrupt-256KiB": _FIRST_FLIPPED,
    "get-corrupt-256KiB-last-byte": _LAST_FLIPPED,
    "get-lengthened-256KiB": _with(_COUNTING + bytes(70000)),
    "get-truncated-256KiB": _with(_COUNTING[:200000]),
    "get-corrupt-64KiB-exact": _with(_flipped(bytes(65536), 5)),
    "get-corrupt-65537": _with(_flipped(bytes(65537), 5)),
    "get-file-deleted": _place_and_remove,
    "get-file-is-directory": _place_directory,
    "put-file-is-directory": _place_directory,
    "get-oversize-on-disk": _OVERSIZE,
    "put-over-oversize": _OVERSIZE,
    "full-put-existing": _place,
    "readonly-put-existing": _place,
    "oneway-put": _read_only_copy,
    "twovol-replicas-2-again": _place,
    "pull-list-one": _another_store,
    "gc-delete-old": _old,
    "gc0-delete-old": _old,
    "gc7-delete-old": _old,
    "gc-get-trashed": _trashed,
    "gc-head-trashed": _trashed,
    "gc-get-deleted": _trashed,
    "gc-index-trashed": _trashed,
    "gc-touch-trashed": _trashed,
    "gc-untrash": _trashed,
    "gc-untrash-again": _old,
    "gc-untrash-over-live": _trashed_and_live,
    "gc-put-again": _trashed,
    "gc0-untrash": _trashed,
    "gc7-untrash-late": _trashed_long_ago,
    "gc-trash-list": _as_listed,
    "gc-trash-list-wrong-mtime": _as_listed_wrongly,
    "busy-get": _busy,
    "busy-head": _busy,
    "busy-health": _busy,
    "busy-put": _busy,
    "busy-put-expect": _busy,
    "busy-put-64MiB": _busy,
    "busy-put-64MiB-expect": _busy,
    "queue-first": _busy_for_a_while,
    "queue-second": _busy_and_queued,
    "buffers-get-waits": _buffer_taken_for_a_while,
    "deadline-get": _busy,
    "deadline-put": _busy,
    "deadline-put-expect": _busy,
    "proxy-get-corrupt": _with(b"13 bytes more"),
    "proxy-head-corrupt": _with(b"13 bytes more"),
    "proxy-put-over-corrupt": _with(b"13 bytes more"),
    "proxy-get-corrupt-256KiB": _LAST_FLIPPED,
}
