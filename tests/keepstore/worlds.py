"""The servers as they were before each recording.

The configuration words of a recording choose settings, volumes and other
servers; what is on the volumes is decided in `states`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from typing import TYPE_CHECKING, Any

from tests.keepstore.apiserver import ApiSettings, ServiceEntry
from tests.keepstore.clock import SECOND
from tests.keepstore.controls import (
    ApiControls,
    KeepproxyControls,
    KeepstoreControls,
    Listening,
)
from tests.keepstore.keepproxy import ProxySettings, Store
from tests.keepstore.keepstore import TEST_TOKEN, Settings
from tests.keepstore.locators import Signer, salted
from tests.keepstore.ports import refusing_port
from tests.keepstore.server import HOST
from tests.keepstore.states import LISTENING, OVERRIDES, World, place_expected, time_of
from tests.keepstore.volumes import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.keepstore.certificates import Certificate
    from tests.keepstore.recordings import Recording

# The volume's directory and machine are left out of the recordings; with these
# the lengths are right.
_ROOT = "/volume-root-of-length-26/"
_SHORT_ROOT = _ROOT[:22] + "/"
_MACHINE = "vm"
# The key of the second cluster isn't recorded.
_REMOTE_KEY = "the key of cluster yyyyy"
_REMOTE_TTL = 604800.0


@contextlib.contextmanager
def world_of(recording: Recording, certificate: Certificate) -> Iterator[World]:
    """Set up the servers of a recording, and end them."""
    with contextlib.ExitStack() as exits:
        if recording.kind == "keepproxy":
            world = _proxy_world(recording, certificate, exits)
        else:
            world = _store_world(recording, certificate, exits)
        prepare = OVERRIDES.get(recording.name, place_expected)
        prepare(world)
        yield world


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

# The uuids are those that `/mounts` shows in the recordings, or made like them;
# they decide which volume a block goes to, and the recordings agree.
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
            time_of(recording),
            LISTENING,
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
    now = time_of(world.recording)
    remote = KeepstoreControls(
        Settings(key=signer.key, ttl=signer.ttl), time_ns=now, listening=LISTENING
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
    now = time_of(recording)
    stores: list[KeepstoreControls] = []
    listed: list[Store] = []
    restore = []
    for number in (26121, 26199 if is_dead else 26122):
        if number == 26199:
            port = exits.enter_context(refusing_port())
        else:
            signed_at = now - SECOND if recording.name == "proxy-dead-put-1" else now
            store = KeepstoreControls(time_ns=signed_at, listening=LISTENING)
            stores.append(exits.enter_context(store))
            port = store.port
        # The uuid that goes with the recorded port: it decides the order.
        uuid = hashlib.md5(f"http://{HOST}:{number}/".encode(), usedforsecurity=False).hexdigest()
        listed.append(Store(f"zzzzz-bi6l4-{uuid[:15]}", f"http://{HOST}:{port}"))
        restore.append((f"{HOST}:{port}", f"{HOST}:{number}"))
    settings = ProxySettings(stores=listed, scoped_tokens=("scopedtoken",))
    settings.user_upload = "Upload is false" not in recording.configuration
    proxy = exits.enter_context(KeepproxyControls(settings, now, LISTENING))
    return World(recording, certificate, exits, proxy, stores, restore=restore)
