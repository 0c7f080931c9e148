"""The collections of the test API server, as RailsAPI and controller keep them.

The rules, messages and field names are those of Arvados 3.1. An update has no
precondition there (`etag` in a request is ignored), and none here.
"""

from __future__ import annotations

import copy
import datetime as dt
import hashlib
import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.keepstore import manifests
from tests.keepstore.clock import SECOND
from tests.keepstore.locators import Signer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.keepstore.apiserver import ApiSettings
    from tests.keepstore.clock import Clock

_UUID = re.compile(r"[0-9a-z]{5}-4zz18-[0-9a-z]{15}\Z")
_HASH = re.compile(r"([0-9a-f]{32}\+[0-9]+)(\+\S+)?\Z")
_FIELDS = (
    "description", "manifest_text", "name", "owner_uuid", "properties", "replication_desired",
    "storage_classes_desired", "trash_at", "delete_at", "portable_data_hash",
)  # fmt: skip
#: What a list leaves out unless it is selected.
_LONG = frozenset({"manifest_text", "unsigned_manifest_text"})
_DENIED = "#<ArvadosModel::PermissionDeniedError: ArvadosModel::PermissionDeniedError>"


class ApiRefusalError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: Of the answer.
        text: What stands in `errors`.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class Asker:
    """Whose request it is.

    Attributes:
        token: As it was sent; manifests are signed for it.
        uuid: The user's.
        is_admin: May read and write everything.
        may_write: Whether the token's scopes allow more than reading.
    """

    token: str
    uuid: str
    is_admin: bool = False
    may_write: bool = True


