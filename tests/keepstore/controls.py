"""What a test can do to a running server.

The same calls work on a server in this process and, through `processes`, on
one in another: arguments and results are values that can be pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any, Self

from tests.keepstore.apiserver import ApiServer, ApiSettings, ServiceEntry
from tests.keepstore.clock import Clock
from tests.keepstore.keepproxy import Keepproxy, ProxySettings
from tests.keepstore.keepstore import TEST_TOKEN, Keepstore, Settings
from tests.keepstore.server import Server, Service

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from types import TracebackType

    from tests.keepstore.faults import Fault
    from tests.keepstore.journal import Entry
    from tests.keepstore.volumes import Volume
    from tests.keepstore.wire import Content


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """How a server listens on 127.0.0.1.

    Attributes:
        port: 0 takes a free one.
        tls: Files of a certificate and its key, for https.
        receive_buffer: Bytes the system keeps of what isn't read yet.
        send_buffer: The same for what isn't sent yet.
        linger: Seconds between an early answer and the end of the connection.
    """

    port: int = 0
    tls: tuple[str, str] | None = None
    receive_buffer: int | None = None
    send_buffer: int | None = None
    linger: float = 0.5


class Controls:
    """A running server of any kind. As a context manager it stops at the end.

    Args:
        service: Answers the requests.
        clock: The service's clock.
        listening: Where and how; None for a free port.

    Attributes:
        url: The root URL, without a slash at its end.
        host: What stands behind the scheme there: `127.0.0.1:PORT`.
        port: Where it listens; the same after `come_back`.
    """

    def __init__(self, service: Service, clock: Clock, listening: Listening | None = None) -> None:
        self._clock = clock
        how = listening or Listening()
        self._server = Server(
            service,
            clock=clock,
            port=how.port,
            tls=how.tls,
            receive_buffer=how.receive_buffer,
            send_buffer=how.send_buffer,
            linger=how.linger,
        )
        self.url = self._server.url
        self.port = self._server.port
        self.host = self.url.partition("://")[2]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # --- life -------------------------------------------------------------

    def stop(self) -> None:
        """End the server and all its connections.

        Raises:
            AssertionError: The server had an error of its own.
        """
        self._server.stop()

    def go_down(self) -> None:
        """Refuse connections and end those there are; blocks stay."""
        self._server.close()

    def come_back(self) -> None:
        """Listen again, on the same port."""
        self._server.open()

    def cut_connections(self) -> None:
        """End the connections there are, kept alive or in use; new ones are welcome."""
        self._server.cut_connections()

    def set_clock(self, time_ns: int | None) -> None:
        """Stop the clock at that time (nanoseconds since 1970); None: the real time."""
        self._clock.fixed = time_ns

    # --- what goes wrong ----------------------------------------------------

    def script(self, *faults: Fault, method: str | None = None, target: str = "") -> None:
        """Give the next fitting requests these faults, one each, in this order.

        `Fault()` lets one pass unharmed.
        """
        self._server.faults.script(*faults, method=method, target=target)

    def always(self, fault: Fault, *, method: str | None = None, target: str = "") -> None:
        """Give every fitting request this fault, until `clear_faults`."""
        self._server.faults.always(fault, method=method, target=target)

    def clear_faults(self) -> None:
        """Let all further requests pass unharmed."""
        self._server.faults.clear()

    def heal(self) -> None:
        """Clear the faults, and let all requests that have met one go on, now and later."""
        self._server.faults.heal()

    def release(self, requests: int | None = None) -> None:
        """Let held requests go on: that many, or all that are held now."""
        self._server.faults.release(requests)

    def wait_held(self, requests: int, timeout: float = 10.0) -> None:
        """Block until that many requests are held; TimeoutError after `timeout` seconds."""
        self._server.faults.wait_held(requests, timeout)

    # --- what was asked -----------------------------------------------------

    def log(self, method: str | None = None) -> list[Entry]:
        """List the requests so far, or those of one method."""
        return self._server.journal.entries(method)

    def clear_log(self) -> None:
        """Forget the requests that have ended, and the most that were under way."""
        self._server.journal.clear()

    def counts(self) -> dict[str, int]:
        """Count the requests so far by method; one that never came is missing."""
        return self._server.journal.counts()

    def under_way(self, method: str) -> int:
        """Count the requests of a method that aren't answered yet."""
        return self._server.journal.under_way(method)

    def most_under_way(self, method: str) -> int:
        """Return the most requests of a method that were ever under way at once."""
        return self._server.journal.most_under_way(method)

    def wait_begun(self, requests: int, method: str | None = None, timeout: float = 10.0) -> None:
        """Block until that many requests have come; TimeoutError after `timeout` seconds."""
        self._server.journal.wait_begun(requests, method, timeout)

    def wait_ended(self, requests: int, method: str | None = None, timeout: float = 10.0) -> None:
        """Block until that many requests have ended; TimeoutError after `timeout` seconds."""
        self._server.journal.wait_ended(requests, method, timeout)

    def wait_under_way(self, requests: int, method: str, timeout: float = 10.0) -> None:
        """Block until so many are under way at once; TimeoutError after `timeout` seconds."""
        self._server.journal.wait_under_way(requests, method, timeout)


