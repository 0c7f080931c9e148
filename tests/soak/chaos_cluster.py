"""The cluster of the chaos soak: three keepstores, a keepproxy, an API server, each a process."""

from __future__ import annotations

import contextlib
import random
import threading
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    ApiSettings,
    Authority,
    Controls,
    KeepproxyControls,
    KeepstoreControls,
    Listening,
    ProxySettings,
    ServiceEntry,
    Settings,
    Store,
    start_process,
)
from tests.keepstore.locators import weight
from tests.soak.chaos_content import md5_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

#: Copies that the cluster wants of each block.
COPIES = 2
#: Another token of the same user.
OTHER_TOKEN = TEST_TOKEN[:-3] + "xyz"
_SERVICES = 3
#: Blocks that one fault spoils, at most.
_SPOILT_AT_ONCE = 5


class Placed(NamedTuple):
    """A block that the soak has put into the services.

    Attributes:
        locator: Signed.
        data: Its bytes.
    """

    locator: str
    data: bytes

    @property
    def digest(self) -> str:
        """Its hash."""
        return self.locator[:32]


class Cluster:
    """The servers, and what is known of the blocks in them. Any thread may call.

    Reading needs no signature, so that a replaced token leaves blocks readable.
    """

    def __init__(self, base: Path) -> None:
        self._exits = contextlib.ExitStack()
        self._lock = threading.Lock()
        #: Blocks of which one copy has been spoilt on purpose.
        self._spoilt: set[str] = set()
        self._placed: set[str] = set()
        with contextlib.ExitStack() as exits:
            start = exits.enter_context
            self.stores = [
                start(start_process(KeepstoreControls, settings=Settings(signing=False)))
                for _ in range(_SERVICES)
            ]
            self.entries = [ServiceEntry.of(it.url, i) for i, it in enumerate(self.stores)]
            settings = ProxySettings(
                stores=[
                    Store(entry.uuid, it.url)
                    for entry, it in zip(self.entries, self.stores, strict=True)
                ],
                tokens=(TEST_TOKEN, OTHER_TOKEN),
            )
            self.proxy = start(start_process(KeepproxyControls, settings=settings))
            authority = Authority(base)
            self.api = start(
                start_process(
                    ApiControls,
                    settings=ApiSettings(
                        services=list(self.entries),
                        tokens=(TEST_TOKEN, OTHER_TOKEN),
                        replication=COPIES,
                    ),
                    listening=Listening(tls=authority.certify()),
                )
            )
            self.trusted = authority.bundle
            self._exits = exits.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exits.close()

    @property
    def servers(self) -> list[Controls]:
        """All servers."""
        return [*self.stores, self.proxy, self.api]

    def order(self, digest: str) -> list[int]:
        """Return the services' numbers in the order in which a client asks them."""
        return sorted(
            range(_SERVICES), key=lambda it: weight(digest, self.entries[it].uuid), reverse=True
        )

    def place(self, data: bytes, services: Iterable[int]) -> Placed:
        """Put a block on services, behind their backs."""
        locator = ""
        with self._lock:
            self._placed.add(md5_of(data))
        for service in services:
            locator = self.stores[service].store_block(data)
        return Placed(locator, data)

    def remove(self, block: Placed) -> None:
        """Take a block that was placed away again."""
        for store in self.stores:
            store.remove_block(block.digest)
        with self._lock:
            self._placed.discard(block.digest)

    def spoil(self, block: Placed, service: int) -> None:
        """Spoil one copy of a block that was placed."""
        with self._lock:
            self._spoilt.add(block.digest)
        self.stores[service].corrupt(block.digest, -1)

    def spoil_some(self, service: int, seed: int) -> int:
        """Spoil copies on a service, of blocks with another whole copy, and each block once.

        Returns:
            How many.
        """
        draw = random.Random(seed)  # noqa: S311 - which blocks, not secrets
        with self._lock:
            known = self._spoilt | self._placed
        digests = sorted(set(self.stores[service].blocks()) - known)
        count = 0
        for digest in draw.sample(digests, min(_SPOILT_AT_ONCE, len(digests))):
            others = [it for i, it in enumerate(self.stores) if i != service]
            if digest == md5_of(b"") or not any(it.is_intact(digest) for it in others):
                continue
            with self._lock:
                self._spoilt.add(digest)
            self.stores[service].corrupt(digest, draw.choice((0, -1)))
            count += 1
        return count

    def copies(self, digest: str) -> tuple[int, int]:
        """Count the services that hold a block whole, and the copies that were spoilt."""
        intact = sum(it.is_intact(digest) for it in self.stores)
        with self._lock:
            return intact, int(digest in self._spoilt)

    def keep_only(self, digests: Iterable[str]) -> int:
        """Remove all blocks but these, to bound the memory; return how many."""
        with self._lock:
            kept = [*digests, *self._placed]
        removed = sum(it.keep_only(kept) for it in self.stores)
        for server in self.servers:
            server.clear_log()
        return removed
