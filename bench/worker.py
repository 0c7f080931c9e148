"""A client in a process of its own: keepfs's or the SDK's, told what to do line by line.

Run as `python -m bench.worker keepfs|sdk`; Arvados's settings say where. Each line
of standard input is a command in JSON, each of standard output its outcome. So each
client's processor time and memory are its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import warnings
from typing import Any

from bench.measure import Stopwatch

_BLOCK = 64 * 2**20


def _client(kind: str, cache: int) -> Any:  # noqa: ANN401 - the SDK has no types
    if kind == "sdk":
        return _sdk_client(cache)
    from keepfs.keep import KeepBlockCache, KeepClient  # noqa: PLC0415 - only one of both is loaded

    # Nothing is kept: of a loop over more than it holds our cache keeps what fits.
    return KeepClient(local_store="", block_cache=KeepBlockCache(1))


def _sdk_client(cache: int) -> Any:  # noqa: ANN401 - the SDK has no types
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arvados  # noqa: PLC0415 - only one of both is loaded
        from arvados import keep as sdk  # noqa: PLC0415 - ditto
    where: dict[str, Any]
    if "ARVADOS_API_HOST" in os.environ:
        where = {"api_client": arvados.api("v1", cache=False)}
    else:
        where = {
            "proxy": os.environ["ARVADOS_KEEP_SERVICES"],
            "api_token": os.environ["ARVADOS_API_TOKEN"],
        }
    kept = sdk.KeepBlockCache(cache_max=cache)
    return sdk.KeepClient(**where, local_store="", block_cache=kept)


class Worker:
    """Two clients: one for whole blocks and one for small ones, neither of whose caches helps."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._clients: dict[int, Any] = {}
        self._base = bytearray(os.urandom(_BLOCK))

    def _client(self, size: int) -> Any:  # noqa: ANN401 - one of two classes
        # Holds one whole block, or a few small ones; more are asked for in turn.
        cache = max(_BLOCK if size > 2**20 else 2**16, size)
        if cache not in self._clients:
            self._clients[cache] = _client(self._kind, cache)
        return self._clients[cache]

    def get(self, locators: list[str], size: int, *, as_view: bool = False) -> dict[str, object]:
        """Get blocks one after the other; verify each when all are there.

        Args:
            locators: Their locators.
            size: The size of each.
            as_view: Whether by keepfs's `get_view`, into memory that is used again.
        """
        client = self._client(size)
        get = client.get_view if as_view else client.get
        with Stopwatch(os.getpid()) as watch:
            got = [get(locator) for locator in locators]
        good = all(
            len(block) == size and _md5(block) == locator[:32]
            for locator, block in zip(locators, got, strict=True)
        )
        return {"taken": dataclasses.asdict(watch.taken()), "good": good}

    def put(self, count: int, size: int, copies: int) -> dict[str, object]:
        """Put new blocks one after the other; return their locators."""
        client = self._client(size)
        blocks = []
        for _ in range(count):
            self._base[:16] = os.urandom(16)
            blocks.append(bytes(memoryview(self._base)[:size]))
        with Stopwatch(os.getpid()) as watch:
            locators = [client.put(block, copies=copies) for block in blocks]
        good = all(
            _md5(block) == locator[:32] for locator, block in zip(locators, blocks, strict=True)
        )
        return {"taken": dataclasses.asdict(watch.taken()), "good": good, "locators": locators}


def _md5(block: bytes | memoryview) -> str:
    return hashlib.md5(block, usedforsecurity=False).hexdigest()


def main() -> None:
    """Do what is told until there is no more."""
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        command = json.loads(line)
        outcome = getattr(worker, command.pop("do"))(**command)
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
