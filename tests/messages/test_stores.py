"""Provokes the messages about blocks, services, the API server and the token."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keepfs import renewing_store, stores
from keepfs.config.options import StoreOptions
from keepfs.fs.failure_text import failure_text
from keepfs.keep.caching.disk.block_folder import BlockFolder
from keepfs.keep.caching.disk.disk_cache import DiskCache
from keepfs.keep.client import KeepClient
from keepfs.keep.errors import KeepRequestError
from keepfs.keep.locator import KeepLocator
from keepfs.keep.services.api import ApiError
from tests.keepstore import (
    TEST_TOKEN,
    Fault,
    KeepproxyControls,
    ProxySettings,
    ServiceEntry,
    Stage,
    Store,
)
from tests.messages.provoking import provokes
from tests.messages.test_commands import said

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from tests.cli.test_cli import Shell
    from tests.keepstore import ApiControls, KeepstoreControls

pytestmark = pytest.mark.slow

MISSING = f"{'0' * 32}+3"
NOWHERE = "http://127.0.0.1:1"


def checked(options: StoreOptions) -> str:
    """Check services as a mount does; return why they can't be used."""
    with (
        stores.open_client(options) as client,
        pytest.raises((stores.StoreError, ApiError)) as caught,
    ):
        stores.check_services(client, options)
    return str(caught.value)


@provokes("token-refused")
def test_token_refused(shell: Shell, api: ApiControls) -> str:
    api.always(Fault(status=401), target="users/current")
    return said(shell, "put", "/dev/null")