class KeepstoreControls(Controls):
    """A running keepstore.

    Args:
        settings: What an administrator would configure.
        volumes: One without limits by default.
        time_ns: Where the clock stands still; None follows the real time.
        listening: Where and how.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        volumes: Sequence[Volume] | None = None,
        time_ns: int | None = None,
        listening: Listening | None = None,
    ) -> None:
        clock = Clock(time_ns)
        self._store = Keepstore(settings, volumes, clock)
        super().__init__(self._store, clock, listening)

    def configure(self, **settings: Any) -> None:  # noqa: ANN401 - the types of Settings
        """Change settings of a running keepstore, named as in `Settings`.

        Raises:
            AttributeError: There is no such setting.
        """
        _change(self._store.settings, settings)
        now = self._store.settings
        self._store.slots.places, self._store.slots.queue = now.max_requests, now.max_queued
        self._store.buffers.places = now.buffers

    def configure_volume(self, volume: int = 0, **fields: Any) -> None:  # noqa: ANN401 - ditto
        """Change a volume, named as in `Volume`, such as `read_only` or `capacity`."""
        _change(self._store.volumes[volume], fields)

    def sign(self, locator: str, token: str = TEST_TOKEN) -> str:
        """Sign a locator for a token, by the keepstore's clock."""
        return self._store.sign(locator, token)

    def store_block(
        self,
        content: Content,
        *,
        digest: str | None = None,
        mtime: int | None = None,
        volume: int = 0,
        token: str = TEST_TOKEN,
    ) -> str:
        """Put a block on a volume behind the server's back; return its signed locator.

        Args:
            content: What the file holds.
            digest: The block's name, where that isn't the hash of `content`.
            mtime: Nanoseconds since 1970; None for now.
            volume: Number of the volume.
            token: For whom the locator is signed.
        """
        if digest is None:
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        now = self._clock.time_ns() if mtime is None else mtime
        self._store.volumes[volume].place(digest, content, now)
        return self.sign(f"{digest}+{len(content)}", token)

    def blocks(self, volume: int = 0) -> list[str]:
        """List the digests of the blocks on a volume."""
        return self._store.volumes[volume].digests()

    def content(self, digest: str, volume: int = 0) -> bytes | None:
        """Return what a volume holds under a digest, right or wrong."""
        block = self._store.volumes[volume].block(digest)
        return None if block is None else bytes(block.content)

    def is_intact(self, digest: str) -> bool:
        """Tell whether any volume holds the whole, right bytes of a block."""
        return self._store.has_intact(digest)

    def keep_only(self, digests: Collection[str]) -> int:
        """Remove all other blocks, behind the server's back; return how many."""
        kept, removed = set(digests), 0
        for volume in self._store.volumes:
            for digest in volume.digests():
                if digest not in kept:
                    volume.remove(digest)
                    removed += 1
        return removed

    def corrupt(self, digest: str, position: int = 0, volume: int = 0) -> None:
        """Flip a bit of one byte of a stored block; -1 is its last byte."""
        self._store.volumes[volume].corrupt(digest, position)

    def resize(self, digest: str, size: int, volume: int = 0) -> None:
        """Cut a stored block, or lengthen it with zero bytes."""
        self._store.volumes[volume].resize(digest, size)

    def remove_block(self, digest: str, volume: int = 0) -> None:
        """Delete a block behind the server's back."""
        self._store.volumes[volume].remove(digest)

    def place_directory(self, digest: str, volume: int = 0) -> None:
        """Put a directory where a block's file belongs: reading and writing fail."""
        self._store.volumes[volume].place_directory(digest)

    def trash(self, digest: str, volume: int = 0) -> None:
        """Move a block to the trash, however young it is."""
        lifetime = self._store.settings.trash_lifetime
        self._store.volumes[volume].trash(digest, self._clock.time_ns(), -1e9, lifetime)

    def wait_slots_taken(self, places: int, timeout: float = 10.0) -> None:
        """Block until that many request slots are taken; TimeoutError after that long."""
        self._store.slots.wait_taken(places, timeout)

    def wait_slots_queued(self, requests: int, timeout: float = 10.0) -> None:
        """Block until that many requests wait for a slot; TimeoutError after that long."""
        self._store.slots.wait_queued(requests, timeout)

    def wait_buffers_taken(self, places: int, timeout: float = 10.0) -> None:
        """Block until that many buffers are taken; TimeoutError after that long."""
        self._store.buffers.wait_taken(places, timeout)

    def wait_buffers_queued(self, requests: int, timeout: float = 10.0) -> None:
        """Block until that many requests wait for a buffer; TimeoutError after that long."""
        self._store.buffers.wait_queued(requests, timeout)


