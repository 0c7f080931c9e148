"""A source of collections for tests: manifests in a dict, signed as a cluster signs them."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from keepfs.collections.portable import portable_data_hash
from keepfs.collections.records import CollectionRecord
from keepfs.keep import NotFoundError
from tests.fakes.threads import wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keepfs.keep import KeepRequestError

_LOCATOR = re.compile(r"(?<= )[0-9a-f]{32}\+[0-9]+")


@dataclass
class DictCollections:
    """Collections in a dict. Any thread may call it.

    Attributes:
        records: By uuid or portable data hash, with unsigned manifests.
        calls: What was asked for: the name, and whether with its manifest.
        signature: The signature of all locators from now on; empty for none.
        ttl: Seconds for which signatures are good.
        failure: Raised by all calls while it is set.
        gate: Calls wait until it is set.
    """

    records: dict[str, CollectionRecord] = field(default_factory=dict)
    calls: list[tuple[str, bool]] = field(default_factory=list)
    signature: str = ""
    ttl: float = 3600.0
    failure: KeepRequestError | None = None
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def add(
        self,
        manifest: str,
        uuid: str = "",
        name: str = "",
        properties: Mapping[str, object] | None = None,
        modified_at: str = "2026-01-02T03:04:05.678901000Z",
    ) -> str:
        """Take a collection; it is found by its hash and by its uuid. Return the hash."""
        found = portable_data_hash(manifest)
        record = CollectionRecord(
            uuid=uuid,
            portable_data_hash=found,
            manifest=manifest.encode(),
            name=name,
            properties=properties or {},
            modified_at=modified_at,
        )
        self.records[found] = record
        if uuid:
            self.records[uuid] = record
        return found

    def get(self, name: str, *, with_manifest: bool = True) -> CollectionRecord:
        """Return a collection, its manifest signed."""
        self.calls.append((name, with_manifest))
        wait_for(self.gate)
        if self.failure is not None:
            raise self.failure.fresh()
        record = self.records.get(name)
        if record is None:
            raise NotFoundError(f"no collection {name}")
        if not with_manifest:
            return replace(record, manifest=None)
        text = (record.manifest or b"").decode()
        if self.signature:
            hint = f"+A{self.signature}@{int(time.time_ns() / 1e9 + self.ttl):08x}"
            text = _LOCATOR.sub(lambda found: found[0] + hint, text)
        return replace(record, manifest=text.encode())
