"""Parameters of a change to a collection: attributes to set, and the expected state before it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keepfs.collections.remote_errors import ChangedMeanwhileError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keepfs.collections.records import CollectionRecord


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected state of a collection. An attribute that is None isn't compared.

    Attributes:
        portable_data_hash: The hash of the contents.
        modified_at: The time of its last change of any kind, as in a record.
    """

    portable_data_hash: str | None = None
    modified_at: str | None = None

    @classmethod
    def of(cls, record: CollectionRecord) -> Expected:
        """Expect the state of a record: the same contents, and no change of any kind since."""
        return cls(record.portable_data_hash, record.modified_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionAttributes:
    """The attributes of a collection that can be set.

    An attribute that is None stays as it is, or gets the cluster's default.

    Attributes:
        name: Unique among its owner's collections.
        owner_uuid: A user or a project.
        properties: Any JSON object; replaces the old one.
        replication_desired: Copies, from 1.
        storage_classes_desired: Names of storage classes.
        trash_at: The time at which the server trashes it; with a time zone.
    """

    name: str | None = None
    owner_uuid: str | None = None
    properties: Mapping[str, Any] | None = None
    replication_desired: int | None = None
    storage_classes_desired: Sequence[str] | None = None
    trash_at: dt.datetime | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the attributes that are set, as JSON for the API server."""
        given: dict[str, Any] = {
            "name": self.name,
            "owner_uuid": self.owner_uuid,
            "properties": self.properties,
            "replication_desired": self.replication_desired,
            "storage_classes_desired": self.storage_classes_desired,
        }
        if self.trash_at is not None:
            moment = self.trash_at.astimezone(dt.UTC)
            given["trash_at"] = f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"
        if self.storage_classes_desired is not None:
            given["storage_classes_desired"] = list(self.storage_classes_desired)
        if self.properties is not None:
            given["properties"] = dict(self.properties)
        return {name: value for name, value in given.items() if value is not None}


def compare(record: CollectionRecord, expected: Expected) -> None:
    """Check that a collection is as expected.

    Raises:
        ChangedMeanwhileError: It isn't.
    """
    changed: dict[str, tuple[object, object]] = {}
    for name in ("portable_data_hash", "modified_at"):
        wanted, found = getattr(expected, name), getattr(record, name)
        if wanted is not None and wanted != found:
            changed[name] = (wanted, found)
    if not changed:
        return
    what = "its files were changed" if "portable_data_hash" in changed else "it was changed"
    raise ChangedMeanwhileError(
        f"collection {record.uuid} is not as expected: {what} at {record.modified_at} by"
        f" {record.modified_by or 'an unknown user'}; "
        + "; ".join(f"{name} is {now}, not {old}" for name, (old, now) in changed.items()),
        changed=changed,
        modified_at=record.modified_at,
        modified_by=record.modified_by,
    )


def is_as(answer: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return whether a collection has the wanted attributes; `trash_at` isn't compared."""
    return all(answer.get(name) == value for name, value in wanted.items() if name != "trash_at")
