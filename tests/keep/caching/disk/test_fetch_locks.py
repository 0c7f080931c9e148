"""Processes that need one block: one fetches it; a dead or hung process delays no other."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from keepfs.keep.caching.disk.fetch_locks import FetchClaim, FetchLocks
from tests.keepstore import TEST_TOKEN, Fault, KeepstoreControls, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK = bytes(range(256)) * 1000
NAME = "0123456789abcdef" * 2
#: Reads a block through a disk cache, and prints when it finds that another process has the lock.
READER = """
import hashlib, sys
from pathlib import Path
from keepfs.keep.caching.cache import KeepBlockCache
from keepfs.keep.caching.disk import disk_cache
from keepfs.keep.caching.disk.fetch_locks import FetchLocks
from keepfs.keep.client import KeepClient

url, token, directory, locator, patience = sys.argv[1:]
disk_cache._PATIENCE = float(patience)
try_lock = FetchLocks.try_lock

def observed(self, md5sum):
    got = try_lock(self, md5sum)
    if got is False:
        print("waits", flush=True)
    return got

FetchLocks.try_lock = observed
disk = disk_cache.DiskCache(Path(directory), 10**8, least_free=0)
cache = KeepBlockCache(disk=disk)
with KeepClient(proxy=url, api_token=token, local_store="", block_cache=cache) as client:
    block = client.get(locator)
print(hashlib.md5(block).hexdigest(), disk.statistics().joined, flush=True)
"""


@pytest.fixture
def service() -> Iterator[KeepstoreControls]:
    with KeepstoreControls() as it:
        yield it
        it.release()


@contextlib.contextmanager
def reader(
    service: KeepstoreControls, directory: Path, locator: str, patience: float = 60
) -> Iterator[subprocess.Popen[str]]:
    words = (service.url, TEST_TOKEN, str(directory), locator, str(patience))
    with subprocess.Popen(
        [sys.executable, "-c", READER, *words], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(process: subprocess.Popen[str]) -> list[str]:
    """Return the rest of what a process prints."""
    return process.communicate(timeout=60)[0].splitlines()


def wait_until_it_waits(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"


def test_two_processes_fetch_a_block_once(service: KeepstoreControls, tmp_path: Path) -> None:
    locator = service.store_block(BLOCK)
    service.always(Fault(hold=Stage.MID_BODY), method="GET")
    with reader(service, tmp_path, locator) as first:
        service.wait_held(1)
        with reader(service, tmp_path, locator) as second:
            wait_until_it_waits(second)
            service.release()

            assert lines(first) == [f"{locator[:32]} 0"]
            assert lines(second)[-1] == f"{locator[:32]} 1"
    assert service.counts()["GET"] == 1


def test_the_lock_of_a_killed_process_is_released(
    service: KeepstoreControls, tmp_path: Path
) -> None:
    locator = service.store_block(BLOCK)
    service.script(Fault(hold=Stage.MID_BODY), method="GET")
    with reader(service, tmp_path, locator) as first:
        service.wait_held(1)
        with reader(service, tmp_path, locator) as second:
            wait_until_it_waits(second)
            first.kill()

            assert lines(second)[-1] == f"{locator[:32]} 0"
    assert service.counts()["GET"] == 2


def test_a_process_that_hangs_does_not_delay_others(
    service: KeepstoreControls, tmp_path: Path
) -> None:
    locator = service.store_block(BLOCK)
    service.script(Fault(hold=Stage.MID_BODY), method="GET")
    with reader(service, tmp_path, locator) as first:
        service.wait_held(1)
        first.send_signal(signal.SIGSTOP)
        with reader(service, tmp_path, locator, patience=0.2) as second:
            assert lines(second)[-1] == f"{locator[:32]} 0"
        first.send_signal(signal.SIGCONT)
    assert service.counts()["GET"] == 2


def test_a_failed_fetch_releases_its_lock(service: KeepstoreControls, tmp_path: Path) -> None:
    locator = service.store_block(BLOCK)
    service.script(Fault(hold=Stage.BEFORE_STATUS, status=404), method="GET")
    with reader(service, tmp_path, locator) as first:
        service.wait_held(1)
        with reader(service, tmp_path, locator) as second:
            wait_until_it_waits(second)
            service.release()

            assert lines(second)[-1] == f"{locator[:32]} 0"
            assert first.wait(60) == 1
    assert service.counts()["GET"] == 2


def test_locks_are_of_one_block_and_released_on_close(tmp_path: Path) -> None:
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    one, two = FetchLocks(root), FetchLocks(root)
    os.close(root)

    assert one.try_lock(NAME)
    assert two.try_lock(NAME) is False
    assert two.try_lock("f" * 32)
    one.close()
    assert two.try_lock(NAME)
    assert one.try_lock(NAME) is None
    two.close()


def test_without_locks_there_is_no_wait() -> None:
    locks = FetchLocks(-1)
    claim = FetchClaim(locks, NAME)

    claim.wait(lambda: False, 1000)

    assert not claim.has_waited
    claim.release()


def test_locks_that_a_security_module_forbids_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fcntl, "fcntl", forbidden)
    root = os.open(tmp_path, os.O_RDONLY)
    locks = FetchLocks(root)

    assert locks.try_lock(NAME) is None
    locks.close()
    os.close(root)
