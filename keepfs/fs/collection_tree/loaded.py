"""LoadedCollection: the contents of a collection, with signatures that are renewed.

The content of a portable data hash never changes, but the signatures of its blocks expire: they
are fetched again after half of their lifetime, and when a service refuses one.

For the trio thread only, except the functions that block or name another thread.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import trio

from keepfs.collections.manifest_errors import ManifestError
from keepfs.collections.parsing import parse
from keepfs.fs.collection_tree.succession import Succession
from keepfs.fs.nodes import TIMELESS_NS, Metadata, directory_mode, file_mode
from keepfs.keep.errors import Cause, KeepReadError
from keepfs.messages import of_retention

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keepfs.collections.manifest import Manifest
    from keepfs.collections.records import CollectionRecord
    from keepfs.fs.bridge import AsyncBlocks
    from keepfs.fs.future import Future

_log = logging.getLogger(__name__)

#: Longest value of an extended attribute in Linux (XATTR_SIZE_MAX), in bytes.
MAX_XATTR = 65536
#: Bytes counted for each collection in addition to its manifest: its record, and objects of
#: fixed size. Guessed; it bounds the number of small collections.
_BASE_SIZE = 16 * 1024
#: Least seconds between two fetches of signatures: if a service still refuses after a fetch,
#: the signatures are not the cause. Guessed.
_RENEWAL_INTERVAL = 10.0
_SIGNED = re.compile(rb"(?<= )[0-9a-f]{32}\+[0-9]+\S*\+A[0-9a-f]{40}@([0-9A-Fa-f]{8})\S*")


class CollectionSource(Protocol):
    """A source of collections. Calls may block; any thread may make them."""

    def get(self, name: str, *, with_manifest: bool = True) -> CollectionRecord:
        """Return a collection by uuid or portable data hash.

        Raises:
            KeepRequestError: It couldn't be read; the cause has the reason.
        """


@dataclass(frozen=True, slots=True)
class BlockSignatures:
    """The signatures of a manifest's blocks.

    Attributes:
        locators: The signed locators.
        renewed_at: The time at which they were fetched, in seconds since 1970.
        expire_at: The time at which the first of them expires; infinite without any.
    """

    locators: frozenset[str]
    renewed_at: float
    expire_at: float

    @classmethod
    def of(cls, text: bytes) -> BlockSignatures:
        """Return the signatures in a manifest's text. Any thread may call it."""
        locators, expiries = set(), set()
        for found in _SIGNED.finditer(text):
            locators.add(found[0].decode())
            expiries.add(found[1])
        return cls(
            frozenset(locators),
            time.time_ns() / 1e9,
            min((float(int(each, 16)) for each in expiries), default=float("inf")),
        )

    @property
    def are_due(self) -> bool:
        """Whether half of their lifetime is over."""
        return time.time_ns() / 1e9 > (self.renewed_at + self.expire_at) / 2


