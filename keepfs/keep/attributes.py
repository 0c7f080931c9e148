"""What can be read off a client: the SDK's attributes, and the cluster's defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.keep.http.timeouts import DEFAULT_PROXY_TIMEOUT, DEFAULT_TIMEOUT, Timeouts
from keepfs.keep.services.discovery import Access

if TYPE_CHECKING:
    from keepfs.keep.services.discovery import Services
    from keepfs.keep.services.remote import RemoteStore


class ClientAttributes:
    """The readable part of `KeepClient`. Nothing here makes a request, unless it says so."""

    _remote: RemoteStore | None
    _insecure: bool

    @property
    def using_proxy(self) -> bool | None:
        """Whether a service in use is no keepstore; None before the services are known."""
        services = self._known()
        return None if services is None else services.has_proxies(Access.READ)

    @property
    def max_replicas_per_service(self) -> int | None:
        """How many copies one write makes: 1 at a keepstore; None where it may be any number."""
        services = self._known()
        return None if services is None else services.copies_per_service()

    @property
    def insecure(self) -> bool:
        """Whether certificates go unchecked."""
        return self._insecure

    @property
    def timeout(self) -> tuple[float, float, float]:
        """How patient to be with keepstores: seconds, seconds, bytes a second."""
        return self._remote.timeout.as_tuple() if self._remote else _tuple(DEFAULT_TIMEOUT)

    @property
    def proxy_timeout(self) -> tuple[float, float, float]:
        """The same where a service is a proxy."""
        remote = self._remote
        return remote.proxy_timeout.as_tuple() if remote else _tuple(DEFAULT_PROXY_TIMEOUT)

    def current_timeout(self, attempt_number: int) -> tuple[float, float, float]:
        """Return how patient a round is: seconds to connect, of the interval, bytes a second.

        Args:
            attempt_number: Counted from 0; the connect part doubles with it.
        """
        remote = self._remote
        timeouts = remote.timeouts(remote.roster.known(), Access.READ) if remote else Timeouts()
        return timeouts.for_attempt(attempt_number).as_tuple()

    def default_copies(self) -> int | None:
        """Return how many copies the cluster wants by default, if it says. Blocks."""
        return self._remote.defaults.copies(_PATIENCE) if self._remote else None

    def storage_classes(self) -> frozenset[str]:
        """Return the cluster's storage classes; none if it doesn't say. Blocks."""
        return self._remote.defaults.all_classes(_PATIENCE) if self._remote else frozenset()

    def is_waiting(self) -> bool:
        """Tell whether the services are still to be learnt from an API server."""
        return self._remote is not None and self._remote.roster.known() is None

    def _known(self) -> Services | None:
        return self._remote.roster.known() if self._remote else None


#: Seconds to wait for the cluster's configuration. The API client has a limit of its own.
_PATIENCE = 300.0


def _tuple(value: tuple[float, ...]) -> tuple[float, float, float]:
    return Timeouts.of(value).as_tuple()
