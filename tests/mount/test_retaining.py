"""Keeping at the end of a mount: a failure is logged, and connections are closed."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, cast

import trio

from keepfs import stores
from keepfs.config.options import MountOptions, StoreOptions
from keepfs.fs.nodes import Metadata, directory_mode, file_mode
from keepfs.fs.upload.catalog import ROOT, Catalog
from keepfs.fs.upload.stored import StoredBytes
from keepfs.keep import KeepLocator, Receipt
from keepfs.mount.retaining import Keeping, renew
from keepfs.renewing_store import RenewingStore
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    Authority,
    KeepstoreControls,
    Listening,
    ServiceEntry,
)
from tests.keepstore.ports import connections_to

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from keepfs.fs.upload.drain import Drain


class _FailingDrain:
    """A drain without a deadline."""

    @property
    def deadline(self) -> float:
        raise RuntimeError("there is no deadline")

    async def hurried(self) -> None:
        await trio.sleep_forever()


def test_an_unexpected_failure_at_the_end_is_logged_and_not_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store_options = StoreOptions(local_store=tmp_path / "store")
    (tmp_path / "store").mkdir()
    options = MountOptions(mountpoint=tmp_path, store=store_options, state_dir=tmp_path)
    with (
        contextlib.closing(Catalog(tmp_path / "catalog.sqlite")) as catalog,
        stores.open_client(store_options) as client,
    ):
        catalog.add_root(Metadata(directory_mode(0o755), 0, 0, 0))
        store = RenewingStore(client, store_options)
        keeping = Keeping(options, catalog, store, 1)

        with caplog.at_level(logging.ERROR):
            trio.run(keeping.finish, cast("Drain", _FailingDrain()))

    (record,) = caplog.records
    assert record.message == (
        "bringing the collection of upload/ up to date failed unexpectedly [unexpected]"
    )
    assert record.exc_info is not None


def test_the_connections_of_a_renewal_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    with (
        KeepstoreControls() as keepstore,
        ApiControls(listening=Listening(tls=authority.certify())) as api,
    ):
        api.list_services([ServiceEntry.of(keepstore.url, 0)])
        for name, value in {
            "ARVADOS_API_HOST": api.host,
            "ARVADOS_API_TOKEN": TEST_TOKEN,
            "SSL_CERT_FILE": str(authority.bundle),
            "HOME": str(tmp_path),
        }.items():
            monkeypatch.setenv(name, value)
        options = MountOptions(
            mountpoint=tmp_path, store=StoreOptions(retries=0), state_dir=tmp_path
        )
        with contextlib.closing(Catalog(tmp_path / "catalog.sqlite")) as catalog:
            catalog.add_root(Metadata(directory_mode(0o755), 0, 0, 0))
            block = Receipt(KeepLocator(keepstore.store_block(b"foo")), 1, ())
            with catalog.change():
                owner = Metadata(file_mode(0o644), 0, 0, 0)
                catalog.add_file(ROOT, "file", owner, StoredBytes.of_blocks([block]))

        renew(options)

        assert len(api.collections()) == 1
        assert connections_to(int(api.host.rpartition(":")[2])) == 0
        assert connections_to(int(keepstore.url.rpartition(":")[2].rstrip("/"))) == 0
