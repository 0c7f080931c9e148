"""The Keep services that are measured with: our block server, or any that are given."""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Self

from tests.keepstore import (
    ApiControls,
    ApiSettings,
    Authority,
    Listening,
    ServiceEntry,
    start_process,
)

if TYPE_CHECKING:
    from pathlib import Path

#: Bytes of a whole block.
BLOCK = 64 * 2**20
#: How many times as long as MD5 a keepstore takes for a block, on processors of its
#: own. Measured with one on a local disk: 140 ms, 159 ms, where MD5 took 108.
_GET, _PUT = 1.3, 1.47
#: Processor time of a GET and a PUT that a keepstore takes and keepstore.go doesn't, in times
#: of MD5 of a whole block. The text of the package says how they were calibrated.
_GET_COST, _PUT_COST = 1 / 460, 1 / 400
#: Keepstores of a cluster.
_KEEPSTORES = 3
TOKEN = "bench"  # noqa: S105 - the block server asks for none


class Kind(Enum):
    """How fast our services are."""

    #: As fast as memory.
    MEMORY = "from memory"
    #: Programs in Go that do what keepstores do, on the processors that all use here.
    KEEPSTORE = "keepstores in Go, on this machine"
    #: It takes as long as that, but no processor: as keepstores on machines of their own.
    ELSEWHERE = "from memory, as fast as keepstores elsewhere"


def md5_rate() -> float:
    """Measure how many bytes a second MD5 takes in one thread here."""
    block = bytes(BLOCK)
    seconds = []
    for _ in range(5):
        begin = time.thread_time()  # what other programs take of the processor is not MD5's
        md5(block)
        seconds.append(time.thread_time() - begin)
    return BLOCK / statistics.median(seconds)