class KeepproxyControls(Controls):
    """A running keepproxy.

    Args:
        settings: Its keepstores, tokens and so on.
        time_ns: Where the clock stands still; None follows the real time.
        listening: Where and how.
    """

    def __init__(
        self,
        settings: ProxySettings | None = None,
        time_ns: int | None = None,
        listening: Listening | None = None,
    ) -> None:
        clock = Clock(time_ns)
        self._proxy = Keepproxy(settings, clock)
        super().__init__(self._proxy, clock, listening)

    def configure(self, **settings: Any) -> None:  # noqa: ANN401 - the types of ProxySettings
        """Change settings of a running proxy, named as in `ProxySettings`."""
        _change(self._proxy.settings, settings)
        now = self._proxy.settings
        self._proxy.slots.places, self._proxy.slots.queue = now.max_requests, now.max_queued


class ApiControls(Controls):
    """A running API server.

    Args:
        settings: Its services, tokens and so on.
        time_ns: Where the clock stands still; None follows the real time.
        listening: Where and how; a client wants https.
    """

    def __init__(
        self,
        settings: ApiSettings | None = None,
        time_ns: int | None = None,
        listening: Listening | None = None,
    ) -> None:
        clock = Clock(time_ns)
        self._api = ApiServer(settings, clock)
        super().__init__(self._api, clock, listening)

    def configure(self, **settings: Any) -> None:  # noqa: ANN401 - the types of ApiSettings
        """Change what a running API server knows, named as in `ApiSettings`."""
        _change(self._api.settings, settings)

    def collections(self) -> list[dict[str, Any]]:
        """Return the collections there are, trashed or not, with unsigned manifests."""
        return self._api.collections.all_records()

    def referenced(self) -> dict[str, int]:
        """Return the digests that collections name which aren't trashed, and wanted copies."""
        return self._api.collections.referenced()

    def list_services(self, *lists: Sequence[ServiceEntry]) -> None:
        """Give the next requests for the service list these lists, one each.

        The last one stays.
        """
        self._api.upcoming.extend(list(each) for each in lists[:-1])
        self._api.settings.services = list(lists[-1])


def _change(settings: object, values: dict[str, Any]) -> None:
    # The settings have slots, so a name they don't know raises AttributeError.
    for name, value in values.items():
        setattr(settings, name, value)