@provokes("token-renewal-failed")
def test_token_renewal_failed(
    over: Shell, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> str:
    assert over is not None
    (tmp_path / "token").write_text(TEST_TOKEN)
    options = StoreOptions(token_file=tmp_path / "token")
    with stores.open_client(options) as client:
        (tmp_path / "token").write_text("a\0b")
        renewing_store.RenewingStore(client, options).renew()
        (tmp_path / "token").unlink()
        assert not renewing_store.RenewingStore(client, options).renew()
    return caplog.text


@provokes("token-maybe-refused", "denied")
def test_token_maybe_refused(
    over: Shell, keepstore: KeepstoreControls, caplog: pytest.LogCaptureFixture
) -> str:
    locator = keepstore.store_block(b"foo", token="another")  # noqa: S106 - it opens nothing
    options = StoreOptions(retries=0)
    with (
        stores.open_client(options) as client,
        caplog.at_level(logging.WARNING),
        pytest.raises(KeepRequestError),
    ):
        renewing_store.RenewingStore(client, options).get_block(KeepLocator(locator))
    return caplog.text + said(over, "get", locator)


@provokes("bad-argument")
def test_bad_argument(over: Shell, tmp_path: Path) -> str:
    (tmp_path / "token").touch()
    return said(over, "get", "--token-file", tmp_path / "token", MISSING)


@provokes("no-token")
def test_no_token(shell: Shell) -> str:
    del shell.environment["KEEP_LOCAL_STORE"]
    shell.environment["ARVADOS_API_HOST"] = "keep.invalid"
    shell.home.joinpath("mnt").mkdir()
    texts = [
        said(shell, *words, expect=2)
        for words in (
            ("get", MISSING),
            ("mount", shell.home / "mnt"),
            ("mount", "--foreground", shell.home / "mnt"),
        )
    ]
    assert all("[no-token]" in each for each in texts), texts
    words = [sys.executable, "-m", "keepfs", "check"]
    done = subprocess.run(words, capture_output=True, check=False, env=shell.environment)
    assert (done.returncode, b"[no-token]" in done.stdout) == (1, True)
    return "\n".join(texts)


@provokes("bad-services")
def test_bad_services(shell: Shell) -> str:
    del shell.environment["KEEP_LOCAL_STORE"]
    shell.home.joinpath("mnt").mkdir()
    texts = [
        said(shell, "mount", "--keep-services", "foo", shell.home / "mnt", expect=2),
        said(shell, "get", MISSING, expect=2, ARVADOS_KEEP_SERVICES="http://u:secret@foo/"),
        said(shell, "get", MISSING, expect=2, ARVADOS_KEEP_PROXY="foo"),
    ]
    for each, name in zip(
        texts,
        ("--keep-services from the command line", "ARVADOS_KEEP_SERVICES", "ARVADOS_KEEP_PROXY"),
        strict=True,
    ):
        assert name in each
        assert "secret" not in each
    assert "'foo'" in texts[0]
    return "\n".join(texts)


@provokes("api-unreachable")
def test_api_unreachable(api: ApiControls) -> str:
    api.always(Fault(status=500), target="users/current")
    return checked(StoreOptions(retries=0))


@provokes("setup-failed")
def test_setup_failed(api: ApiControls) -> str:
    api.always(Fault(status=500), target="keep_services")
    return checked(StoreOptions(retries=0))


@provokes("no-service-answers")
def test_no_service_answers(over: Shell) -> str:
    assert over is not None
    return checked(StoreOptions(retries=0, keep_services=NOWHERE))


@provokes("proxy-refuses")
def test_proxy_refuses(
    over: Shell,
    keepstore: KeepstoreControls,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> str:
    assert over is not None
    monkeypatch.setenv("ARVADOS_API_TOKEN", "v2/zzzzz-gj3su-000000000000000/wrong")
    with KeepproxyControls(
        ProxySettings(stores=[Store("zzzzz-bi6l4-000000000000000", keepstore.url)])
    ) as proxy:
        options = StoreOptions(retries=0, keep_services=proxy.url)
        with stores.open_client(options) as client, caplog.at_level(logging.WARNING):
            stores.check_services(client, options)
    return caplog.text


@provokes("no-storage-class")
def test_no_storage_class(shell: Shell, api: ApiControls) -> str:
    api.configure(storage_classes={"default": {"Default": True}})
    return said(shell, "put", "--storage-classes", "nosuch", "-")


@provokes("local-store-failed")
def test_local_store_failed(tmp_path: Path) -> str:
    (tmp_path / "file").touch()
    return checked(StoreOptions(local_store=tmp_path / "file" / "x"))


@provokes("disk-cache-failed", "disk-cache-damaged")
def test_a_disk_cache_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> str:
    (tmp_path / "file").touch()
    (tmp_path / "cache").mkdir()
    with caplog.at_level(logging.WARNING):
        DiskCache(tmp_path / "file", 1000).close()
        cache = DiskCache(tmp_path / "cache", 1000, least_free=0)
        cache.add("0" * 32, b"not what its name says")
        cache.flush()
        (file,) = (tmp_path / "cache").rglob("0" * 32)
        file.write_bytes(b"damage")
        assert cache.read("0" * 32) is None
        cache.close()
    return caplog.text


@provokes("disk-cache-shrunk")
def test_a_quota_that_is_used_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> str:
    cache = DiskCache(tmp_path, 10**6, least_free=0)
    cache.add("0" * 32, b"a block that is evicted")
    cache.flush()
    monkeypatch.setattr(BlockFolder, "add", quota_after(1, BlockFolder.add))
    with caplog.at_level(logging.WARNING):
        cache.add("1" * 32, b"one that the quota refuses")
        cache.flush()
    assert (cache.has("0" * 32), cache.has("1" * 32)) == (False, True)
    cache.close()
    return caplog.text


def quota_after(
    refusals: int, add: Callable[[BlockFolder, str, Buffer], int]
) -> Callable[[BlockFolder, str, Buffer], int]:
    """Return an `add` that a quota refuses at first."""
    left = refusals

    def limited(folder: BlockFolder, md5sum: str, block: Buffer) -> int:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return add(folder, md5sum, block)

    return limited


@provokes("disk-cache-incomplete")
def test_a_disk_cache_too_small_to_warm(shell: Shell, tmp_path: Path) -> str:
    locator = KeepClient(local_store=shell.environment["KEEP_LOCAL_STORE"]).put(bytes(1000), 1)
    options = ("--disk-cache", "100", "--disk-cache-dir", tmp_path / "cache")
    return said(shell, "warm", *options, locator)


@provokes("needs-api-server", "other-cluster")
def test_collections_of_other_clusters(over: Shell, monkeypatch: pytest.MonkeyPatch) -> str:
    assert over is not None
    texts = []
    for host in ("", "here"):
        monkeypatch.setenv("ARVADOS_API_HOST", host)
        with (
            pytest.raises(stores.StoreError) as caught,
            stores.open_collections("cluster:there", None),
        ):
            pass
        texts.append(str(caught.value))
    return "\n".join(texts)


@provokes("not-found")
def test_not_found(shell: Shell) -> str:
    return said(shell, "get", MISSING)


@provokes("timed-out")
def test_timed_out(over: Shell, keepstore: KeepstoreControls) -> str:
    assert over is not None
    keepstore.always(Fault(hold=Stage.BEFORE_STATUS), method="GET")
    locator = keepstore.store_block(b"foo")
    with (
        KeepClient(
            proxy=keepstore.url,
            api_token=TEST_TOKEN,
            local_store="",
            timeout=(1, 0.2, 1),
            proxy_timeout=(1, 0.2, 1),
        ) as client,
        pytest.raises(KeepRequestError) as caught,
    ):
        client.get(locator)
    return failure_text(caught.value)


@provokes("unreachable")
def test_unreachable(over: Shell) -> str:
    return said(over, "get", MISSING, ARVADOS_KEEP_SERVICES=NOWHERE)


@provokes("corrupt")
def test_corrupt(over: Shell, keepstore: KeepstoreControls) -> str:
    locator = keepstore.store_block(b"foo")
    keepstore.always(Fault(body=b"bar"), method="GET")
    return said(over, "get", locator)


@provokes("services-full")
def test_services_full(over: Shell, keepstore: KeepstoreControls) -> str:
    keepstore.always(Fault(status=507), method="PUT")
    return said(over, "put", "/dev/null")


@provokes("services-read-only")
def test_services_read_only(shell: Shell, api: ApiControls, keepstore: KeepstoreControls) -> str:
    api.list_services([ServiceEntry.of(keepstore.url, 0, read_only=True)])
    return said(shell, "put", "/dev/null")


@provokes("too-few-copies", "copies-missing")
def test_too_few_copies(over: Shell, keepstore: KeepstoreControls) -> str:
    locator = keepstore.store_block(b"foo")
    return said(over, "put", "--copies", "3", "/dev/null") + said(
        over, "verify", "--copies", "3", locator
    )


@provokes("request-failed")
def test_request_failed(over: Shell, keepstore: KeepstoreControls) -> str:
    keepstore.always(Fault(status=400), method="PUT")
    return said(over, "put", os.fspath(Path("/dev/null")))
