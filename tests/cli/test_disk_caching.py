"""`keepfs warm` and `keepfs cache`."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from keepfs.cli import keepfs
from keepfs.collections.local_collections import LocalCollections
from keepfs.keep import KeepBlockCache, KeepClient
from keepfs.keep.caching.disk.disk_cache import DiskCache
from tests.fakes.threads import Running, wait_for, wait_until
from tests.keep.caching.disk.test_patience import SlowDisk
from tests.keepstore import TEST_TOKEN, KeepstoreControls, Settings
from tests.messages.provoking import assert_shows

if TYPE_CHECKING:
    from pathlib import Path

#: Calls that `keepfs warm` makes side by side.
AT_ONCE = 8


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


def put(store: Path, block: bytes) -> str:
    md5sum = hashlib.md5(block, usedforsecurity=False).hexdigest()
    (store / md5sum).write_bytes(block)
    return f"{md5sum}+{len(block)}"


def run(*words: str, given: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(keepfs, words, input=given)
    return done.exit_code, done.output


def test_blocks_are_warmed_verified_and_cleared(store: Path, tmp_path: Path) -> None:
    names = [put(store, bytes([number]) * 1000) for number in range(3)]
    directory = ("--disk-cache-dir", str(tmp_path / "cache"))
    manifest = f". {names[1]} {names[2]} 0:2000:file\n"

    warmed = run(
        *("warm", "--local-store", str(store), "--disk-cache", "1MiB", *directory),
        *("--from", "-", names[0]),
        given=manifest,
    )

    assert warmed == (0, "")
    assert "3 blocks" in run("cache", *directory)[1]
    kept = tmp_path / "cache" / "blocks-2" / names[0][:3] / names[0][:32]
    kept.write_bytes(b"x" + kept.read_bytes()[1:])
    code, text = run("cache", "verify", *directory)
    assert code == 1
    assert "2 blocks" in text
    assert f"damaged, removed: {names[0][:32]}" in text
    assert_shows(text, "disk-cache-file-removed")
    assert "2 blocks" in run("cache", "clear", *directory)[1]
    assert "0 blocks" in run("cache", "stat", *directory)[1]


def test_a_collection_is_warmed_by_its_hash(store: Path, tmp_path: Path) -> None:
    names = [put(store, bytes([number]) * 1000) for number in range(3)]
    record = LocalCollections(store).put(f". {names[1]} {names[2]} 0:2000:file\n")
    words = ("--local-store", str(store), "--disk-cache", "1MiB")
    directory = ("--disk-cache-dir", str(tmp_path / "cache"))

    # A name of a block has the form of a collection's hash.
    assert run("warm", *words, *directory, record.portable_data_hash, names[0]) == (0, "")

    assert "3 blocks" in run("cache", *directory)[1]
    code, text = run("warm", *words, *directory, "zzzzz-4zz18-000000000000000")
    assert code == 1
    assert "zzzzz-4zz18-000000000000000" in text
    code, text = run("warm", *words, *directory, str(store), names[1])
    assert code == 1
    assert "isn't in a keepfs mount" in text
    assert run("warm", *words, *directory, "neither")[0] == 2


def test_a_source_that_cannot_be_warmed_is_an_error(store: Path, tmp_path: Path) -> None:
    name = put(store, bytes(1000))
    local = ("warm", "--local-store", str(store), "--disk-cache-dir", str(tmp_path / "cache"))

    assert "the disk cache is off" in run(*local, name)[1]
    assert "give locators" in run(*local, "--disk-cache", "1M")[1]
    code, text = run(*local, "--disk-cache", "100", name)
    assert code == 1
    assert "1 of 1 blocks aren't in the disk cache" in text
    assert run(*local, "--disk-cache", "1M", "0" * 32 + "+5")[0] == 1


@pytest.mark.parametrize("action", ["stat", "verify", "clear"])
def test_keepfs_cache_makes_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "other").mkdir()

    code, text = run("cache", action, "--disk-cache-dir", str(tmp_path / "typo" / "x"))

    assert code == 1
    assert f"there is no directory {tmp_path / 'typo' / 'x'}" in text
    assert_shows(text, "disk-cache-missing")
    for words in ((), ("--disk-cache-dir", str(tmp_path / "other"))):
        code, text = run("cache", action, *words)
        assert code == 0
        assert "0 blocks, 0 B" in text
    assert [str(it.relative_to(tmp_path)) for it in tmp_path.rglob("*")] == ["other"]


def test_a_folder_that_cannot_be_listed_is_an_error(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir, locked = os.scandir, tmp_path / "sources" / "locked"
    locked.mkdir(parents=True)

    def refusing(path: str) -> object:
        if path == str(locked):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may list any folder
    words = ("--local-store", str(store), "--disk-cache", "1MiB")
    directory = ("--disk-cache-dir", str(tmp_path / "cache"))
    name = put(store, bytes(1000))

    for source in (locked.parent, locked):
        code, text = run("warm", *words, *directory, str(source), name)
        assert code == 1
        assert f"{locked}: Permission denied" in text
        assert "has no blocks" not in text
    assert "1 blocks" in run("cache", *directory)[1]


def test_a_source_without_blocks_is_said_to_have_none(store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    words = ("--local-store", str(store), "--disk-cache", "1MiB")
    directory = ("--disk-cache-dir", str(tmp_path / "cache"))
    record = LocalCollections(store).put("")

    for source in (str(tmp_path / "empty"), record.portable_data_hash):
        code, text = run("warm", *words, *directory, source)
        assert code == 0
        assert f"{source} has no blocks" in text
        assert_shows(text, "nothing-to-warm")


def test_what_cannot_be_listed_or_removed_is_an_error(store: Path, tmp_path: Path) -> None:
    name = put(store, bytes(1000))
    words = ("--disk-cache-dir", str(tmp_path / "cache"))
    run("warm", "--local-store", str(store), "--disk-cache", "1MiB", *words, name)
    folder = tmp_path / "cache" / "blocks-2"
    (folder / "ccc").touch()
    for number in range(7):
        (folder / "ddd" / f"ddd{number:029}").mkdir(parents=True)

    for action in ("stat", "verify", "clear"):
        code, text = run("cache", action, *words)
        assert code == 1
        assert ", 1 not listed" in text
        assert f"can't list {folder / 'ccc'}: Not a directory" in text
        assert_shows(text, "disk-cache-unreached")

    code, text = run("cache", "clear", *words)
    assert ", 7 not removed" in text
    assert "and 2 more (--json lists all): Is a directory" in text
    code, text = run("cache", "clear", *words, "--json")
    assert len(json.loads(text.splitlines()[0])["failed"]) == 8


def test_what_was_warmed_is_read_without_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_disk = SlowDisk(monkeypatch)
    (tmp_path / "token").write_text(TEST_TOKEN)
    with KeepstoreControls(Settings(ttl=1000)) as service:
        names = [service.store_block(bytes([number]) * 1000) for number in range(2 * AT_ONCE)]

        def open_gate_when_all_have_fetched() -> None:
            wait_until(lambda: service.counts().get("GET", 0) >= AT_ONCE)
            slow_disk.gate.set()

        opening = Running(open_gate_when_all_have_fetched)
        warmed = run(
            *("warm", "--keep-services", service.url, "--token-file", str(tmp_path / "token")),
            *("--disk-cache", "1MiB", "--disk-cache-dir", str(tmp_path / "cache"), *names),
        )
        opening.result()
        assert warmed == (0, "")
        cache = KeepBlockCache(disk=DiskCache(tmp_path / "cache", 2**20, least_free=0))
        with KeepClient(
            proxy=service.url, api_token=TEST_TOKEN, local_store="", block_cache=cache
        ) as client:
            for name in names:
                client.get(name)

        assert service.counts() == {"GET": len(names)}


def test_an_interrupt_does_not_wait_for_a_slow_disk(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_disk = SlowDisk(monkeypatch)
    main, others = threading.main_thread().ident, set(threading.enumerate())
    assert main is not None
    names = [put(store, bytes([number]) * 1000) for number in range(2 * AT_ONCE)]

    def fetching() -> int:
        pool = [it for it in threading.enumerate() if it.name.startswith("ThreadPoolExecutor")]
        return len(set(pool) - others)

    def interrupt() -> None:
        wait_for(slow_disk.begun)
        wait_until(lambda: fetching() == AT_ONCE)
        signal.pthread_kill(main, signal.SIGINT)
        wait_until(lambda: not fetching())  # the disk still hangs
        slow_disk.gate.set()

    # In the background of a shell the tests inherit an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupting = Running(interrupt)
        code, _ = run(
            *("warm", "--local-store", str(store), "--disk-cache", "1MiB"),
            *("--disk-cache-dir", str(tmp_path / "cache"), *names),
        )
    finally:
        signal.signal(signal.SIGINT, before)

    interrupting.result()
    assert code == 1  # of CliRunner; 130 outside the tests
