"""RemoteCollections: requests to the API server about collections.

`create` is idempotent. The server makes a new uuid for each request to create, and can't
recognise a repeated request; but it keeps names unique among an owner's collections. So
each collection has a name, the server's option `ensure_unique_name` is never used, and of
two requests with one name at most one succeeds. After a failure with an unknown outcome
(connection lost, time-out, 5xx) the name is looked up. If a collection has the name, the
contents and the properties, the request has created it. If two programs may create equal
collections under one name at the same time, give them different properties.

The server has no conditional update. `update` compares first. A change that another client
makes between the comparison and the update (one round trip) is not detected.
"""

from __future__ import annotations

import datetime as dt
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keepfs.collections.api_requests import (
    ApiRequests,
    is_name_taken,
    is_transient,
    query,
    quoted_path_part,
    reason_of,
)
from keepfs.collections.manifest_text import request_body
from keepfs.collections.names import is_uuid
from keepfs.collections.portable import portable_data_hash
from keepfs.collections.records import FIELDS, CollectionRecord, ProjectRecord, User
from keepfs.collections.remote_errors import InvalidRequestError, NameTakenError
from keepfs.collections.wishes import CollectionAttributes, Expected, compare, is_as
from keepfs.keep.services.api import ApiError
from keepfs.keep.services.long_json import json_pieces

__all__ = ["CollectionAttributes", "Expected", "RemoteCollections"]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from keepfs.keep.retry import Backoff
    from keepfs.keep.services.api import ApiClient

#: Rounds after the first.
DEFAULT_RETRIES = 3
_PATH = "arvados/v1/collections"
#: Most further names that are tried if a name is taken.
_MOST_NAMES = 5
_HASH = re.compile(r"[0-9a-f]{32}\+[0-9]+(\+\S+)?\Z", re.ASCII)