def md5(data: bytes | bytearray | memoryview) -> str:
    """Return a block's digest."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@dataclass
class Services:
    """Services that are running.

    Attributes:
        urls: Their base URLs, without a slash at the end.
        token: What they want to see.
        ours: Whether they are started by the bench, and count requests.
        has_one_memory: Whether a block that one has is at all of them.
        kind: What they are, in words.
        processes: Of those that are ours; the first is that of the first URL.
        api: The API server that lists them, if there is one.
        trusted: The file of its authority's certificate.
    """

    urls: list[str]
    token: str = TOKEN
    ours: bool = False
    has_one_memory: bool = False
    kind: str = "those given"
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    api: ApiControls | None = None
    trusted: str = ""

    @classmethod
    def started(cls, program: Path, kibibytes: int, block: int, kind: Kind = Kind.MEMORY) -> Self:
        """Start the block server, as two services.

        Args:
            program: What `build` made of it.
            kibibytes: Of what is put there before the oldest is forgotten.
            block: Bytes of most of it, for which memory is made ready.
            kind: How fast it is: not `KEEPSTORE`.
        """
        words: list[str] = []
        said = kind.value
        if kind is Kind.ELSEWHERE:
            get, put = md5_rate() / _GET / 1e6, md5_rate() / _PUT / 1e6
            words = ["pace", f"{get:.0f}", f"{put:.0f}"]
            said = f"{said}: {get:.0f} MB/s each GET, {put:.0f} each PUT"
        process, urls = _started(program, "2", str(kibibytes), str(block), *words)
        return cls(urls, ours=True, has_one_memory=True, kind=said, processes=[process])

    @classmethod
    def keepstores(cls, program: Path, kibibytes: int, directory: Path) -> Self:
        """Start three keepstores.

        Args:
            program: What `build` made of keepstore.go.
            kibibytes: Of what is put to each before the oldest is forgotten.
            directory: Where their files are.
        """
        block = BLOCK / md5_rate() * 1e6  # in microseconds
        costs = [f"{it * block:.0f}" for it in (_GET_COST, _PUT_COST)]
        it = cls([], ours=True, kind=Kind.KEEPSTORE.value)
        for number in range(_KEEPSTORES):
            place = directory / f"keepstore{number}"
            place.mkdir()
            process, urls = _started(program, str(place), str(kibibytes), *costs)
            it.processes.append(process)
            it.urls += urls
        return it

    @classmethod
    def given(cls, urls: tuple[str, ...]) -> Self:
        """Take services that run already; their token is in $ARVADOS_API_TOKEN."""
        return cls([url.rstrip("/") for url in urls], os.environ.get("ARVADOS_API_TOKEN", ""))

    def announce(self, directory: Path) -> None:
        """Have an API server list them as disk services, as a cluster's are.

        Services that $ARVADOS_KEEP_SERVICES names are proxies to every client, and
        get the copies of a block one after the other; disk services get them at once.

        Args:
            directory: Where the API server's certificates are put.
        """
        authority = Authority(directory)
        entries = [ServiceEntry.of(url, number) for number, url in enumerate(self.urls)]
        self.api = start_process(
            ApiControls,
            # Our services don't sign: with signing the collection of an upload is refused.
            settings=ApiSettings(services=entries, tokens=(self.token,), signing=False),
            listening=Listening(tls=authority.certify()),
        )
        self.trusted = authority.bundle

    def close(self) -> None:
        """End the services that are ours, and the API server."""
        if self.api is not None:
            self.api.stop()
        for process in self.processes:
            process.communicate()  # which closes its standard input

    @property
    def headers(self) -> dict[str, str]:
        """What each request says."""
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def environment(self) -> dict[str, str]:
        """Arvados's settings for these services, over the environment without any."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("KEEP", "ARVADOS", "XDG_", "NOTIFY_"))
        }
        kept["ARVADOS_API_TOKEN"] = self.token
        if self.api is None:
            return {**kept, "ARVADOS_KEEP_SERVICES": " ".join(self.urls)}
        # Empty: a user's settings file may name others, which would count first.
        kept |= {"ARVADOS_KEEP_SERVICES": "", "ARVADOS_KEEP_PROXY": ""}
        return {**kept, "ARVADOS_API_HOST": self.api.host, "SSL_CERT_FILE": self.trusted}

    def store(self, data: bytes | bytearray | memoryview, *, for_good: bool = True) -> str:
        """Store a block where every service has it.

        Args:
            data: The block.
            for_good: Whether our services may never forget it for newer ones.

        Returns:
            Its locator, signed if the services sign.
        """
        locator = ""
        for url in self.urls[:1] if self.has_one_memory else self.urls:
            request = urllib.request.Request(  # noqa: S310 - the caller's services
                f"{url}/{md5(data)}",
                data=data,
                method="PUT",
                headers={
                    **self.headers,
                    **({"Bench-Pin": "yes"} if for_good else {}),
                    "Content-Type": "application/octet-stream",
                },
            )
            with urllib.request.urlopen(request) as answer:  # noqa: S310 - ditto
                locator = answer.read().decode().strip()
        return locator

    def have(self, locator: str) -> bool:
        """Tell whether a service has a block, by reading and hashing it."""
        for url in self.urls:
            request = urllib.request.Request(f"{url}/{locator}", headers=self.headers)  # noqa: S310
            try:
                with urllib.request.urlopen(request) as answer:  # noqa: S310
                    return md5(answer.read()) == locator[:32]
            except urllib.error.HTTPError as error:
                error.close()
        return False

    def counts(self) -> dict[str, int] | None:
        """Return how many requests there have been by method, if the services are ours."""
        if not self.ours:
            return None
        found = dict.fromkeys(("GET", "HEAD", "PUT"), 0)
        for url in self.urls[:1] if self.has_one_memory else self.urls:
            with urllib.request.urlopen(f"{url}/counts") as answer:  # noqa: S310 - ours
                words = answer.read().split()
            for i in (0, 2, 4):
                found[words[i].decode()] += int(words[i + 1])
        return found

    def store_blocks(self, count: int, size: int = BLOCK, *, for_good: bool = True) -> list[str]:
        """Store so many different blocks; return their locators."""
        base = bytearray(os.urandom(size))
        locators = []
        for _ in range(count):
            base[:16] = os.urandom(16)
            locators.append(self.store(memoryview(base), for_good=for_good))
        return locators


def _started(program: Path, *words: str) -> tuple[subprocess.Popen[bytes], list[str]]:
    """Start a server that prints its ports; return its process and its URLs."""
    process = subprocess.Popen([program, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if process.stdout is None:
        raise AssertionError
    ports = process.stdout.readline().split()
    if not ports:
        raise RuntimeError(f"{program} ended with {process.wait()}")
    return process, [f"http://127.0.0.1:{int(port)}" for port in ports]
