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
#: What a keepstore costs besides hashing and the socket, in times of MD5 of the bytes:
#: processor time of reading a file while its block is hashed and sent; of writing one;
#: waiting for a local disk. The text of the package says how they were calibrated.
_READ_COST, _WRITE_COST, _DISK_WAIT = 0.7, 0.15, 1.0
#: Processor time of one GET or PUT of any size, in times of MD5 of a whole block.
_GET_COST, _PUT_COST = 1 / 265, 1 / 115
TOKEN = "bench"  # noqa: S105 - the block server asks for none


class Kind(Enum):
    """How fast our services are."""

    #: As fast as memory.
    MEMORY = "from memory"
    #: It hashes all it sends and gets, on the processors that all use here.
    HASHING = "from memory, hashing as keepstores do"
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


def _costs(rate: float) -> list[str]:
    """Return the costs of a keepstore as words of the block server, in nanoseconds.

    Args:
        rate: Bytes a second that MD5 takes in one thread here.
    """
    mebibyte, block = 2**20 / rate * 1e9, BLOCK / rate * 1e9
    read, write, disk = (it * mebibyte for it in (_READ_COST, _WRITE_COST, _DISK_WAIT))
    get, put = (it * block for it in (_GET_COST, _PUT_COST))
    return [f"{it:.0f}" for it in (read, write, get, put, disk)]


def md5(data: bytes | bytearray | memoryview) -> str:
    """Return a block's digest."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@dataclass
class Services:
    """Services that are running.

    Attributes:
        urls: Their base URLs, without a slash at the end.
        token: What they want to see.
        ours: Whether it is the block server, which counts requests.
        kind: What they are, in words.
        blocks: Whole blocks stored there that never go away, by locator.
        process: The block server's.
        api: The API server that lists them, if there is one.
        trusted: The file of its authority's certificate.
    """

    urls: list[str]
    token: str = TOKEN
    ours: bool = False
    kind: str = "those given"
    blocks: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    api: ApiControls | None = None
    trusted: str = ""

    @classmethod
    def started(cls, program: Path, kibibytes: int, block: int, kind: Kind = Kind.MEMORY) -> Self:
        """Start the block server, as two services.

        Args:
            program: What `build` made of it.
            kibibytes: Of what is put there before the oldest is forgotten.
            block: Bytes of most of it, for which memory is made ready.
            kind: How fast it is.
        """
        words: list[str] = []
        said = kind.value
        if kind is Kind.HASHING:
            words = ["hash", *_costs(md5_rate())]
        elif kind is Kind.ELSEWHERE:
            get, put = md5_rate() / _GET / 1e6, md5_rate() / _PUT / 1e6
            words = ["pace", f"{get:.0f}", f"{put:.0f}"]
            said = f"{said}: {get:.0f} MB/s each GET, {put:.0f} each PUT"
        process = subprocess.Popen(
            [program, "2", str(kibibytes), str(block), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if process.stdout is None:
            raise AssertionError
        ports = process.stdout.readline().split()
        urls = [f"http://127.0.0.1:{int(port)}" for port in ports]
        return cls(urls, ours=True, kind=said, process=process)

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
        """End the block server, and the API server."""
        if self.api is not None:
            self.api.stop()
        if self.process is not None:
            self.process.communicate()  # which closes its standard input

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
        """Store a block, at one service of ours or at all that were given.

        Args:
            data: The block.
            for_good: Whether our services may never forget it for newer ones.

        Returns:
            Its locator, signed if the services sign.
        """
        locator = ""
        for url in self.urls[:1] if self.ours else self.urls:
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
        with urllib.request.urlopen(f"{self.urls[0]}/counts") as answer:  # noqa: S310 - ours
            words = answer.read().split()
        return {words[i].decode(): int(words[i + 1]) for i in (0, 2, 4)}

    def store_blocks(self, count: int, size: int = BLOCK, *, for_good: bool = True) -> list[str]:
        """Store so many different blocks; return their locators."""
        base = bytearray(os.urandom(size))
        locators = []
        for _ in range(count):
            base[:16] = os.urandom(16)
            locators.append(self.store(memoryview(base), for_good=for_good))
        return locators
