"""Accepted names: a later process sends no request for them, and no other name is answered."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import Cause, KeepBlockCache, KeepClient, KeepLocator, KeepReadError
from keepfs.keep.caching.disk import accepted_names
from keepfs.keep.caching.disk.accepted_names import record_of
from keepfs.keep.caching.disk.block_folder import BlockFolder
from keepfs.keep.caching.disk.disk_cache import DiskCache
from tests.keepstore import TEST_TOKEN, KeepstoreControls, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK = bytes(range(256)) * 1000
OTHER_TOKEN = TEST_TOKEN[:-1] + ("a" if TEST_TOKEN[-1] != "a" else "b")


@pytest.fixture
def service() -> Iterator[KeepstoreControls]:
    with KeepstoreControls(Settings(ttl=1000)) as it:
        yield it


def client_of(service: KeepstoreControls, directory: Path, token: str = TEST_TOKEN) -> KeepClient:
    cache = KeepBlockCache(disk=DiskCache(directory, 10**8, least_free=0))
    return KeepClient(proxy=service.url, api_token=token, local_store="", block_cache=cache)


def cause_of_refusal(
    service: KeepstoreControls, directory: Path, locator: str, token: str = TEST_TOKEN
) -> Cause:
    """Return why a new client can't read a name, or a part of its block."""
    with client_of(service, directory, token) as client:
        with pytest.raises(KeepReadError) as caught:
            client.get(locator)
        name = KeepLocator(locator)
        assert client.disk_parts is not None
        if not name.permission_expired():
            with pytest.raises(KeepReadError):
                client.disk_parts.get_part(name, 0, 10, len(BLOCK))
        else:
            assert client.disk_parts.get_part(name, 0, 10, len(BLOCK)) is None
    return caught.value.cause


def test_a_second_process_sends_no_request(service: KeepstoreControls, tmp_path: Path) -> None:
    locator = service.store_block(BLOCK)
    for _ in range(3):
        with client_of(service, tmp_path) as client:
            assert client.get(locator) == BLOCK
            assert client.block_cache.disk is not None
            client.block_cache.disk.flush()
            assert client.disk_parts is not None
            part = client.disk_parts.get_part(KeepLocator(locator), 5, 10, len(BLOCK))
            assert part is not None
            assert bytes(part) == BLOCK[5:10]

    assert service.counts() == {"GET": 1}


def test_a_name_accepted_by_head_is_kept_too(service: KeepstoreControls, tmp_path: Path) -> None:
    first = service.store_block(BLOCK)
    service.set_clock(time.time_ns() - 100 * 10**9)
    second = service.store_block(BLOCK)
    service.set_clock(None)
    assert first != second
    for name in (first, second, first, second):
        with client_of(service, tmp_path) as client:
            assert client.get(name) == BLOCK

    assert service.counts() == {"GET": 1, "HEAD": 1}


def test_a_name_that_was_not_accepted_is_refused(
    service: KeepstoreControls, tmp_path: Path
) -> None:
    locator = service.store_block(BLOCK)
    with client_of(service, tmp_path) as client:
        assert client.get(locator) == BLOCK
    head, _, signature = locator.partition("+A")
    forged = f"{head}+A{'0' * 40}{signature[40:]}"
    later = f"{head}+A{signature[:41]}7fffffff"

    for name in (forged, later, head):
        assert cause_of_refusal(service, tmp_path, name) is Cause.DENIED
    assert cause_of_refusal(service, tmp_path, locator, OTHER_TOKEN) is Cause.DENIED


def test_an_expired_name_is_refused(service: KeepstoreControls, tmp_path: Path) -> None:
    service.set_clock(time.time_ns() - 998 * 10**9)
    locator = service.store_block(BLOCK)
    service.set_clock(None)
    valid = service.store_block(BLOCK)
    with client_of(service, tmp_path) as client:
        client.get(valid)
        disk = client.block_cache.disk
        assert disk is not None
        disk.flush()
        record = record_of(KeepLocator(valid), TEST_TOKEN)
        assert disk.accepts(valid[:32], record)
    while not KeepLocator(locator).permission_expired():
        time.sleep(0.05)

    assert record_of(KeepLocator(locator), TEST_TOKEN) is None
    assert cause_of_refusal(service, tmp_path, locator) is Cause.DENIED


def test_a_refusal_removes_the_record(service: KeepstoreControls, tmp_path: Path) -> None:
    locator = service.store_block(BLOCK)
    with client_of(service, tmp_path) as client:
        client.get(locator)
    file = tmp_path / "blocks-2" / locator[:3] / locator[:32]
    shutil.copy(file, tmp_path / "kept")
    file.unlink()
    service.configure(key="another key")
    with client_of(service, tmp_path) as client, pytest.raises(KeepReadError):
        client.get(locator)
    shutil.copy(tmp_path / "kept", file)

    assert cause_of_refusal(service, tmp_path, locator) is Cause.DENIED


def test_neither_tokens_nor_signatures_can_be_read(
    service: KeepstoreControls, tmp_path: Path
) -> None:
    locator = service.store_block(BLOCK)
    with client_of(service, tmp_path) as client:
        client.get(locator)
    file = tmp_path / "blocks-2" / locator[:3] / "names"

    content = file.read_bytes()

    assert len(content) == 20
    assert file.stat().st_mode & 0o777 == 0o600
    signature = locator.partition("+A")[2][:40]
    assert bytes.fromhex(signature)[:8] not in content


def test_a_full_or_cut_file_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepted_names, "_MOST", 10 * 20)
    folder = BlockFolder(tmp_path)
    folder.add("0" * 32, b"x")
    expired = bytes(16) + (5).to_bytes(4, "little")
    records = [bytes([number]) * 16 + b"\xff" * 4 for number in range(1, 30)]
    file = tmp_path / "blocks-2" / "000" / "names"
    folder.names.add("0" * 32, expired)
    file.write_bytes(file.read_bytes() + b"cut")

    for each in records:
        folder.names.add("0" * 32, each)
        assert folder.names.has("0" * 32, each)
        assert file.stat().st_size <= 10 * 20

    assert not folder.names.has("0" * 32, expired)
    assert not folder.names.has("0" * 32, records[0])
    folder.names.remove("0" * 32, records[-1])
    assert not folder.names.has("0" * 32, records[-1])
    assert sorted(it.name for it in file.parent.iterdir()) == ["0" * 32, "names"]
    folder.remove_names()
    assert not file.exists()
    folder.close()