class LoadedCollection:
    """The files of a collection, with the collection's description.

    Args:
        record: The collection, without its manifest.
        manifest: Its files.
        signatures: The signatures of the manifest's blocks.
        source: The source of newer signatures.
        blocks: Runs the requests in threads.
        owner: The user and group of files and folders.

    Attributes:
        record: As above.
        manifest: As above, with the latest signatures.
        file_metadata: The attributes of each file, except its size.
        folder_metadata: The attributes of each folder.
        succession: Which of its files are read one after another.
    """

    def __init__(
        self,
        record: CollectionRecord,
        manifest: Manifest,
        signatures: BlockSignatures,
        source: CollectionSource,
        blocks: AsyncBlocks,
        owner: Metadata,
    ) -> None:
        self.manifest = manifest
        self.succession = Succession()
        self._owner = owner
        self._source = source
        self._blocks = blocks
        self._signatures = signatures
        self._renewing: Future[tuple[Manifest, BlockSignatures]] | None = None
        self._tried_at = -float("inf")
        self.describe(record)

    @property
    def memory_size(self) -> int:
        """Bytes of memory that it takes, estimated from the manifest and the signed locators."""
        signed = self._signatures.locators
        one = next(iter(signed), "")
        return _BASE_SIZE + self.manifest.memory_size + len(signed) * (sys.getsizeof(one) + 32)

    def describe(self, record: CollectionRecord) -> None:
        """Set the description of the same content."""
        self.record = record
        modified = _time_ns(record.modified_at)
        uid, gid = self._owner.uid, self._owner.gid
        self.file_metadata = Metadata(file_mode(0o444), uid, gid, modified)
        self.folder_metadata = Metadata(directory_mode(0o555), uid, gid, modified)

    def xattrs(self) -> Mapping[str, str]:
        """Return `user.keep.…` of the collection."""
        record = self.record
        properties = json.dumps(record.properties) if record.properties else ""
        found = {
            "user.keep.pdh": record.portable_data_hash,
            "user.keep.uuid": record.uuid,
            "user.keep.collection": record.name,
            "user.keep.properties": properties if len(properties) <= MAX_XATTR else "",
        }
        return {name: value for name, value in found.items() if value}

    def renew_if_due(self) -> None:
        """Start to fetch signatures if half of their lifetime is over. Doesn't wait."""
        if self._signatures.are_due and self._may_ask():
            self._renew()

    async def renewed(self, refused: Manifest) -> bool:
        """Fetch signatures after a refusal; return whether a read may succeed now.

        Args:
            refused: The manifest that had the refused signature.
        """
        if self.manifest is refused and self._signatures.locators and self._may_ask():
            future = self._renew()
            try:
                await future.wait()
            except Exception as error:  # noqa: BLE001 - the refusal is what the reader gets
                _log.debug("not renewed: %s", error)
        return self.manifest is not refused

    def _may_ask(self) -> bool:
        return (
            self._renewing is not None or trio.current_time() - self._tried_at >= _RENEWAL_INTERVAL
        )

    def _renew(self) -> Future[tuple[Manifest, BlockSignatures]]:
        if self._renewing is None:
            name, source = self.record.portable_data_hash, self._source
            manifest = self.manifest
            self._tried_at = trio.current_time()
            self._renewing = self._blocks.ask(
                lambda: _signed_anew(source, name, manifest), self._note_renewal
            )
        return self._renewing

    def _note_renewal(self, future: Future[tuple[Manifest, BlockSignatures]]) -> None:
        self._renewing = None
        if future.result is not None:
            self.manifest, self._signatures = future.result
        else:
            _log.warning(
                "%s",
                of_retention.SIGNATURES_NOT_RENEWED(
                    name=self.record.portable_data_hash, reason=future.failure
                ),
            )


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of `load`.

    Attributes:
        record: The collection, without its manifest.
        manifest: Its files; None if the content is the known one.
        signatures: The signatures of the manifest's blocks; None without a manifest.
    """

    record: CollectionRecord
    manifest: Manifest | None = None
    signatures: BlockSignatures | None = None


def load(source: CollectionSource, name: str, known_hash: str = "") -> Loaded:
    """Fetch a collection and parse its manifest. Blocks; for threads.

    Args:
        source: The source of the collection.
        name: Uuid or portable data hash.
        known_hash: The portable data hash of the known content; the manifest of a collection
            that still has it is not fetched.

    Raises:
        KeepRequestError: It couldn't be read, or its manifest is invalid (cause CORRUPT).
    """
    if known_hash:
        described = source.get(name, with_manifest=False)
        if described.portable_data_hash == known_hash:
            return Loaded(described)
    record = source.get(name)
    text = record.manifest or b""
    try:
        manifest = parse(text)
    except ManifestError as error:
        raise KeepReadError(f"collection {name}: {error}", cause=Cause.CORRUPT) from error
    return Loaded(replace(record, manifest=None), manifest, BlockSignatures.of(text))


def _signed_anew(
    source: CollectionSource, name: str, manifest: Manifest
) -> tuple[Manifest, BlockSignatures]:
    """Fetch the signatures of a manifest. Blocks; for threads."""
    signatures = BlockSignatures.of(source.get(name).manifest or b"")
    return manifest.with_locators(signatures.locators), signatures


def _time_ns(text: str) -> int:
    """Return a time of the API server in nanoseconds since 1970; `TIMELESS_NS` if invalid."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return TIMELESS_NS
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    since = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (since // dt.timedelta(microseconds=1)) * 1000
