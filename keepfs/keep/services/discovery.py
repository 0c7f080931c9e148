"""Discovery: the list of Keep services, and the probe order of a block.

Keep places blocks by rendezvous hashing: each client computes a weight of every
service for the block's hash, and probes the heaviest first. Clients with the same
list agree on the order without communication. A service that is added or removed
moves only the blocks for which it ranks first.

Everything here is a value or a pure function; any thread may use it.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from keepfs.keep.errors import ArgumentError
from keepfs.messages import of_stores

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from keepfs.keep.locator import KeepLocator

_log = logging.getLogger(__name__)

# The length of the part of a service's UUID that is weighed. Fixed by the protocol:
# servers rebalance by the same rule, so another value would miss the blocks.
_UUID_SUFFIX_LENGTH = 15

_CLUSTER_HINT = re.compile(r"K@([a-z0-9]{5})\Z", re.ASCII)
_GATEWAY_HINT = re.compile(r"K@([a-z0-9]{5}-[a-z0-9]{5}-[a-z0-9]{15})\Z", re.ASCII)
_UUID = re.compile(r"[!-~]{1,100}\Z", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]+\Z", re.ASCII)


#: Longest list of services that is accepted. Each block's probe order sorts all of them,
#: and a missing block is requested from each; a cluster has a few hundred.
_MOST_SERVICES = 1000


class Access(enum.Enum):
    """The kind of a request to a service."""

    READ = enum.auto()
    WRITE = enum.auto()


class Kind(enum.Enum):
    """The kind of a service."""

    #: A keepstore: stores one copy for each request.
    DISK = enum.auto()
    #: A keepproxy, or an unknown type: stores any number of copies.
    PROXY = enum.auto()
    #: Used only for blocks whose locator names it.
    GATEWAY = enum.auto()

    @classmethod
    def of(cls, service_type: str) -> Kind:
        """Return the kind for a `service_type` of the API server."""
        if service_type.startswith("gateway:"):
            return cls.GATEWAY
        return cls.DISK if service_type == "disk" else cls.PROXY


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """One Keep service, as the API server lists it.

    Attributes:
        uuid: For example `zzzzz-bi6l4-000000000000001`.
        root: Base URL; ends in a slash, so a locator can be appended.
        kind: Its kind.
        read_only: Whether it refuses writes.
    """

    uuid: str
    root: str
    kind: Kind = Kind.DISK
    read_only: bool = False

    def allows(self, access: Access) -> bool:
        """Return whether the service accepts requests of this kind."""
        return access is Access.READ or not (self.read_only or self.kind is Kind.GATEWAY)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> ServiceRecord:
        """Parse one record of the API server's list.

        Raises:
            ValueError: Its uuid, host or port is missing or invalid.
        """
        try:
            uuid, host = str(record["uuid"]), str(record["service_host"])
            port = int(record["service_port"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"a service record without {error}") from error
        if not _UUID.match(uuid):
            raise ValueError(f"a service has no proper uuid: {uuid[:100]!r}")
        if port not in range(1, 2**16):
            raise ValueError(f"service {uuid} has no proper port: {port}")
        if not _HOST.match(host):
            raise ValueError(f"service {uuid} has no proper host: {host[:100]!r}")
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        scheme = "https" if record.get("service_ssl_flag") else "http"
        return cls(
            uuid,
            f"{scheme}://{host}:{port}/",
            Kind.of(str(record.get("service_type") or "disk")),
            bool(record.get("read_only")),
        )


@dataclass(frozen=True, slots=True)
class Hint:
    """A service outside the probe order that a locator names.

    Attributes:
        root: Base URL.
        cluster_id: The foreign cluster; None for a gateway, which is in the
            cluster's own list.
    """

    root: str
    cluster_id: str | None = None


class _Usable(NamedTuple):
    """The services that accept requests of one kind, and whether any isn't a keepstore."""

    records: tuple[ServiceRecord, ...]
    has_proxies: bool

    @classmethod
    def of(cls, records: Iterable[ServiceRecord], access: Access) -> _Usable:
        usable = tuple(record for record in records if record.allows(access))
        return cls(usable, any(record.kind is not Kind.DISK for record in usable))


