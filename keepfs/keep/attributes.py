"""Readable attributes of a client: those of the SDK, and the cluster's defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.keep.http.timeouts import DEFAULT_PROXY_TIMEOUT, DEFAULT_TIMEOUT, Timeouts
from keepfs.keep.services.discovery import Access

if TYPE_CHECKING:
    from keepfs.keep.services.discovery import Services
    from keepfs.keep.services.remote import RemoteStore


class ClientAttributes:
    """The readable attributes of `KeepClient`. Only methods that block make requests."""

    _remote: RemoteStore | None
    _insecure: bool

    def known_roots(self) -> tuple[str, ...]:
        """Return the roots of the services in use, as far as they are known; doesn't block."""
        services = self._known()
        return () if services is None else tuple(each.root for each in services.records)

    @property
    def using_proxy(self) -> bool | None:
        """Whether a service in use isn't a keepstore; None before the services are known."""
        services = self._known()
        return None if services is None else services.has_proxies(Access.READ)

    @property
    def max_replicas_per_service(self) -> int | None:
        """Copies that one write makes: 1 at a keepstore; None if it may be any number."""
        services = self._known()
        return None if services is None else services.copies_per_service()

    @property
    def insecure(self) -> bool:
        """Whether certificate checks are disabled."""
        return self._insecure

    @property
    def timeout(self) -> tuple[float, float, float]:
        """Timeouts for keepstores: connect (s), interval (s), lowest rate (bytes/s)."""
        return self._remote.timeout.as_tuple() if self._remote else _tuple(DEFAULT_TIMEOUT)

    @property
    def proxy_timeout(self) -> tuple[float, float, float]:
        """The timeouts if a service is a proxy, as of `timeout`."""
        remote = self._remote
        return remote.proxy_timeout.as_tuple() if remote else _tuple(DEFAULT_PROXY_TIMEOUT)

    def current_timeout(self, attempt_number: int) -> tuple[float, float, float]:
        """Return the timeouts of a round, as of `timeout`.

        Args:
            attempt_number: The round, counted from 0; doubles the connect timeout.
        """
        remote = self._remote
        timeouts = remote.timeouts(remote.roster.known(), Access.READ) if remote else Timeouts()
        return timeouts.for_attempt(attempt_number).as_tuple()

    def default_copies(self) -> int | None:
        """Return the cluster's default number of copies, None if unknown. Blocks."""
        return self._remote.defaults.copies(_PATIENCE) if self._remote else None

    def storage_classes(self) -> frozenset[str]:
        """Return the cluster's storage classes; empty if it doesn't list any. Blocks."""
        return self._remote.defaults.all_classes(_PATIENCE) if self._remote else frozenset()

    def is_waiting(self) -> bool:
        """Return whether the list of services isn't known yet; doesn't block."""
        return self._remote is not None and self._remote.roster.known() is None

    def _known(self) -> Services | None:
        return self._remote.roster.known() if self._remote else None


#: Seconds to wait for the cluster's configuration; the API client has its own limit.
_PATIENCE = 300.0


def _tuple(value: tuple[float, ...]) -> tuple[float, float, float]:
    return Timeouts.of(value).as_tuple()
