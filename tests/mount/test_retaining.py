"""Keeping at the end of a mount: a failure is logged, and the drain goes on."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, cast

import trio

from keepfs import stores
from keepfs.config.options import MountOptions, StoreOptions
from keepfs.fs.nodes import Metadata, directory_mode
from keepfs.fs.upload.catalog import Catalog
from keepfs.mount.retaining import Keeping
from keepfs.renewing_store import RenewingStore

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