@dataclass(slots=True)
class Collections:
    """All collections of a cluster. Any thread may use it.

    Args:
        settings: Of the API server.
        clock: Of the API server.
    """

    settings: ApiSettings
    clock: Clock
    _records: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    # --- requests ---------------------------------------------------------

    def create(self, asker: Asker, given: dict[str, Any], *, unique: bool) -> dict[str, Any]:
        """Make a collection and return it as it is shown.

        Raises:
            ApiRefusalError: It isn't allowed, or what was given is no good.
        """
        now = self._now()
        uuid = f"{self.settings.uuid_prefix}-4zz18-{next(self._numbers):015d}"
        record: dict[str, Any] = {
            "uuid": uuid,
            "owner_uuid": asker.uuid,
            "name": None,
            "description": None,
            "properties": {},
            "manifest_text": "",
            "portable_data_hash": manifests.portable_data_hash(""),
            "replication_desired": None,
            "replication_confirmed": None,
            "replication_confirmed_at": None,
            "storage_classes_desired": ["default"],
            "storage_classes_confirmed": [],
            "storage_classes_confirmed_at": None,
            "trash_at": None,
            "delete_at": None,
            "is_trashed": False,
            "created_at": now,
            "version": 1,
            "current_version_uuid": uuid,
            "preserve_version": False,
            "file_count": 0,
            "file_size_total": 0,
        }
        with self._lock:
            limit = self.settings.most_collections
            if limit is not None and len(self._records) >= limit:
                raise ApiRefusalError(403, _DENIED)
            self._change(asker, record, given, old=None, unique=unique)
            self._records[uuid] = record
            return self._shown(asker, record)

    def update(self, asker: Asker, uuid: str, given: dict[str, Any]) -> dict[str, Any]:
        """Change a collection and return it as it is shown.

        Raises:
            ApiRefusalError: It isn't there or allowed, or what was given is no good.
        """
        with self._lock:
            old = self._found(asker, uuid, trashed=False)
            self._may_write(asker, old)
            record = copy.deepcopy(old)
            self._change(asker, record, given, old=old, unique=False)
            record["version"] += 1
            self._records[record["uuid"]] = record
            return self._shown(asker, record)

    def get(self, asker: Asker, name: str, *, trashed: bool = False) -> dict[str, Any]:
        """Show a collection by uuid or portable data hash.

        Raises:
            ApiRefusalError: There is none that the asker may read.
        """
        with self._lock:
            record = self._found(asker, name, trashed=trashed)
            if not _HASH.match(name):
                return self._shown(asker, record)
            shown = self._shown(asker, record)
        kept = "manifest_text", "unsigned_manifest_text", "portable_data_hash"
        # The controller answers a portable data hash with the contents alone: which
        # collection has them makes no difference.
        return {"kind": "arvados#collection", "uuid": "", "etag": "", "name": ""} | {
            key: shown[key] for key in (*kept, "file_count", "file_size_total", "is_trashed")
        }

    def listed(self, asker: Asker, wanted: dict[str, Any]) -> dict[str, Any]:
        """List the collections that pass the filters, in order, a page of them.

        Raises:
            ApiRefusalError: A filter or an order is none.
        """
        tests = [_filter(each) for each in wanted.get("filters") or []]
        orders = wanted.get("order") or ["modified_at desc", "uuid"]
        orders = [orders] if isinstance(orders, str) else orders
        offset, limit = int(wanted.get("offset") or 0), int(wanted.get("limit") or 100)
        with self._lock:
            found = [
                self._shown(asker, each)
                for each in self._records.values()
                if self._may_read(asker, each)
                and (wanted.get("include_trash") or not self._is_trashed(each))
            ]
        found = [each for each in found if all(test(each) for test in tests)]
        for order in reversed([part for each in orders for part in each.split(",")]):
            name, _, direction = order.strip().partition(" ")
            name = name.rpartition(".")[2]
            found.sort(
                key=lambda each: (each.get(name) is not None, each.get(name)),
                reverse=direction.strip().lower() == "desc",
            )
        answer: dict[str, Any] = {
            "kind": "arvados#collectionList",
            "etag": "",
            "self_link": "",
            "offset": offset,
            "limit": limit,
            "items": found[offset : offset + limit],
        }
        if wanted.get("count", "exact") == "exact":
            answer["items_available"] = len(found)
        if not wanted.get("select"):
            answer["items"] = [
                {key: value for key, value in each.items() if key not in _LONG}
                for each in answer["items"]
            ]
        return answer

    def trash(self, asker: Asker, uuid: str, *, delete: bool = False) -> dict[str, Any]:
        """Trash a collection; `delete` lets it be deleted as soon as may be.

        Raises:
            ApiRefusalError: It isn't there or allowed.
        """
        with self._lock:
            record = self._found(asker, uuid, trashed=True)
            self._may_write(asker, record)
            if not self._is_trashed(record):
                record["trash_at"] = self._now()
                record["delete_at"] = self._later(record["trash_at"])
            elif delete:
                record["delete_at"] = min(record["delete_at"], self._later(record["trash_at"]))
            return self._shown(asker, record)

    def untrash(self, asker: Asker, uuid: str, *, unique: bool) -> dict[str, Any]:
        """Bring a collection back.

        Raises:
            ApiRefusalError: It isn't there, not trashed, or its name is taken.
        """
        with self._lock:
            record = self._found(asker, uuid, trashed=True)
            self._may_write(asker, record)
            if not self._is_trashed(record):
                raise ApiRefusalError(
                    422,
                    "#<ArvadosModel::InvalidStateTransitionError:"
                    " Item is not trashed, cannot untrash>",
                )
            self._make_unique(record, unique=unique)
            record["trash_at"] = record["delete_at"] = None
            return self._shown(asker, record)

    # --- for tests and the collector ----------------------------------------

    def referenced(self) -> dict[str, int]:
        """Return the blocks that collections name which aren't trashed, and how many copies."""
        wanted: dict[str, int] = {}
        with self._lock:
            for record in self._records.values():
                if not self._is_trashed(record):
                    copies = record["replication_desired"]
                    copies = self.settings.replication if copies is None else copies
                    for locator in manifests.locators(record["manifest_text"]):
                        wanted[locator[:32]] = max(copies, wanted.get(locator[:32], 0))
        return wanted

    def all_records(self) -> list[dict[str, Any]]:
        """Return what is stored, trashed or not, with unsigned manifests."""
        with self._lock:
            return [
                copy.deepcopy(each) | {"is_trashed": self._is_trashed(each)}
                for each in self._records.values()
            ]

    # --- rules ----------------------------------------------------------------

    def _change(
        self,
        asker: Asker,
        record: dict[str, Any],
        given: dict[str, Any],
        *,
        old: dict[str, Any] | None,
        unique: bool,
    ) -> None:
        given = {key: value for key, value in given.items() if key in _FIELDS}
        declared = given.pop("portable_data_hash", None)
        if isinstance(given.get("properties"), str):
            given["properties"] = json.loads(given["properties"])
        text = given.pop("manifest_text", None)
        for key in ("trash_at", "delete_at"):
            if given.get(key):
                given[key] = _time(given[key])
        owner = given.get("owner_uuid") or record["owner_uuid"]
        self._check_owner(asker, owner, old)
        record.update(given, owner_uuid=owner)
        record["properties"] = record["properties"] or {}
        record["storage_classes_desired"] = record["storage_classes_desired"] or ["default"]
        if not isinstance(record["properties"], dict):
            raise ApiRefusalError(422, "#<TypeError: parameter properties must be a Hash>")
        copies = record["replication_desired"]
        if copies is not None and not isinstance(copies, int):
            raise ApiRefusalError(422, "#<TypeError: replication_desired must be an integer>")
        if record["trash_at"] is None:
            record["delete_at"] = None
        elif record["delete_at"] is None or record["delete_at"] < record["trash_at"]:
            record["delete_at"] = self._later(record["trash_at"])
        if text is not None:
            self._take_manifest(asker, record, text, old)
        if declared is not None and declared[:32] != record["portable_data_hash"][:32]:
            raise ApiRefusalError(
                422,
                f"Portable data hash does not match computed hash {record['portable_data_hash']}",
            )
        self._make_unique(record, unique=unique)
        record["modified_at"] = self._now()
        record["modified_by_user_uuid"] = asker.uuid
        record["modified_by_client_uuid"] = None

    def _take_manifest(
        self, asker: Asker, record: dict[str, Any], text: str, old: dict[str, Any] | None
    ) -> None:
        try:
            manifests.check(text)
        except manifests.ManifestError as error:
            raise ApiRefusalError(422, f"Manifest text {error}") from None
        name = manifests.portable_data_hash(text)
        is_known = old is not None and old["portable_data_hash"] == name
        if self.settings.signing and not asker.is_admin and not is_known:
            now = self.clock.time_ns()
            if not manifests.check_signatures(text, self._signer(), asker.token, now):
                raise ApiRefusalError(403, _DENIED)
        record["manifest_text"] = manifests.without_signatures(text)
        record["portable_data_hash"] = name
        record["file_count"], record["file_size_total"] = manifests.counts(text)

    def _check_owner(self, asker: Asker, owner: str, old: dict[str, Any] | None) -> None:
        if old is not None and old["owner_uuid"] == owner:
            return
        project = self.settings.projects.get(owner)
        if owner != asker.uuid and project is None and not asker.is_admin:
            raise ApiRefusalError(422, f"Owner uuid '{owner}' not found")
        if project is not None and not project.writable and not asker.is_admin:
            raise ApiRefusalError(
                403, "Owner uuid cannot be set or changed without write permission on new owner"
            )

    def _make_unique(self, record: dict[str, Any], *, unique: bool) -> None:
        name, owner = record["name"], record["owner_uuid"]
        taken = {
            each["name"]
            for each in self._records.values()
            if each["owner_uuid"] == owner
            and each["uuid"] != record["uuid"]
            and not self._is_trashed(each)
        }
        if not name or name not in taken:
            return
        if not unique:
            raise ApiRefusalError(
                422,
                "#<ActiveRecord::RecordNotUnique: PG::UniqueViolation: ERROR:  duplicate key value"
                ' violates unique constraint "index_collections_on_owner_uuid_and_name"\n'
                f"DETAIL:  Key (owner_uuid, name)=({owner}, {name}) already exists.\n>",
            )
        for number in itertools.count():
            stamp = _stamp(self.clock.time_ns() + number * 1_000_000)
            record["name"] = f"{name} ({stamp[:23]}Z)"
            if record["name"] not in taken:
                return

    def _found(self, asker: Asker, name: str, *, trashed: bool) -> dict[str, Any]:
        match = _HASH.match(name)
        for record in self._records.values():
            is_it = record["portable_data_hash"] == match[1] if match else record["uuid"] == name
            if not is_it or not self._may_read(asker, record):
                continue
            if trashed or not self._is_trashed(record):
                return record
        text = "Path not found"
        if match:
            text = f'PDH "{name}" not found'
        raise ApiRefusalError(404, text)

    def _may_read(self, asker: Asker, record: dict[str, Any]) -> bool:
        owner = record["owner_uuid"]
        return asker.is_admin or owner == asker.uuid or owner in self.settings.projects

    def _may_write(self, asker: Asker, record: dict[str, Any]) -> None:
        owner = record["owner_uuid"]
        project = self.settings.projects.get(owner)
        if asker.is_admin or owner == asker.uuid or (project is not None and project.writable):
            return
        raise ApiRefusalError(403, f"Uuid  {record['uuid']} is not writable by {asker.uuid}")

    def _is_trashed(self, record: dict[str, Any]) -> bool:
        return record["trash_at"] is not None and record["trash_at"] <= self._now()

    def _shown(self, asker: Asker, record: dict[str, Any]) -> dict[str, Any]:
        shown = copy.deepcopy(record)
        shown["is_trashed"] = self._is_trashed(record)
        text = record["manifest_text"]
        shown["unsigned_manifest_text"] = text
        if self.settings.signing and not shown["is_trashed"]:
            signer = self._signer()
            expires = self.clock.time_ns() + int(signer.ttl * SECOND)
            if record["trash_at"] is not None:
                expires = min(expires, _nanoseconds(record["trash_at"]))
            shown["manifest_text"] = manifests.signed(text, signer, asker.token, expires)
        identity = json.dumps(record, sort_keys=True).encode()
        shown["etag"] = hashlib.md5(identity, usedforsecurity=False).hexdigest()[:24]
        shown["kind"] = "arvados#collection"
        shown["href"] = f"/collections/{record['uuid']}"
        return shown

    def _signer(self) -> Signer:
        return Signer(self.settings.key, self.settings.signature_ttl)

    def _now(self) -> str:
        return _stamp(self.clock.time_ns())

    def _later(self, stamp: str) -> str:
        return _stamp(_nanoseconds(stamp) + int(self.settings.trash_lifetime * SECOND))


