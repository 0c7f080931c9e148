"""Every block store, the fakes included, keeps the contract of `Store`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keepfs.keep import KeepClient
from tests.contracts.block_store import BlockStoreContract
from tests.fakes.store import DictStore, FailingStore, GatedStore

if TYPE_CHECKING:
    from pathlib import Path

    from keepfs.fs.block_store import BlockStore


class TestKeepClientOverALocalStore(BlockStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> BlockStore:
        """Make a client of an empty directory."""
        return KeepClient(local_store=tmp_path / "blocks")


class TestDictStore(BlockStoreContract):
    @pytest.fixture
    def store(self) -> BlockStore:
        """Make an empty dict of blocks."""
        return DictStore()


class TestFailingStoreThatIsNotTold(BlockStoreContract):
    @pytest.fixture
    def store(self) -> BlockStore:
        """Make one that fails nothing."""
        return FailingStore(DictStore())


class TestGatedStoreWithOpenGates(BlockStoreContract):
    @pytest.fixture
    def store(self) -> BlockStore:
        """Make one that keeps nobody waiting."""
        return GatedStore(DictStore())
