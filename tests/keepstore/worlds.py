"""The servers as they were before each recording.

The configuration words of a recording choose settings and volumes; its name,
where need be, the blocks that are there and the other clients at work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from tests.keepstore.apiserver import ApiSettings, ServiceEntry
from tests.keepstore.clock import SECOND
from tests.keepstore.controls import (
    ApiControls,
    Controls,
    KeepproxyControls,
    KeepstoreControls,
    Listening,
)
from tests.keepstore.keepproxy import ProxySettings, Store
from tests.keepstore.keepstore import TEST_TOKEN, Settings
from tests.keepstore.locators import Signer, salted
from tests.keepstore.ports import refusing_port
from tests.keepstore.recordings import Recording, known_blocks, recordings
from tests.keepstore.server import HOST
from tests.keepstore.volumes import Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.keepstore.certificates import Certificate

# Early answers end their connections sooner than Go's half second.
_LISTENING = Listening(linger=0.05)
# The volume's directory and machine are left out of the recordings; with these
# the lengths are right.
_ROOT = "/volume-root-of-length-26/"
_SHORT_ROOT = _ROOT[:22] + "/"
_MACHINE = "vm"
# The key of the second cluster isn't recorded.
_REMOTE_KEY = "the key of cluster yyyyy"
_REMOTE_TTL = 604800.0


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


@contextlib.contextmanager
def world_of(recording: Recording, certificate: Certificate) -> Iterator[World]:
    """Set up the servers of a recording, and end them."""
    with contextlib.ExitStack() as exits:
        if recording.kind == "keepproxy":
            world = _proxy_world(recording, certificate, exits)
        else:
            world = _store_world(recording, certificate, exits)
        if name := _OVERRIDES.get(recording.name):
            name(world)
        else:
            _place_expected(world)
        yield world


def _time_of(recording: Recording) -> int:
    # The quarter of a second makes a fraction in the TTL visible.
    date = recording.header("Date")
    if date is None:
        return 1_795_329_000 * SECOND
    return int(parsedate_to_datetime(date).timestamp()) * SECOND + SECOND // 4


# --- settings by configuration words ------------------------------------------

_SETTINGS: dict[str, dict[str, Any]] = {
    "BlobSigning false but BlobSigningKey set": {"signing": False},
    "BlobSigning false and no BlobSigningKey": {"signing": False, "key": ""},
    "BlobSigningTTL 90m30.7s": {"ttl": 5430.7},
    "BlobSigningTTL 3s": {"ttl": 3.0},
    "BlobTrashLifetime 1h": {"trash_lifetime": 3600.0},
    "BlobTrashLifetime 0": {"trash_lifetime": 0.0},
    "BlobTrashLifetime 4s": {"trash_lifetime": 4.0},
    "BlobTrash false": {"trash": False},
    "MaxConcurrentRequests 1": {"max_requests": 1},
    "MaxQueuedRequests 0": {"max_queued": 0},
    "MaxQueuedRequests 1": {"max_queued": 1},
    "MaxKeepBlobBuffers 1": {"buffers": 1},
    # Two seconds there; nothing depends on how long it takes.
    "RequestTimeout 2s, MaxKeepBlobBuffers 1": {"request_timeout": 0.05},
    "four classes configured": {"class_priorities": {"default": 1, "cold": 2, "hot": 3}},
    'second cluster "yyyyy"': {"key": _REMOTE_KEY, "ttl": _REMOTE_TTL},
    # What the SDK sends to a listener that takes everything.
    "a listener of ours": {"signing": False},
}

_VOLUMES: dict[str, tuple[dict[str, Any], ...]] = {
    "volume 1: default, Replication 1; volume 2: hot, Replication 2": (
        {"uuid": "zzzzz-nyw5e-000000000001061"},
        {"uuid": "zzzzz-nyw5e-000000000001062", "classes": ("hot",), "replication": 2},
        {"uuid": "zzzzz-nyw5e-000000000001063", "classes": ("hot", "cold"), "replication": 3},
    ),
    "two volumes, both class default": (
        {"uuid": "zzzzz-nyw5e-000000000001131"},
        {"uuid": "zzzzz-nyw5e-000000000001132"},
    ),
    "one read-only for this host": (
        {"uuid": "zzzzz-nyw5e-000000000001151", "root": _ROOT[:22]},
        {"uuid": "zzzzz-nyw5e-000000000001152", "root": _ROOT[:22], "read_only": True},
    ),
    "ReadOnly true": ({"read_only": True},),
    "32 MiB tmpfs": ({"capacity": 32 << 20},),
    "a plain file where the block directory should be": ({"broken": True},),
    "one clean Directory volume": ({"uuid": "zzzzz-nyw5e-000000000000117"},),
    "one volume; signing on, TTL 336h": ({"uuid": "zzzzz-nyw5e-000000000000111"},),
}


def _store_world(
    recording: Recording, certificate: Certificate, exits: contextlib.ExitStack
) -> World:
    chosen: dict[str, Any] = {}
    for words, settings in _SETTINGS.items():
        if words in recording.configuration:
            chosen |= settings
    volumes: tuple[dict[str, Any], ...] = ({},)
    for words, described in _VOLUMES.items():
        if words in recording.configuration:
            volumes = described
    root = _SHORT_ROOT if recording.name == "get-file-is-directory" else _ROOT
    store = exits.enter_context(
        KeepstoreControls(
            Settings(**chosen),
            [Volume(**{"root": root, "host": _MACHINE} | each) for each in volumes],
            _time_of(recording),
            _LISTENING,
        )
    )
    world = World(recording, certificate, exits, store, [store])
    world.restore = [(f"{_MACHINE}:", "<host>:"), (root, "<volume-root>")]
    world.restore.append((_ROOT[:22], "<volume-root>"))
    if "cluster zzzzz with RemoteClusters" in recording.configuration:
        _add_remote(world)
    if 'second cluster "yyyyy"' in recording.configuration:
        _resign(world)
    return world


def _add_remote(world: World) -> None:
    signer = Signer(_REMOTE_KEY, _REMOTE_TTL)
    now = _time_of(world.recording)
    remote = KeepstoreControls(
        Settings(key=signer.key, ttl=signer.ttl), time_ns=now, listening=_LISTENING
    )
    world.exits.enter_context(remote)
    world.stores.append(remote)
    listed = [ServiceEntry.of(remote.url, 1)]
    listening = Listening(tls=world.certificate)
    api = ApiControls(ApiSettings(services=listed), listening=listening)
    world.exits.enter_context(api)
    world.stores[0].configure(remotes={"yyyyy": api.url})
    match = re.search(r"Ryyyyy-([0-9a-f]{40})@([0-9a-f]{8})", world.recording.target)
    if match and int(match[1], 16):
        signature = signer.signature(world.recording.digest, _salted(), match[2])
        world.replace.append((match[1], signature))


def _resign(world: World) -> None:
    # Both the locator that is asked for and the one that comes back.
    text = world.recording.target + world.recording.answer_text
    match = re.search(r"A([0-9a-f]{40})@([0-9a-f]{8})", text)
    assert match is not None
    signer = Signer(_REMOTE_KEY, _REMOTE_TTL)
    signature = signer.signature(world.recording.digest, _salted(), match[2])
    world.replace.append((match[1], signature))
    world.restore.append((signature, match[1]))


def _salted() -> str:
    return salted(TEST_TOKEN, "yyyyy")


# --- keepproxy ----------------------------------------------------------------


def _proxy_world(
    recording: Recording, certificate: Certificate, exits: contextlib.ExitStack
) -> World:
    is_dead = "does not answer" in recording.configuration
    now = _time_of(recording)
    stores: list[KeepstoreControls] = []
    listed: list[Store] = []
    restore = []
    for number in (26121, 26199 if is_dead else 26122):
        if number == 26199:
            port = exits.enter_context(refusing_port())
        else:
            signed_at = now - SECOND if recording.name == "proxy-dead-put-1" else now
            store = KeepstoreControls(time_ns=signed_at, listening=_LISTENING)
            stores.append(exits.enter_context(store))
            port = store.port
        # The uuid that goes with the recorded port: it decides the order.
        uuid = hashlib.md5(f"http://{HOST}:{number}/".encode(), usedforsecurity=False).hexdigest()
        listed.append(Store(f"zzzzz-bi6l4-{uuid[:15]}", f"http://{HOST}:{port}"))
        restore.append((f"{HOST}:{port}", f"{HOST}:{number}"))
    settings = ProxySettings(stores=listed, scoped_tokens=("scopedtoken",))
    settings.user_upload = "Upload is false" not in recording.configuration
    proxy = exits.enter_context(KeepproxyControls(settings, now, _LISTENING))
    return World(recording, certificate, exits, proxy, stores, restore=restore)


# --- blocks -------------------------------------------------------------------


def _place_expected(world: World) -> None:
    # A block that is asked for is there, unless the recording says it wasn't.
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
    mtime = _time_of(world.recording) - seconds * SECOND
    world.stores[0].store_block(known_blocks()[digest], digest=digest, mtime=mtime)
    return str(digest)


def _trashed(world: World) -> None:
    world.stores[0].trash(_aged(world, 10))


def _trashed_long_ago(world: World) -> None:
    now = _time_of(world.recording)
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
    other = world.exits.enter_context(KeepstoreControls(listening=_LISTENING))
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
    _place_expected(world)
    _open_put(world)


def _busy_for_a_while(world: World) -> None:
    _place_expected(world)
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
    _place_expected(world)
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

_OVERRIDES: dict[str, Callable[[World], None]] = {
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