@dataclass(frozen=True, slots=True)
class Services:
    """A list of services.

    Attributes:
        records: All services except gateways.
        gateways: The gateways by UUID.
        is_fixed: Whether the user set the list; it is never refreshed then.
    """

    records: tuple[ServiceRecord, ...] = ()
    gateways: Mapping[str, ServiceRecord] = field(default_factory=dict)
    is_fixed: bool = False

    @classmethod
    def of_list(cls, items: Iterable[Mapping[str, Any]]) -> Services:
        """Parse the API server's list; skip invalid records, with a warning.

        Raises:
            ValueError: It has more than 1,000 services.
        """
        items = list(itertools.islice(items, _MOST_SERVICES + 1))
        if len(items) > _MOST_SERVICES:
            raise ValueError(
                f"the list has more than {_MOST_SERVICES} services: it can't be right"
            )
        records: dict[str, ServiceRecord] = {}
        gateways: dict[str, ServiceRecord] = {}
        for item in items:
            try:
                record = ServiceRecord.of_record(item)
            except ValueError as error:
                _log.warning("%s", of_stores.SERVICE_IGNORED(reason=error))
                continue
            if record.kind is Kind.GATEWAY:
                gateways[record.uuid] = record
            else:
                records.setdefault(record.root, record)
        return cls(tuple(records.values()), gateways)

    @classmethod
    def of_uris(cls, uris: str) -> Services:
        """Parse a user's blank-separated list of base URLs; all count as proxies.

        Raises:
            ArgumentError: One of them isn't a valid URL of a service.
        """
        records: dict[str, ServiceRecord] = {}
        for index, uri in enumerate(uris.split()):
            root = uri if uri.endswith("/") else f"{uri}/"
            uuid = f"00000-bi6l4-{index:015d}"
            _check_uri(uri)
            records.setdefault(root, ServiceRecord(uuid, root, Kind.PROXY))
        return cls(tuple(records.values()), is_fixed=True)

    # For each call, which needs them several times.
    _for_reads: _Usable = field(init=False, compare=False, repr=False)
    _for_writes: _Usable = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_for_reads", _Usable.of(self.records, Access.READ))
        object.__setattr__(self, "_for_writes", _Usable.of(self.records, Access.WRITE))

    def allowing(self, access: Access) -> tuple[ServiceRecord, ...]:
        """Return the services that accept requests of this kind."""
        return (self._for_reads if access is Access.READ else self._for_writes).records

    def has_proxies(self, access: Access) -> bool:
        """Return whether any of these isn't a keepstore: the timeouts for proxies apply then."""
        return (self._for_reads if access is Access.READ else self._for_writes).has_proxies

    def copies_per_service(self) -> int | None:
        """Return the copies that one write makes; None if it may be any number."""
        return None if self.has_proxies(Access.WRITE) else 1

    def hinted(self, locator: KeepLocator) -> Iterator[Hint]:
        """Yield the services that a locator's hints name, in order."""
        for hint in locator.hints:
            if match := _CLUSTER_HINT.match(hint):
                yield Hint(f"https://keep.{match[1]}.arvadosapi.com/", match[1])
            elif (match := _GATEWAY_HINT.match(hint)) and match[1] in self.gateways:
                yield Hint(self.gateways[match[1]].root)


def weight(md5sum: str, service_uuid: str) -> str:
    """Return the weight of a service for a block: 32 hex digits, compared as text."""
    text = md5sum + service_uuid[-_UUID_SUFFIX_LENGTH:]
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def probe_order(locator: KeepLocator, services: Iterable[ServiceRecord]) -> list[ServiceRecord]:
    """Sort services by weight, the likeliest holder first.

    The order depends only on the block's hash and the services' UUIDs, not on the
    order of `services`.
    """
    return sorted(services, key=lambda each: weight(locator.md5sum, each.uuid), reverse=True)


def _check_uri(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        proper = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        proper = False
    else:
        if "@" in parts.netloc:
            # `requests` would send them instead of the token.
            raise ArgumentError("Invalid proxy URI: it must not contain a user name or password")
    if not proper:
        raise ArgumentError(f"Invalid proxy URI: {uri!r}")
