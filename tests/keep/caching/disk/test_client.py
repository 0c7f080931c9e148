"""A client with the disk tier: blocks are kept after its end, and signatures still decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keepfs.keep.caching.cache import KeepBlockCache
from keepfs.keep.caching.disk.disk_cache import DiskCache
from keepfs.keep.client import KeepClient
from keepfs.keep.errors import KeepReadError
from keepfs.keep.locator import KeepLocator

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = bytes(range(256)) * 1000


def client_of(tmp_path: Path) -> KeepClient:
    disk = DiskCache(tmp_path / "cache", 10**8, least_free=0)
    return KeepClient(local_store=tmp_path / "store", block_cache=KeepBlockCache(disk=disk))


@pytest.fixture
def locator(tmp_path: Path) -> KeepLocator:
    """Return a block that is cached on the disk and no longer in the store."""
    (tmp_path / "store").mkdir()
    with client_of(tmp_path) as client:
        locator = KeepLocator(client.put(BLOCK, 1))
        client.get(str(locator))
    (tmp_path / "store" / locator.md5sum).unlink()
    return locator


def test_a_second_client_reads_what_the_first_one_fetched(
    tmp_path: Path, locator: KeepLocator
) -> None:
    with client_of(tmp_path) as client:
        assert client.get(str(locator)) == BLOCK
        disk = client.block_cache.disk
        assert disk is not None
        assert (disk.statistics().hits, disk.statistics().added) == (1, 0)


def test_a_part_is_read_without_the_rest_of_the_block(
    tmp_path: Path, locator: KeepLocator
) -> None:
    with client_of(tmp_path) as client:
        assert client.disk_parts is not None
        part = client.disk_parts.get_part(locator, 1000, 2000, len(BLOCK))

        assert part is not None
        assert bytes(part) == BLOCK[1000:2000]
        assert client.cached_block(locator) is None
        assert client.disk_parts.get_part(locator, 0, 1, len(BLOCK) + 1) is None


def test_a_damaged_block_is_fetched_again(tmp_path: Path, locator: KeepLocator) -> None:
    path = tmp_path / "cache" / "blocks-2" / locator.md5sum[:3] / locator.md5sum
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with client_of(tmp_path) as client:
        with pytest.raises(KeepReadError):
            client.get(str(locator))
        client.put(BLOCK, 1)
        assert client.get(str(locator)) == BLOCK
        disk = client.block_cache.disk
        assert disk is not None
        disk.flush()
        assert (disk.statistics().damaged, disk.statistics().added) == (1, 1)


def test_the_sdk_s_arguments_enable_the_disk_cache(tmp_path: Path) -> None:
    cache = KeepBlockCache(123456789, disk_cache=True, disk_cache_dir=str(tmp_path))

    assert cache.disk is not None
    assert cache.disk.directory == tmp_path
    assert cache.disk.statistics().maxsize == 123456789
    assert KeepBlockCache().disk is None
    automatic = KeepBlockCache(disk_cache=True, disk_cache_dir=str(tmp_path)).disk
    assert automatic is not None
    assert automatic.statistics().maxsize > 2**28  # that of the memory, which is no default
