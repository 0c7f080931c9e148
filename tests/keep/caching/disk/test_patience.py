"""The patience of a disk cache: a fetch waits for a slow disk, and no name is lost."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import KeepBlockCache, KeepClient
from keepfs.keep.caching.disk.block_folder import BlockFolder
from keepfs.keep.caching.disk.disk_cache import DiskCache
from tests.fakes.threads import PATIENCE, Running, wait_for
from tests.keep.caching.disk.test_block_folder import block_of
from tests.keepstore import TEST_TOKEN, KeepstoreControls, Settings

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer


class SlowDisk:
    """Holds the first write of a block until `gate` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.begun = threading.Event(), threading.Event()
        add = BlockFolder.add

        def held(folder: BlockFolder, md5sum: str, block: Buffer) -> int:
            self.begun.set()
            wait_for(self.gate)
            return add(folder, md5sum, block)

        monkeypatch.setattr(BlockFolder, "add", held)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


def full(directory: Path, slow_disk: SlowDisk, patience: float) -> DiskCache:
    """Return a cache whose queue is full: one block is being written, two wait."""
    cache = DiskCache(directory, 10**9, least_free=0, patience=patience)
    cache.add(*block_of(1000, 0))
    wait_for(slow_disk.begun)
    cache.add(*block_of(1000, 1))
    cache.add(*block_of(1000, 2))
    return cache


def test_a_fetch_waits_for_the_disk_and_its_name_is_kept(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    with KeepstoreControls(Settings(ttl=1000)) as service:
        names = [service.store_block(bytes([it]) * 1000) for it in range(8)]

        def client_of(patience: float) -> KeepClient:
            disk = DiskCache(tmp_path, 10**9, least_free=0, patience=patience)
            cache = KeepBlockCache(disk=disk)
            return KeepClient(
                proxy=service.url, api_token=TEST_TOKEN, local_store="", block_cache=cache
            )

        with client_of(PATIENCE) as client:
            reads = [Running(partial(client.get, name)) for name in names]
            wait_for(slow_disk.begun)
            slow_disk.gate.set()
            for each in reads:
                each.result()
            disk = client.block_cache.disk
            assert disk is not None
            disk.flush()
            assert (disk.statistics().added, disk.statistics().skipped) == (8, 0)
        with client_of(0) as client:
            for name in names:
                client.get(name)

        assert service.counts() == {"GET": 8}


def test_closing_the_cache_wakes_a_fetch_that_waits(tmp_path: Path, slow_disk: SlowDisk) -> None:
    cache = full(tmp_path, slow_disk, 600)
    waiting = Running(lambda: cache.add(*block_of(1000, 3)))
    closing = Running(cache.close)

    waiting.result()

    slow_disk.gate.set()
    closing.result()
    assert cache.statistics().skipped == 1
    assert cache.statistics().added == 3


def test_an_interrupted_command_wakes_its_fetches(tmp_path: Path, slow_disk: SlowDisk) -> None:
    cache = full(tmp_path, slow_disk, 600)
    waiting = Running(lambda: cache.add(*block_of(1000, 3)))

    cache.end_waits()
    waiting.result()
    cache.add(*block_of(1000, 4))

    assert cache.statistics().skipped == 2
    slow_disk.gate.set()
    cache.flush()
    cache.add(*block_of(1000, 5))  # there is room: it needs no wait
    cache.close()
    assert cache.statistics().added == 4


def test_a_mount_does_not_wait(tmp_path: Path, slow_disk: SlowDisk) -> None:
    cache = full(tmp_path, slow_disk, 0)

    cache.add(*block_of(1000, 3))

    assert cache.statistics().skipped == 1
    slow_disk.gate.set()
    cache.close()
