"""Mirror: the stored tree of a mount, as one or several collections of its user.

Every call blocks. It is for one thread at a time, except for `fetch_during_update` and
`uuid_of`. A collection is created empty, recorded in the catalog, and filled by the first
update. So a refusal to create is never mistaken for a refusal of the contents, and a crash in
between leaves a collection that is found by its name and property.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keepfs.collections.names import is_uuid
from keepfs.collections.remote_errors import (
    ChangedMeanwhileError,
    CollectionNotFoundError,
    ForbiddenError,
    InvalidRequestError,
    NameTakenError,
    TooLargeError,
)
from keepfs.collections.wishes import CollectionAttributes, Expected
from keepfs.fs.upload.snapshot import SnapshotManifest, open_snapshot
from keepfs.messages import of_retention
from keepfs.retention import parts, signatures
from keepfs.retention.ledger import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keepfs.collections.manifest import Manifest
    from keepfs.collections.records import CollectionRecord
    from keepfs.collections.remote_collections import RemoteCollections
    from keepfs.fs.upload.snapshot import StoredNode
    from keepfs.retention.ledger import Ledger

_log = logging.getLogger(__name__)

#: The property of a collection that has the id of its mount.
PROPERTY = "keepfs:mount"
#: Names that are tried for one collection.
_MOST_NAMES = 100
#: Bytes below which the limit of a request is not halved: the server refuses something else.
_LEAST_LIMIT = 1024


class CreationRefusedError(Exception):
    """The token may not create collections; the text is the server's reason."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """The requested attributes of a mount's collections.

    Attributes:
        name: The name of the first collection, or the uuid of an existing one.
        copies: Copies of each block; None: the cluster's default.
        classes: Storage classes; None: the cluster's default.
    """

    name: str
    copies: int | None = None
    classes: tuple[str, ...] | None = None


class Mirror:
    """Brings the collections of a mount up to date, and reads their signatures.

    Each call but `uuid_of` raises a `CollectionError` if the API server refuses the request
    or can't be reached, a `CatalogError` if the catalog can't be read, and what `save` raises.

    Args:
        remote: The API server's collections.
        catalog: The path of the mount's catalog; read through a separate connection.
        ledger: The record of the collections, from the catalog.
        save: Records a ledger in the catalog, from this thread. May raise `OSError`.
        wishes: Names, copies and storage classes of the collections.
    """

    def __init__(
        self,
        remote: RemoteCollections,
        catalog: Path,
        ledger: Ledger,
        save: Callable[[Ledger], None],
        wishes: Wishes,
    ) -> None:
        self._remote = remote
        self._catalog = catalog
        self.ledger = ledger
        self._save = save
        self._wishes = wishes
        self._limit: int | None = None
        self._left_out: set[str] = set()

    def update(self) -> bool:
        """Bring all collections up to date; return whether any was changed.

        The records of unchanged collections are requested, too: another client may have
        changed them. A collection that is too large for a request is divided: a proxy before
        the API server may have a lower limit, and the sizes of manifests are estimated.

        Raises:
            CreationRefusedError: The token may not create collections.
        """
        while True:
            try:
                return self._bring_all(self._pieces())
            except TooLargeError as error:
                limit = self._limit or 0
                if limit < 2 * _LEAST_LIMIT:
                    self._limit = None  # the next update asks for the server's limit again
                    raise
                self._limit = limit // 2
                _log.info("%s; the collections get %d bytes at most", error, self._limit)

    def _bring_all(self, pieces: list[_Part]) -> bool:
        if not self.ledger.parts and not any(piece.has_files for piece in pieces):
            return False
        is_changed = False
        while pieces:
            # The last part first: entries cut off a part are in their new collection before
            # they are removed from the old one.
            is_changed |= self._bring(pieces.pop())
        return is_changed

    def fetch(self) -> signatures.Signatures:
        """Return fresh signatures for the blocks of all collections, by one request for each.

        A collection that doesn't exist any more is removed from the ledger: the next update
        creates another one.
        """
        return self._fetched(is_noting=True)

    def fetch_during_update(self) -> signatures.Signatures:
        """Do the same without changing the ledger: another thread may be in `update`."""
        return self._fetched(is_noting=False)

    def _fetched(self, *, is_noting: bool) -> signatures.Signatures:
        found = signatures.Signatures()
        for part in self.ledger.parts:
            if not part.uuid:
                continue
            try:
                record = self._remote.get(part.uuid)
            except CollectionNotFoundError:
                if is_noting:
                    self._forget(part)
                continue
            found.take_manifest(record.manifest or b"")
            if is_noting:
                self._note_ttl(record)
        return found

    def uuid_of(self, number: int) -> str:
        """Return the collection that has, or will have, an entry; empty if there is none yet."""
        known = self.ledger.parts
        if not known:
            return ""
        return known[parts.part_of([part.first for part in known], number)].uuid

    # --- the tree -------------------------------------------------------------

    def _pieces(self) -> list[_Part]:
        """Return what each collection is to have: one pass over the catalog, two after a cut."""
        firsts = [part.first for part in self.ledger.parts] or [0]
        if self._limit is None:
            self._limit = parts.most_text(self._remote.max_request_size())
        sizes: list[tuple[int, int]] = []

        def measured() -> Iterator[StoredNode]:
            for node in self._nodes():
                sizes.append((node.number, parts.text_size(node)))
                yield node

        pieces = self._split(firsts, measured())
        fitting = parts.cut(firsts, sizes, self._limit)
        if fitting != firsts:
            del pieces, sizes[:]
            pieces = self._split(fitting, self._nodes())
        return pieces

    def _split(self, firsts: list[int], nodes: Iterator[StoredNode]) -> list[_Part]:
        made = [SnapshotManifest() for _ in firsts]
        for node in nodes:
            made[parts.part_of(firsts, node.number)].add(node)
        for path, reason in (each for one in made for each in one.left_out):
            if path not in self._left_out and "symbolic links" not in reason:
                self._left_out.add(path)
                _log.warning("%s", of_retention.NOT_RETAINED(path=path, reason=reason))
        made.reverse()
        return [_Part(first, made.pop().build()) for first in firsts]  # a builder at a time

    def _nodes(self) -> Iterator[StoredNode]:
        # The server refuses a manifest with an expired signature, so such files are left out.
        now = signatures.wall_clock()
        with open_snapshot(self._catalog) as nodes:
            for node in nodes:
                if not any(
                    signatures.is_expired(each.locator, now) for each in node.stored.receipts()
                ):
                    yield node

    # --- one collection ---------------------------------------------------------

    def _bring(self, piece: _Part) -> bool:
        """Bring one collection up to date; return whether it was changed."""
        wanted = piece.manifest.portable_data_hash()
        part = self.ledger.part_at(piece.first)
        if part.uuid:
            try:
                record = self._remote.get(part.uuid, with_manifest=False)
            except CollectionNotFoundError:
                part = self._forget(part)
            else:
                part = self._recognized(part, record, wanted)
        if not part.uuid:
            part = self._created(part)
        if part.hash == wanted:
            return False
        self._put(part := dataclasses.replace(part, pending=wanted))
        try:
            self._remote.update(
                part.uuid, expected=Expected(part.hash), manifest=piece.manifest.text()
            )
        except ChangedMeanwhileError:
            return self._bring(piece)  # recognize or replace the changed collection
        self._put(dataclasses.replace(part, hash=wanted, pending=""))
        _log.debug("collection %s has upload/ as of now", part.uuid)
        return True

    def _recognized(self, part: Part, record: CollectionRecord, wanted: str) -> Part:
        """Return the part with the hash of the record; a new part if the mount can't use it."""
        found = record.portable_data_hash
        if record.trash_at:
            _log.warning(
                "%s",
                of_retention.COLLECTION_IN_TRASH_SOON(uuid=part.uuid, time=record.trash_at),
            )
        elif found == part.hash:
            return part
        elif found and found in {part.pending, wanted}:  # an update whose answer was lost
            return dataclasses.replace(part, hash=found)
        else:
            _log.warning(
                "%s",
                of_retention.COLLECTION_CHANGED(
                    uuid=part.uuid,
                    time=record.modified_at,
                    user=record.modified_by or "an unknown user",
                ),
            )
        return self._put(Part(part.first))

    def _forget(self, part: Part) -> Part:
        _log.warning("%s", of_retention.COLLECTION_GONE(uuid=part.uuid))
        return self._put(Part(part.first))

    def _created(self, part: Part) -> Part:
        """Create an empty collection, or find the one that an earlier attempt created."""
        if is_uuid(self._wishes.name) and not self.ledger.last_number:
            return self._taken_over(part)
        name = self._wishes.name
        if is_uuid(name):
            name = f"keepfs upload/ beside {name}"
        for number in range(self.ledger.last_number + 1, self.ledger.last_number + _MOST_NAMES):
            attributes = CollectionAttributes(
                name=parts.numbered(name, number),
                properties={PROPERTY: self.ledger.mount},
                replication_desired=self._wishes.copies,
                storage_classes_desired=self._wishes.classes,
            )
            try:
                made = self._remote.create("", attributes)
            except NameTakenError as taken:
                found = self._mine(taken.uuid)
                if found is None:
                    continue
                made = found
            except ForbiddenError as error:
                raise CreationRefusedError(str(error)) from error
            _log.info("upload/ is kept by collection %s, %r", made.uuid, made.name)
            return self._noted(part, made, number)
        raise InvalidRequestError(
            f"cannot create a collection for upload/: the names {name!r} and those with numbers"
            " behind it are taken; give another one with --retain-as"
        )

    def _mine(self, uuid: str) -> CollectionRecord | None:
        """Return a collection if this mount has created it and has no record of it yet."""
        if not uuid or uuid in {part.uuid for part in self.ledger.parts}:
            return None
        with contextlib.suppress(CollectionNotFoundError):
            record = self._remote.get(uuid, with_manifest=False)
            is_mine = record.properties.get(PROPERTY) == self.ledger.mount
            # A collection with files is an earlier one that another client has changed.
            if is_mine and not record.file_count and not record.trash_at:
                return record
        return None

    def _taken_over(self, part: Part) -> Part:
        """Use the collection that the user named, if it is empty and no other mount's."""
        record = self._remote.get(self._wishes.name, with_manifest=False)
        owner = record.properties.get(PROPERTY)
        if record.file_count or owner not in {None, self.ledger.mount}:
            raise InvalidRequestError(
                f"collection {record.uuid} has files, or is another mount's: it is not"
                " overwritten; give the uuid of an empty one, or a name, with --retain-as"
            )
        attributes = CollectionAttributes(
            properties={**record.properties, PROPERTY: self.ledger.mount},
            replication_desired=self._wishes.copies,
            storage_classes_desired=self._wishes.classes,
        )
        made = self._remote.update(record.uuid, attributes, expected=Expected.of(record))
        return self._noted(part, made, 1)

    def _noted(self, part: Part, made: CollectionRecord, number: int) -> Part:
        self.ledger = dataclasses.replace(self.ledger, last_number=number)
        return self._put(Part(part.first, made.uuid, made.portable_data_hash))

    def _put(self, part: Part) -> Part:
        self.ledger = self.ledger.with_part(part)
        self._save(self.ledger)
        return part

    def _note_ttl(self, record: CollectionRecord) -> None:
        expiry = signatures.first_expiry([record.manifest or b""])
        ttl = float(round(expiry - signatures.wall_clock())) if expiry < float("inf") else 0.0
        if ttl > 0 and not record.trash_at and ttl != self.ledger.ttl:
            self.ledger = dataclasses.replace(self.ledger, ttl=ttl)
            self._save(self.ledger)


@dataclass(frozen=True, slots=True)
class _Part:
    """The contents of one collection.

    Attributes:
        first: The first number of the part.
        manifest: The signed manifest.
    """

    first: int
    manifest: Manifest

    @property
    def has_files(self) -> bool:
        """Whether it has files."""
        return self.manifest.file_count > 0
