"""A collector: trashes blocks that no collection names, as keep-balance does.

It speaks to the keepstores as that one does, over HTTP with the system's root token:
`GET /index`, `PUT /trash`, `PUT /pull`. What the collections name is asked of the
test API server's controls.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import TYPE_CHECKING

from tests.keepstore.clock import SECOND
from tests.keepstore.keepstore import ROOT_TOKEN
from tests.keepstore.upstream import fetch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.keepstore.controls import ApiControls, KeepstoreControls

_HEADERS = {"Authorization": f"Bearer {ROOT_TOKEN}"}


class Collector:
    """Collects the garbage of a cluster, once or again and again.

    Args:
        api: Knows the collections.
        stores: The keepstores; they refuse by themselves to trash what is
            younger than their own `ttl`.
        ttl: `BlobSigningTTL` in seconds: blocks younger than that stay.
    """

    def __init__(self, api: ApiControls, stores: Sequence[KeepstoreControls], ttl: float) -> None:
        self._api = api
        self._stores = list(stores)
        self._ttl = ttl

    def collect(self, now: int | None = None) -> list[str]:
        """Trash once what is old and that nobody wants, and copy what has too few copies.

        The blocks are listed before the collections are: a block that is named
        meanwhile is kept.

        Args:
            now: In nanoseconds since 1970; None for the machine's clock.

        Returns:
            The digests of which no copy is wanted any more, sorted.

        Raises:
            OSError: A keepstore that should answer doesn't.
        """
        now = time.time_ns() if now is None else now
        found = self._index()
        wanted = self._api.referenced()
        trash: dict[int, list[dict[str, object]]] = {}
        pull: dict[int, list[dict[str, object]]] = {}
        collected = []
        for digest, copies in sorted(found.items()):
            copies.sort(reverse=True)  # the newest stay
            needed = wanted.get(digest, 0)
            for mtime, number, size in copies[needed:]:
                if now - mtime >= self._ttl * SECOND:
                    wish = {"locator": f"{digest}+{size}", "block_mtime": mtime}
                    trash.setdefault(number, []).append(wish)
                    if not needed:
                        collected.append(digest)
            have = {number for _, number, _ in copies}
            without = [each for each in range(len(self._stores)) if each not in have]
            _, source, size = copies[0]
            for number in without[: max(0, needed - len(copies))]:
                wish = {"locator": f"{digest}+{size}", "servers": [self._stores[source].url]}
                pull.setdefault(number, []).append(wish)
        for path, lists in (("pull", pull), ("trash", trash)):
            for number, wishes in lists.items():
                body = json.dumps(wishes).encode()
                fetch("PUT", f"{self._stores[number].url}/{path}", _HEADERS, body)
        return sorted(set(collected))

    def _index(self) -> dict[str, list[tuple[int, int, int]]]:
        """List the copies of each block: mtime, number of the keepstore, size."""
        found: dict[str, list[tuple[int, int, int]]] = {}
        for number, store in enumerate(self._stores):
            for line in fetch("GET", f"{store.url}/index", _HEADERS).body.decode().splitlines():
                if line:
                    name, mtime = line.split(" ")
                    digest, size = name.split("+")
                    found.setdefault(digest, []).append((int(mtime), number, int(size)))
        return found

    @contextlib.contextmanager
    def running(self, interval: float) -> Iterator[None]:
        """Collect every `interval` seconds, in a thread, until the end of `with`.

        A keepstore that is down skips a turn.
        """
        over = threading.Event()

        def run() -> None:
            while not over.wait(interval):
                with contextlib.suppress(OSError):
                    self.collect()

        thread = threading.Thread(target=run, name="collector")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
