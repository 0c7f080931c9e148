"""An Arvados API server, as far as a Keep client asks one.

It lists Keep services, shows the cluster's configuration and the discovery
document, knows tokens, users and projects, and keeps collections (`collections`).
"""

from __future__ import annotations

import functools
import json
import threading
import urllib.parse
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tests.keepstore.answers import request_id
from tests.keepstore.clock import Clock
from tests.keepstore.collections import ApiRefusalError, Asker, Collections
from tests.keepstore.keepstore import ROOT_TOKEN, TEST_KEY, TEST_TOKEN, TWO_WEEKS
from tests.keepstore.locators import tokens
from tests.keepstore.manifests import portable_data_hash
from tests.keepstore.wire import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.keepstore.wire import Request

__all__ = ["ApiServer", "ApiSettings", "Project", "ServiceEntry", "portable_data_hash"]

#: When all that it tells of was made and changed last.
_MODIFIED = "2026-11-22T00:00:00.000000000Z"
_COLLECTIONS = "/arvados/v1/collections"
_REASONS = {403: "Forbidden", 404: "Not Found", 422: "Unprocessable Entity"}
_JSON_PARAMETERS = frozenset({"collection", "filters", "order", "select"})
_QUERY_PARAMETERS = {
    "filters": "array",
    "order": "array",
    "select": "array",
    "limit": "integer",
    "offset": "integer",
    "count": "string",
    "include_trash": "boolean",
    "ensure_unique_name": "boolean",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEntry:
    """A Keep service as the API server lists it.

    Attributes:
        uuid: Any text; the last 15 characters place blocks.
        service_host: A name, an IPv4 address, or an IPv6 one without brackets.
        service_type: `disk`, `proxy`, `gateway:...`, `blob`, or anything.
    """

    uuid: str
    service_host: str
    service_port: int
    service_ssl_flag: bool = False
    service_type: str = "disk"
    read_only: bool = False

    @classmethod
    def of(
        cls, url: str, number: int = 0, *, kind: str = "disk", read_only: bool = False
    ) -> ServiceEntry:
        """List the service at a URL under the uuid `zzzzz-bi6l4-` and a number."""
        parts = urllib.parse.urlsplit(url)
        return cls(
            uuid=f"zzzzz-bi6l4-{number:015d}",
            service_host=parts.hostname or "",
            service_port=parts.port or 80,
            service_ssl_flag=parts.scheme == "https",
            service_type=kind,
            read_only=read_only,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project that all users see.

    Attributes:
        name: As users gave it.
        writable: Whether collections may be created and changed in it.
    """

    name: str = "a project"
    writable: bool = True


@dataclass(slots=True, kw_only=True)
class ApiSettings:
    """What the API server knows; may be changed at any time.

    Attributes:
        services: The Keep services; what every client is told.
        storage_classes: As `/arvados/v1/config` has them; None leaves the key out.
        tokens: All of one user.
        other_tokens: Of further users: uuid by token.
        read_only_tokens: Of the one user; their scopes allow reading only.
        admin_tokens: Of administrators.
        scoped_tokens: Good for the service list, but not for `users/current`.
        uuid_prefix: The cluster's id.
        replication: `defaultCollectionReplication`.
        signing: `BlobSigning`: manifests are signed, and must be.
        key: `BlobSigningKey`; that of the keepstores.
        signature_ttl: `BlobSigningTTL` in seconds.
        trash_lifetime: `DefaultTrashLifetime` of collections in seconds.
        max_request_size: `API.MaxRequestSize` in bytes.
        proxy_request_size: The limit of a proxy before the server; it is not published.
        most_collections: With so many, none can be created; None for any number.
        projects: By uuid; `zzzzz-j7d0g-` and 15 characters.
        collections: Manifests by what a client asks for: a portable data hash, as
            `portable_data_hash` makes it. Shown to anybody, as they are.
        extra: Further routes, path to JSON value.
    """

    services: list[ServiceEntry] = field(default_factory=list)
    storage_classes: dict[str, dict[str, Any]] | None = field(
        default_factory=lambda: {"default": {"Default": True, "Priority": 0}}
    )
    tokens: tuple[str, ...] = (TEST_TOKEN,)
    other_tokens: dict[str, str] = field(default_factory=dict)
    read_only_tokens: tuple[str, ...] = ()
    admin_tokens: tuple[str, ...] = (ROOT_TOKEN,)
    scoped_tokens: tuple[str, ...] = ()
    uuid_prefix: str = "zzzzz"
    replication: int = 2
    signing: bool = True
    key: str = TEST_KEY
    signature_ttl: float = TWO_WEEKS
    trash_lifetime: float = TWO_WEEKS
    max_request_size: int = 128 * 1024 * 1024
    proxy_request_size: int = 128 * 1024 * 1024
    most_collections: int | None = None
    projects: dict[str, Project] = field(default_factory=dict)
    collections: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


class ApiServer:
    """The service of an API server.

    Attributes:
        upcoming: Service lists for the next requests, one each; then
            `settings.services` again.
        collections: What clients have created.
    """

    def __init__(self, settings: ApiSettings | None = None, clock: Clock | None = None) -> None:
        self.settings = settings or ApiSettings()
        self.clock = clock or Clock()
        self.upcoming: deque[list[ServiceEntry]] = deque()
        self.collections = Collections(self.settings, self.clock)
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Do nothing: no request waits here."""

    def answer(self, request: Request) -> Answer:
        """Carry out a request."""
        identity = request.header("X-Request-Id") or request_id()
        status, value = self._routed(request, identity)
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "X-Request-Id": identity,
        }
        return Answer(status, json.dumps(value).encode(), headers)

    def _routed(self, request: Request, identity: str) -> tuple[int, object]:
        try:
            return 200, self._carried_out(request)
        except ApiRefusalError as refusal:
            text = refusal.text
            if request.path.startswith(_COLLECTIONS) and refusal.status in {403, 404, 422}:
                # The controller says whom it asked.
                reason = _REASONS[refusal.status]
                text = f"//railsapi.internal{request.path}: {refusal.status} {reason}: {text}"
            return refusal.status, _errors(text, identity)

    def _carried_out(self, request: Request) -> object:
        path = request.path
        method = request.header("X-HTTP-Method-Override") or request.method
        given = self._parameters(request)
        if path == _COLLECTIONS or path.startswith(f"{_COLLECTIONS}/"):
            return self._of_collections(request, method, path, given)
        if method not in {"GET", "HEAD"}:
            raise ApiRefusalError(404, "Path not found")
        documents: dict[str, Callable[[], object]] = {
            "/arvados/v1/keep_services/accessible": self._accessible,
            "/arvados/v1/config": self._config,
            "/discovery/v1/apis/arvados/v1/rest": functools.partial(
                self._discovery, request.header("Host") or ""
            ),
        }
        if path in documents:
            return documents[path]()
        kind, _, name = path.removeprefix("/arvados/v1/").partition("/")
        if kind == "users" and name:
            return self._user(self._asker(request), name)
        if kind == "groups":
            return self._groups(self._asker(request), name)
        if path in self.settings.extra:
            return self.settings.extra[path]
        raise ApiRefusalError(404, "Path not found")

    def _parameters(self, request: Request) -> dict[str, Any]:
        """Join the parameters of the query and of the body, a form or JSON."""
        given: dict[str, Any] = {name: texts[-1] for name, texts in request.query.items()}
        limit = min(self.settings.max_request_size, self.settings.proxy_request_size)
        body = b""
        if request.body.length != 0:
            if (request.body.length or 0) > limit:
                raise ApiRefusalError(413, "http: request body too large")
            body = bytes(request.body.read(limit + 1))
            if len(body) > limit:
                raise ApiRefusalError(413, "http: request body too large")
        try:
            if "json" in request.header("Content-Type"):
                parsed = json.loads(body or b"{}")
                if not isinstance(parsed, dict):
                    raise ApiRefusalError(400, "json: cannot unmarshal into a Go value")
                # Attributes may stand there without the resource's name.
                given |= parsed if "collection" in parsed else parsed | {"collection": parsed}
            elif body:
                form = urllib.parse.parse_qs(
                    body.decode(), keep_blank_values=True, max_num_fields=100
                )
                given |= {name: texts[-1] for name, texts in form.items()}
            for name in _JSON_PARAMETERS & given.keys():
                # An order may be a plain text.
                if isinstance(given[name], str) and (name != "order" or given[name][:1] == "["):
                    given[name] = json.loads(given[name])
        except ValueError as error:
            raise ApiRefusalError(400, f"invalid parameter: {error}") from None
        return given

    def _of_collections(
        self, request: Request, method: str, path: str, given: dict[str, Any]
    ) -> object:
        name, _, action = path.removeprefix(_COLLECTIONS).strip("/").partition("/")
        if method in {"GET", "HEAD"} and name in self.settings.collections:
            return self._collection(name)
        asker = self._asker(request)
        if method not in {"GET", "HEAD"} and not asker.may_write:
            raise ApiRefusalError(403, "Forbidden")
        attributes = given.get("collection")
        attributes = attributes if isinstance(attributes, dict) else {}
        unique = given.get("ensure_unique_name") in {True, "true", "1"}
        trashed = given.get("include_trash") in {True, "true", "1"}
        mine = self.collections
        routes: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
            ("GET", ""): lambda: mine.get(asker, name, trashed=trashed),
            ("HEAD", ""): lambda: mine.get(asker, name, trashed=trashed),
            ("PUT", ""): lambda: mine.update(asker, name, attributes),
            ("PATCH", ""): lambda: mine.update(asker, name, attributes),
            ("DELETE", ""): lambda: mine.trash(asker, name, delete=True),
            ("POST", "trash"): lambda: mine.trash(asker, name),
            ("POST", "untrash"): lambda: mine.untrash(asker, name, unique=unique),
        }
        if not name:
            routes = {
                ("GET", ""): lambda: mine.listed(asker, given),
                ("POST", ""): lambda: mine.create(asker, attributes, unique=unique),
            }
        if (method, action) not in routes:
            raise ApiRefusalError(404, "Path not found")
        return _selected(routes[method, action](), given.get("select"))

    def _asker(self, request: Request) -> Asker:
        settings, prefix = self.settings, f"{self.settings.uuid_prefix}-tpzed-"
        user = f"{prefix}tpzedtpzedtpzed"
        for token in tokens(request):
            if token in settings.admin_tokens:
                return Asker(token, f"{prefix}000000000000000", is_admin=True)
            if token in settings.tokens:
                return Asker(token, user)
            if token in settings.other_tokens:
                return Asker(token, settings.other_tokens[token])
            if token in settings.read_only_tokens:
                return Asker(token, user, may_write=False)
            if token in settings.scoped_tokens:
                raise ApiRefusalError(403, "Forbidden")
        raise ApiRefusalError(401, "Not logged in")

    def _user(self, asker: Asker, name: str) -> dict[str, Any]:
        if name not in {"current", asker.uuid}:
            raise ApiRefusalError(404, "Path not found")
        return {
            "kind": "arvados#user",
            "uuid": asker.uuid,
            "is_active": True,
            "is_admin": asker.is_admin,
        }

    def _groups(self, asker: Asker, name: str) -> dict[str, Any]:
        shown = {
            uuid: {
                "kind": "arvados#group",
                "uuid": uuid,
                "owner_uuid": f"{self.settings.uuid_prefix}-tpzed-000000000000000",
                "name": project.name,
                "group_class": "project",
                "can_write": project.writable or asker.is_admin,
            }
            for uuid, project in self.settings.projects.items()
        }
        if name in shown:
            return shown[name]
        if name:
            raise ApiRefusalError(404, "Path not found")
        items = list(shown.values())
        return {"kind": "arvados#groupList", "items": items, "items_available": len(items)}

    def _accessible(self) -> dict[str, Any]:
        with self._lock:
            services = self.upcoming.popleft() if self.upcoming else self.settings.services
        stamps = {
            "owner_uuid": f"{self.settings.uuid_prefix}-tpzed-000000000000000",
            "created_at": _MODIFIED,
            "modified_at": _MODIFIED,
        }
        return {
            "kind": "arvados#keepServiceList",
            "etag": "",
            "self_link": "",
            "offset": None,
            "limit": None,
            "items_available": len(services),
            "items": [{**asdict(service), **stamps} for service in services],
        }

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "ClusterID": self.settings.uuid_prefix,
            "API": {"MaxRequestSize": self.settings.max_request_size},
            "Collections": {
                "BlobSigning": self.settings.signing,
                "BlobSigningTTL": f"{self.settings.signature_ttl:g}s",
                "CollectionVersioning": False,
                "DefaultReplication": self.settings.replication,
            },
        }
        if self.settings.storage_classes is not None:
            config["StorageClasses"] = self.settings.storage_classes
        return config

    def _collection(self, name: str) -> dict[str, Any]:
        return {
            "kind": "arvados#collection",
            "uuid": name,
            "portable_data_hash": name,
            "manifest_text": self.settings.collections[name],
            "modified_at": _MODIFIED,
        }

    def _discovery(self, host: str) -> dict[str, Any]:
        return {
            "kind": "discovery#restDescription",
            "id": "arvados:v1",
            "name": "arvados",
            "version": "v1",
            "uuidPrefix": self.settings.uuid_prefix,
            "defaultCollectionReplication": self.settings.replication,
            "blobSignatureTtl": int(self.settings.signature_ttl),
            "maxRequestSize": self.settings.max_request_size,
            "rootUrl": f"https://{host}/",
            "servicePath": "arvados/v1/",
            "baseUrl": f"https://{host}/arvados/v1/",
            "batchPath": "batch",
            "parameters": {},
            # As much as the SDK needs to find services and for its commands.
            "resources": {
                "keep_services": _resource("keep_services", accessible="GET /accessible"),
                "configs": {"methods": {"get": _method("config", "get", "GET")}},
                "users": _resource("users", current="GET /current", get="GET /{uuid}"),
                "groups": _resource("groups", get="GET /{uuid}", list="GET"),
                "collections": _resource(
                    "collections",
                    get="GET /{uuid}",
                    list="GET",
                    create="POST",
                    update="PUT /{uuid}",
                    delete="DELETE /{uuid}",
                    trash="POST /{uuid}/trash",
                    untrash="POST /{uuid}/untrash",
                ),
            },
            "schemas": {},
        }