def _stamp(time_ns: int) -> str:
    when = dt.datetime.fromtimestamp(time_ns // SECOND, dt.UTC)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{time_ns % SECOND:09d}Z"


def _nanoseconds(stamp: str) -> int:
    when = dt.datetime.fromisoformat(stamp)
    if when.tzinfo is None:
        when = when.replace(tzinfo=dt.UTC)
    return int(when.timestamp() * 1_000_000) * 1000


def _time(given: object) -> str:
    try:
        return _stamp(_nanoseconds(str(given)))
    except ValueError:
        raise ApiRefusalError(422, f"#<ArgumentError: invalid date {given!r}>") from None


def _filter(given: object) -> Callable[[dict[str, Any]], bool]:
    if not isinstance(given, list) or len(given) != 3:
        raise ApiRefusalError(422, f"#<ArgumentError: Invalid element in filters array: {given}>")
    name, operator, wanted = given
    attribute, _, key = str(name).partition(".")

    def value(record: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
        found = record.get(attribute)
        return (found or {}).get(key.strip("<>")) if key else found

    tests: dict[str, Callable[[Any], bool]] = {
        "=": lambda found: found == wanted,
        "!=": lambda found: found != wanted,
        "<>": lambda found: found != wanted,
        "in": lambda found: found in wanted,
        "not in": lambda found: found not in wanted,
        "exists": lambda found: wanted in (found or {}),
        "contains": lambda found: wanted in (found or ()),
        "like": lambda found: _like(wanted, found, 0),
        "ilike": lambda found: _like(wanted, found, re.IGNORECASE),
        "<": lambda found: found is not None and found < wanted,
        "<=": lambda found: found is not None and found <= wanted,
        ">": lambda found: found is not None and found > wanted,
        ">=": lambda found: found is not None and found >= wanted,
    }
    if operator not in tests:
        raise ApiRefusalError(422, f"#<ArgumentError: Invalid operator '{operator}'>")
    return lambda record: tests[operator](value(record))


def _like(pattern: str, found: object, flags: int) -> bool:
    parts: Iterable[str] = (re.escape(part).replace("_", ".") for part in pattern.split("%"))
    return re.fullmatch(".*".join(parts), str(found or ""), flags | re.DOTALL) is not None


def is_collection(name: str) -> bool:
    """Tell whether a name has the form of a collection's uuid or portable data hash."""
    return bool(_UUID.match(name) or _HASH.match(name))