class RemoteCollections:
    """The collections of a cluster that one token may use.

    Any thread may use it. Each call blocks; `api.close()` ends the calls in progress.
    Transient failures (`retry.Verdict`: no answer, 5xx, 429, ...) are retried with
    back-off; others are raised at once. Each call raises a `CollectionError`:
    `UnauthorizedError`, `ForbiddenError`, `CollectionNotFoundError`, `InvalidRequestError`,
    `TooLargeError`, or `ApiUnreachableError` if the retries failed.

    Args:
        api: Sends the requests; its token may be replaced at any time.
        retries: Rounds after the first.
        backoff: The waits between rounds.
        total: Seconds that a request may take, including its retries; None: no limit.
        sleep: Replaces `time.sleep`.
    """

    def __init__(
        self,
        api: ApiClient,
        *,
        retries: int = DEFAULT_RETRIES,
        backoff: Backoff | None = None,
        total: float | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._api = ApiRequests(api, retries, backoff, total, sleep)

    def current_user(self) -> User:
        """Return the user that the token is for."""
        found = self._api.ask("GET", "arvados/v1/users/current", "ask for the token's user")
        return User(
            str(found.get("uuid") or ""),
            is_admin=bool(found.get("is_admin")),
            is_active=bool(found.get("is_active", True)),
        )

    def project(self, uuid: str) -> ProjectRecord:
        """Return a project by its uuid."""
        path = f"arvados/v1/groups/{quoted_path_part(uuid)}"
        found = self._api.ask("GET", path, f"find project {uuid}")
        can_write = found.get("can_write")
        return ProjectRecord(
            str(found.get("uuid") or ""),
            str(found.get("name") or ""),
            can_write if isinstance(can_write, bool) else None,
        )

    def max_request_size(self) -> int:
        """Return the most bytes of a request (API.MaxRequestSize); 128 MiB if not published."""
        found = self._api.ask("GET", "arvados/v1/config", "ask for the configuration")
        limits = found.get("API")
        size = limits.get("MaxRequestSize") if isinstance(limits, dict) else None
        return size if isinstance(size, int) and size > 0 else 128 * 1024 * 1024

    def get(self, name: str, *, with_manifest: bool = True) -> CollectionRecord:
        """Return a collection by uuid or portable data hash; hints of a hash are ignored.

        A manifest takes its size in memory, and twice that for a short time.

        Raises:
            InvalidRequestError: `name` is neither.
        """
        if not is_uuid(name) and not _HASH.match(name):
            raise InvalidRequestError(f"{name!r} is neither a collection's uuid nor a hash")
        name = "+".join(name.split("+")[:2])
        asked = query(select=_selected(with_manifest=with_manifest))
        path = f"{_PATH}/{quoted_path_part(name)}{asked}"
        return self._api.record(self._api.ask("GET", path, f"get collection {name}"))

    def find(
        self,
        *,
        name: str | None = None,
        owner_uuid: str | None = None,
        portable_data_hash: str | None = None,
        properties: Mapping[str, Any] | None = None,
        limit: int = 100,
    ) -> list[CollectionRecord]:
        """List collections that match all arguments, newest first, without manifests.

        At most `limit` are returned. Trashed collections are left out.
        """
        given = {"name": name, "owner_uuid": owner_uuid, "portable_data_hash": portable_data_hash}
        filters = [[key, "=", value] for key, value in given.items() if value is not None]
        filters += [[f"properties.{key}", "=", value] for key, value in (properties or {}).items()]
        asked = query(
            filters=filters,
            select=_selected(with_manifest=False),
            order=["created_at desc"],
            limit=limit,
            count="none",
        )
        items = self._api.ask("GET", f"{_PATH}{asked}", "list collections").get("items")
        return [self._api.record(each) for each in items] if isinstance(items, list) else []

    def create(
        self,
        manifest: str | bytes,
        attributes: CollectionAttributes,
        *,
        unique_name: bool = False,
        with_manifest: bool = False,
    ) -> CollectionRecord:
        """Create one collection, however often a request must be repeated.

        Args:
            manifest: Signed for the token. Its JSON takes its size in memory once more.
            attributes: The attributes, with a name; see the module. Without an owner, it is
                the token's user.
            unique_name: Append the time, as the server does, if the name is taken.
            with_manifest: Whether the answer has the manifest, freshly signed.

        Raises:
            NameTakenError: Another collection of the owner has the name.
            InvalidRequestError: There is no name; or the manifest isn't UTF-8.
        """
        if not attributes.name:
            raise InvalidRequestError("cannot create a collection without a name: give one")
        owner = attributes.owner_uuid or self.current_user().uuid
        wish = _Wish(
            attributes.name,
            owner,
            portable_data_hash(_as_utf8(manifest)),
            attributes.as_json() | {"owner_uuid": owner},
        )
        other = reason = ""
        for name in _names(attributes.name, unique=unique_name):
            wish.name = wish.given["name"] = name
            taken = self.find(name=name, owner_uuid=owner, limit=1)
            if taken:
                other, reason = taken[0].uuid, ""
                continue
            created = self._create_named(wish, manifest, with_manifest=with_manifest)
            if isinstance(created, CollectionRecord):
                return created
            other, reason = created
        raise NameTakenError(
            f"cannot create collection {attributes.name!r}: {other or 'another'} of {owner} has"
            " the name; give another one",
            uuid=other,
            reason=reason,
        )

    def update(
        self,
        uuid: str,
        attributes: CollectionAttributes | None = None,
        *,
        expected: Expected,
        manifest: str | bytes | None = None,
        with_manifest: bool = False,
    ) -> CollectionRecord:
        """Change a collection if it is as expected.

        A request whose outcome is unknown is repeated only if the collection is still as
        expected. If it already has the wanted attributes, the update has succeeded.

        Args:
            uuid: The uuid of the collection.
            attributes: The attributes to set.
            expected: The state before the change; the module describes the remaining race.
            manifest: The new contents, signed for the token; None: unchanged.
            with_manifest: Whether the answer has the manifest, freshly signed.

        Raises:
            ChangedMeanwhileError: It is not as expected; nothing was changed.
            NameTakenError: Another collection of the owner has the new name.
        """
        given = (attributes or CollectionAttributes()).as_json()
        wanted = dict(given)
        if manifest is not None:
            wanted["portable_data_hash"] = portable_data_hash(_as_utf8(manifest))
        select = {"select": _selected(with_manifest=with_manifest)}
        body = request_body(given, manifest, select)
        what = f"change collection {uuid}"
        started, is_unsure = time.monotonic(), False
        failure: ApiError | None = None
        for _ in self._api.rounds():
            left = self._api.left(started)
            try:
                now = self._api.once(
                    "GET", f"{_PATH}/{quoted_path_part(uuid)}{query(**_bare())}", None, left
                )
                record = self._api.record(now)
                if is_unsure and is_as(now, wanted):
                    return self.get(uuid) if with_manifest else record
                compare(record, expected)
                is_unsure = True
                done = self._api.once(
                    "PATCH", f"{_PATH}/{quoted_path_part(uuid)}", body, self._api.left(started)
                )
                return self._api.record(done)
            except ApiError as error:
                if not is_transient(error):
                    raise self._api.translated(
                        error, what, given.get("name"), len(body)
                    ) from error
                failure = error
        raise self._api.given_up(failure, f"{what}; it may have been changed all the same")

    def trash(self, uuid: str) -> CollectionRecord:
        """Move a collection to the trash.

        If it is there already, it stays, or the server answers `CollectionNotFoundError`.
        """
        path = f"{_PATH}/{quoted_path_part(uuid)}/trash"
        return self._api.record(self._api.ask("POST", path, f"trash collection {uuid}", b"{}"))

    # --- parts ----------------------------------------------------------------

    def _create_named(
        self, wish: _Wish, manifest: str | bytes, *, with_manifest: bool
    ) -> CollectionRecord | tuple[str, str]:
        """Create one; if its name is taken, return the other's uuid and the server's reason."""
        options = {"select": _selected(with_manifest=with_manifest)}
        body = request_body(wish.given, manifest, options)
        what = f"create collection {wish.name!r}"
        started, is_unsure = time.monotonic(), False
        failure: ApiError | None = None
        for _ in self._api.rounds():
            try:
                if is_unsure and (made := self._made(wish, self._api.left(started))):
                    return self.get(made.uuid) if with_manifest else made
                is_unsure = True
                return self._api.record(
                    self._api.once("POST", _PATH, body, self._api.left(started))
                )
            except ApiError as error:
                if is_transient(error):
                    failure = error
                    continue
                if not is_name_taken(error):
                    raise self._api.translated(error, what, None, len(body)) from error
                # An earlier request of this call may have been carried out late.
                if failure is not None and (made := self._made(wish, None)):
                    return self.get(made.uuid) if with_manifest else made
                taken = self.find(name=wish.name, owner_uuid=wish.owner, limit=1)
                return (taken[0].uuid if taken else ""), reason_of(error)
        try:
            made = self._made(wish, None)
        except ApiError:
            made = None
        if made is not None:
            return self.get(made.uuid) if with_manifest else made
        raise self._api.given_up(failure, f"{what}; it may have been created: look for its name")

    def _made(self, wish: _Wish, total: float | None) -> CollectionRecord | None:
        """Return the collection that an earlier request created, or None."""
        filters = [["name", "=", wish.name], ["owner_uuid", "=", wish.owner]]
        asked = query(filters=filters, select=_selected(with_manifest=False), count="none")
        found = self._api.once("GET", f"{_PATH}{asked}", None, total).get("items")
        for item in found if isinstance(found, list) else ():
            record = self._api.record(item)
            wanted = wish.given.get("properties", {})
            if record.portable_data_hash == wish.hash and dict(record.properties) == wanted:
                return record
        return None


@dataclass(slots=True)
class _Wish:
    """A collection to create.

    Attributes:
        name: The name that is tried now.
        owner: A user or a project.
        hash: Portable data hash of the contents.
        given: All attributes, as JSON.
    """

    name: str
    owner: str
    hash: str
    given: dict[str, Any]


def _names(name: str, *, unique: bool) -> Iterator[str]:
    """Yield the names to try: the given one, then that with the time appended."""
    yield name
    for _ in range(_MOST_NAMES if unique else 0):
        now = dt.datetime.now(dt.UTC)
        yield f"{name} ({now:%Y-%m-%dT%H:%M:%S.%f}Z)"


def _as_utf8(manifest: str | bytes) -> str | bytes:
    """Return a manifest that is UTF-8.

    Raises:
        InvalidRequestError: It isn't.
    """
    try:
        if not manifest.isascii():
            for _ in json_pieces(manifest):
                pass
    except ValueError as error:
        raise InvalidRequestError(
            f"cannot send the manifest: it is not UTF-8 ({error}); rename the file"
        ) from error
    return manifest


def _selected(*, with_manifest: bool) -> list[str]:
    return [*FIELDS, "manifest_text"] if with_manifest else list(FIELDS)


def _bare() -> dict[str, list[str]]:
    return {"select": _selected(with_manifest=False)}