def _resource(name: str, **methods: str) -> dict[str, Any]:
    """Describe a resource: HTTP method and path behind its name, by method name."""
    return {
        "methods": {
            method: _method(f"{name}{path}", method, verb)
            for method, (verb, _, path) in (
                (method, said.partition(" ")) for method, said in methods.items()
            )
        }
    }


def _method(path: str, name: str, verb: str) -> dict[str, Any]:
    resource = path.partition("/")[0]
    parameters = {
        each: {"type": kind, "required": False, "location": "query"}
        for each, kind in _QUERY_PARAMETERS.items()
    }
    in_path = ["uuid"] if "{uuid}" in path else []
    for each in in_path:
        parameters[each] = {"type": "string", "required": True, "location": "path"}
    described = {
        "id": f"arvados.{resource}.{name}",
        "path": path,
        "httpMethod": verb,
        "parameters": parameters,
        "parameterOrder": in_path,
        "response": {},
    }
    if name in {"create", "update"}:
        described["request"] = {"required": True, "properties": {}}
    return described


def _selected(answer: dict[str, Any], names: list[str] | None) -> dict[str, Any]:
    """Leave out what wasn't selected, of a record or of each of a list."""
    if not names:
        return answer
    if "items" in answer:
        return answer | {"items": [_selected(each, names) for each in answer["items"]]}
    return {key: value for key, value in answer.items() if key in {*names, "kind"}}


def _errors(text: str, identity: str) -> dict[str, list[str]]:
    return {"errors": [f"{text} ({identity})"]}
