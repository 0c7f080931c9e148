"""Blocks without a mount: keepfs's client against curl and the SDK's."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench import baselines
from bench.measure import Amount, Taken, Target, VerifyError, compare, mb, timed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.measure import Figure
    from bench.rig import Rig
    from bench.services import Services

_SMALL = 4096


class Client:
    """A client in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], services: Services) -> None:
        self._process = process
        self._services = services
        self.pid = process.pid

    def _ask(self, **command: object) -> Any:  # noqa: ANN401 - JSON
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        outcome = json.loads(self._process.stdout.readline())
        if not outcome["good"]:
            raise VerifyError(f"wrong bytes: {command['do']}")
        return outcome

    def get(self, locators: list[str], size: int, *, as_view: bool = False) -> Taken:
        """Get blocks; return what it took. Each must have been asked for."""
        before = self._services.counts()
        outcome = self._ask(do="get", locators=locators, size=size, as_view=as_view)
        after = self._services.counts()
        if before and after and after["GET"] - before["GET"] < len(locators):
            raise VerifyError("a block came out of a cache")
        return Taken(**outcome["taken"])

    def put(self, count: int, size: int, copies: int) -> Taken:
        """Put new blocks; return what it took. The last must be readable after that."""
        outcome = self._ask(do="put", count=count, size=size, copies=copies)
        if not self._services.have(outcome["locators"][-1]):
            raise VerifyError("a block that was put can't be read")
        return Taken(**outcome["taken"])


@contextmanager
def client(kind: str, services: Services) -> Iterator[Client]:
    """Run a client for a while: keepfs or sdk."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.worker", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=services.environment,
    ) as process:
        yield Client(process, services)
        if process.stdin is not None:
            process.stdin.close()


def measure_services(rig: Rig) -> Iterator[Figure]:
    """Measure the services themselves, as curl sees them: how fast anything can be here."""
    data, path = rig.file_in_memory()
    locator = rig.services.store(data)
    hashing = {
        "md5sum": lambda: timed(
            lambda: subprocess.run(["md5sum", path], check=True, stdout=subprocess.DEVNULL)
        )
    }
    pid = rig.services.processes[0].pid if rig.services.processes else None
    yield compare(
        f"services: GET {rig.block_name} by curl",
        mb(rig.block),
        lambda: baselines.curl_get(rig.services, [locator]),
        hashing,
        repeats=rig.repeats,
        pid=pid,
    )
    yield compare(
        f"services: PUT {rig.block_name} by 2 curls",
        mb(rig.block),
        lambda: baselines.curl_put(rig.services, [(path.name, path)]),
        hashing,
        repeats=rig.repeats,
        pid=pid,
    )


def measure(rig: Rig) -> Iterator[Figure]:
    """Measure GET and PUT of whole and of small blocks."""
    with client("keepfs", rig.services) as ours, client("sdk", rig.services) as sdk:
        yield from _whole(rig, ours, sdk)
        yield from _small(rig, ours, sdk)


def _whole(rig: Rig, ours: Client, sdk: Client) -> Iterator[Figure]:
    services, size = rig.services, rig.block
    # Each of them takes the four in turn: a client's cache holds only one.
    turn, curls, piped, sdks = (itertools.cycle(rig.blocks(4)) for _ in range(4))
    for as_view in (False, True):
        yield compare(
            f"GET {rig.block_name}{' as a view' if as_view else ''}",
            mb(size),
            lambda as_view=as_view: ours.get([next(turn)], size, as_view=as_view),
            {
                "curl": lambda: baselines.curl_get(services, [next(curls)]),
                "curl | md5sum": lambda: baselines.curl_md5sum(services, next(piped)),
                "SDK": lambda: sdk.get([next(sdks)], size),
            },
            repeats=rig.repeats,
            pid=ours.pid,
            target=Target(0.95),
            memory=4 * size,
        )
    _, path = rig.file_in_memory()
    digest = path.name
    yield compare(
        f"PUT {rig.block_name}, 2 copies",
        mb(size),
        lambda: ours.put(1, size, 2),
        {
            "md5sum, 2 curls": lambda: baselines.md5sum_then_curl_put(services, path),
            "2 curls": lambda: baselines.curl_put(services, [(digest, path)]),
            "SDK": lambda: sdk.put(1, size, 2),
        },
        repeats=rig.repeats,
        pid=ours.pid,
        target=Target(0.95),
        memory=4 * size,
    )


def _small(rig: Rig, ours: Client, sdk: Client) -> Iterator[Figure]:
    count = rig.many
    small = rig.services.store_blocks(count, _SMALL)
    amount = Amount(count, "/s")
    yield compare(
        "GET 4 KiB",
        amount,
        lambda: ours.get(small, _SMALL),
        {"SDK": lambda: sdk.get(small, _SMALL)},
        repeats=rig.repeats,
        pid=ours.pid,
        target=Target(1.2),
    )
    yield compare(
        "PUT 4 KiB, 2 copies",
        amount,
        lambda: ours.put(count, _SMALL, 2),
        {"SDK": lambda: sdk.put(count, _SMALL, 2)},
        repeats=rig.repeats,
        pid=ours.pid,
        target=Target(1.2),
    )
