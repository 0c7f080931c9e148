"""Collections, users and projects as the API server describes them: values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The fields of a collection that are requested, besides its manifest.
FIELDS = (
    "uuid",
    "name",
    "owner_uuid",
    "portable_data_hash",
    "properties",
    "replication_desired",
    "storage_classes_desired",
    "trash_at",
    "delete_at",
    "is_trashed",
    "created_at",
    "modified_at",
    "modified_by_user_uuid",
    "version",
    "file_count",
    "file_size_total",
    "etag",
)


@dataclass(frozen=True, slots=True)
class CollectionRecord:
    """A collection as the server described it at one moment.

    Times are texts as the server writes them (ISO 8601, UTC), empty if there is none.

    Attributes:
        uuid: Empty if it was requested by portable data hash.
        portable_data_hash: The hash of the contents.
        manifest: UTF-8, its locators signed for the token of the request (until `trash_at`
            at most); None if it wasn't requested.
        name: Unique among the untrashed collections of an owner.
        owner_uuid: The uuid of a user or a project.
        properties: Properties that users have set.
        replication_desired: Copies; None: the cluster's default.
        storage_classes_desired: Names of storage classes.
        trash_at: When it is trashed.
        delete_at: When it is deleted permanently.
        is_trashed: Whether it is in the trash.
        created_at: When it was created.
        modified_at: When it was last changed.
        modified_by: The uuid of the user that changed it last.
        version: The number of the version, if the cluster keeps versions.
        file_count: The number of files.
        file_size_total: Bytes of all files.
        etag: The etag of the answer. The server computes it from the columns that it read, so
            only etags of the same request can be compared.
    """

    uuid: str
    portable_data_hash: str
    manifest: bytes | None = field(default=None, repr=False)
    name: str = ""
    owner_uuid: str = ""
    properties: Mapping[str, Any] = field(default_factory=dict)
    replication_desired: int | None = None
    storage_classes_desired: tuple[str, ...] = ()
    trash_at: str = ""
    delete_at: str = ""
    is_trashed: bool = False
    created_at: str = ""
    modified_at: str = ""
    modified_by: str = ""
    version: int = 0
    file_count: int = 0
    file_size_total: int = 0
    etag: str = ""

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> CollectionRecord:
        """Make a record from the server's answer; missing fields have their defaults.

        Raises:
            TypeError: A field has a value of a wrong type.
            ValueError: The same.
        """
        copies = answer.get("replication_desired")
        manifest = answer.get("manifest_text")
        return cls(
            uuid=str(answer.get("uuid") or ""),
            portable_data_hash=str(answer.get("portable_data_hash") or ""),
            manifest=manifest if isinstance(manifest, bytes) else None,
            name=str(answer.get("name") or ""),
            owner_uuid=str(answer.get("owner_uuid") or ""),
            properties=dict(answer.get("properties") or {}),
            replication_desired=None if copies is None else int(copies),
            storage_classes_desired=tuple(answer.get("storage_classes_desired") or ()),
            trash_at=str(answer.get("trash_at") or ""),
            delete_at=str(answer.get("delete_at") or ""),
            is_trashed=bool(answer.get("is_trashed")),
            created_at=str(answer.get("created_at") or ""),
            modified_at=str(answer.get("modified_at") or ""),
            modified_by=str(answer.get("modified_by_user_uuid") or ""),
            version=int(answer.get("version") or 0),
            file_count=int(answer.get("file_count") or 0),
            file_size_total=int(answer.get("file_size_total") or 0),
            etag=str(answer.get("etag") or ""),
        )


@dataclass(frozen=True, slots=True)
class User:
    """The user that a token is for.

    Attributes:
        uuid: The uuid of the user, the owner of the user's home project.
        is_admin: Whether the user may do everything.
        is_active: Whether the user may do anything.
    """

    uuid: str
    is_admin: bool = False
    is_active: bool = True


@dataclass(frozen=True, slots=True)
class ProjectRecord:
    """A project.

    Attributes:
        uuid: The value for `owner_uuid`.
        name: The name that a user gave it.
        can_write: Whether the token's user may change its contents; None if the server
            doesn't report it.
    """

    uuid: str
    name: str = ""
    can_write: bool | None = None
