"""An Arvados API server, as far as a Keep client asks one.

It lists Keep services, shows the cluster's configuration and the discovery
document, knows tokens, and hands out collections, to anybody. All is what the test
says it is.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import re
import threading
import urllib.parse
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tests.keepstore.answers import request_id
from tests.keepstore.clock import Clock
from tests.keepstore.keepstore import ROOT_TOKEN, TEST_TOKEN, TWO_WEEKS
from tests.keepstore.locators import tokens
from tests.keepstore.wire import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.keepstore.wire import Request

#: When all that it tells of was made and changed last.
_MODIFIED = "2026-11-22T00:00:00.000000000Z"


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


@dataclass(slots=True, kw_only=True)
class ApiSettings:
    """What the API server knows; may be changed at any time.

    Attributes:
        services: The Keep services; what every client is told.
        storage_classes: As `/arvados/v1/config` has them; None leaves the key out.
        tokens: Of users.
        admin_tokens: Of administrators.
        scoped_tokens: Good for the service list, but not for `users/current`.
        uuid_prefix: The cluster's id.
        replication: `defaultCollectionReplication`.
        signature_ttl: `blobSignatureTtl` in seconds.
        collections: Manifests by what a client asks for: a portable data hash, as
            `portable_data_hash` makes it.
        extra: Further routes, path to JSON value.
    """

    services: list[ServiceEntry] = field(default_factory=list)
    storage_classes: dict[str, dict[str, Any]] | None = field(
        default_factory=lambda: {"default": {"Default": True, "Priority": 0}}
    )
    tokens: tuple[str, ...] = (TEST_TOKEN,)
    admin_tokens: tuple[str, ...] = (ROOT_TOKEN,)
    scoped_tokens: tuple[str, ...] = ()
    uuid_prefix: str = "zzzzz"
    replication: int = 2
    signature_ttl: int = int(TWO_WEEKS)
    collections: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def portable_data_hash(manifest: str) -> str:
    """Return the name that a collection has by its contents; hints count for nothing."""
    data = re.sub(r"( [0-9a-f]{32}\+[0-9]+)\+[^ ]*", r"\1", manifest).encode()
    return f"{hashlib.md5(data, usedforsecurity=False).hexdigest()}+{len(data)}"


class ApiServer:
    """The service of an API server.

    Attributes:
        upcoming: Service lists for the next requests, one each; then
            `settings.services` again.
    """

    def __init__(self, settings: ApiSettings | None = None, clock: Clock | None = None) -> None:
        self.settings = settings or ApiSettings()
        self.clock = clock or Clock()
        self.upcoming: collections.deque[list[ServiceEntry]] = collections.deque()
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
        path = request.path
        if request.method not in {"GET", "HEAD"}:
            return 404, _errors("Path not found", identity)
        documents: dict[str, Callable[[], object]] = {
            "/arvados/v1/keep_services/accessible": self._accessible,
            "/arvados/v1/config": self._config,
            "/discovery/v1/apis/arvados/v1/rest": functools.partial(
                self._discovery, request.header("Host") or ""
            ),
        }
        if path in documents:
            return 200, documents[path]()
        if path == "/arvados/v1/users/current":
            return self._current_user(request, identity)
        parent, _, name = path.rpartition("/")
        if parent == "/arvados/v1/collections" and name in self.settings.collections:
            return 200, self._collection(name)
        if path in self.settings.extra:
            return 200, self.settings.extra[path]
        return 404, _errors("Path not found", identity)

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
            "Collections": {"DefaultReplication": self.settings.replication},
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
            "blobSignatureTtl": self.settings.signature_ttl,
            "rootUrl": f"https://{host}/",
            "servicePath": "arvados/v1/",
            "baseUrl": f"https://{host}/arvados/v1/",
            "batchPath": "batch",
            "parameters": {},
            # As much as the SDK needs to find services, and arv-mount collections.
            "resources": {
                "keep_services": _resource("accessible", "keep_services/accessible"),
                "users": _resource("current", "users/current"),
                "collections": _resource("get", "collections/{uuid}", "uuid"),
            },
            "schemas": {},
        }

    def _current_user(self, request: Request, identity: str) -> tuple[int, object]:
        known, settings = set(tokens(request)), self.settings
        is_admin = not known.isdisjoint(settings.admin_tokens)
        if is_admin or not known.isdisjoint(settings.tokens):
            number = "000000000000000" if is_admin else "tpzedtpzedtpzed"
            user = {
                "kind": "arvados#user",
                "uuid": f"{settings.uuid_prefix}-tpzed-{number}",
                "is_active": True,
                "is_admin": is_admin,
            }
            return 200, user
        if not known.isdisjoint(settings.scoped_tokens):
            return 403, _errors("Forbidden", identity)
        return 401, _errors("Not logged in", identity)


def _resource(method: str, path: str, *parameters: str) -> dict[str, Any]:
    """Describe a resource that has one method, whose parameters are in its path."""
    described = {
        "id": f"arvados.{path.partition('/')[0]}.{method}",
        "path": path,
        "httpMethod": "GET",
        "parameters": {
            name: {"type": "string", "required": True, "location": "path"} for name in parameters
        },
        "parameterOrder": list(parameters),
        "response": {},
    }
    return {"methods": {method: described}}


def _errors(text: str, identity: str) -> dict[str, list[str]]:
    return {"errors": [f"{text} ({identity})"]}
