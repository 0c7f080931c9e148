"""Roster: the current list of services, refreshed on demand.

A separate thread sends the request to the API server. Callers share the request in
progress, each with its own timeout; a caller that can use the old list doesn't wait.
A list that can't be fetched or is useless never replaces the known one; the request
is repeated after a pause.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from keepfs.keep.errors import KeepRequestError, NoKeepServersError
from keepfs.keep.services.discovery import Access, Services
from keepfs.keep.services.joined import Joined, Pause, TooLateError, UselessAnswerError
from keepfs.messages import of_stores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)

#: Seconds after which a list is refreshed in the background. Guessed: a
#: cluster's services change a few times a year.
_OLD = 600.0
#: Seconds for which a list is trusted although one of its services didn't answer,
#: or none of them had the block.
_YOUNG = 30.0
#: Most seconds to wait for a newer list if one is known. Guessed.
_PATIENCE = 30.0
_LIST = "list of services"


class ServiceFinder(Protocol):
    """Finds the services: `ApiClient`, the SDK's API client, or a compatible object."""

    def keep_services(self) -> Any:  # noqa: ANN401 - needs `.accessible().execute()` only
        """Return the collection of service records."""

    def config(self) -> Mapping[str, Any]:
        """Return the cluster's public configuration."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A list, and the time of its request."""

    services: Services
    at: float


class Roster:
    """The list of services, fixed or discovered. Any thread may use it.

    Args:
        api_client: Fetches the list; None if the list is fixed.
        fixed: The list that a user set, or None.
        clock: Replaces `time.monotonic`.
    """

    def __init__(
        self,
        api_client: ServiceFinder | None,
        fixed: Services | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._clock = clock or time.monotonic
        self._seen = None if fixed is None else _Seen(fixed, self._clock())
        self._doubted: Services | None = None
        self._api_client = api_client
        self._pause = Pause(self._clock)
        self._asking = Joined(self._ask, _LIST, self._clock)
        self._asking_first = Joined(self._ask_unless_known, _LIST, self._clock)

    def known(self) -> Services | None:
        """Return the known list, or None, without a request."""
        seen = self._seen
        return None if seen is None else seen.services

    def current(self, timeout: float) -> Services:
        """Return the list; blocks only until the first list is known.

        Raises:
            NoKeepServersError: None is known, and none came within `timeout` seconds.
        """
        seen = self._seen
        if seen is None:
            return self._asking_first.call(timeout).services
        if not seen.services.is_fixed:
            age = self._clock() - seen.at
            is_old = age > _OLD or (age > _YOUNG and self._doubted is seen.services)
            if is_old and self._pause.is_over():
                self._asking.start()
        return seen.services

    def refreshed(self, stale: Services | None, timeout: float) -> Services:
        """Return a newer list than `stale`; another caller may have fetched it meanwhile.

        If none can be fetched, or the pause after a failure isn't over, return the known
        list: the services may work while the API server doesn't. Blocks for at most
        `timeout` seconds, and 30 s if a list is known.

        Raises:
            NoKeepServersError: No list is known.
        """
        seen = self._seen
        if seen is not None and (seen.services.is_fixed or seen.services is not stale):
            return seen.services
        if seen is None:
            return self._asking_first.call(timeout).services
        if not self._pause.is_over():
            return seen.services
        run = self._asking.start()
        try:
            # The request may be old: other callers started it.
            patience = max(0.0, run.begun + _PATIENCE - self._clock())
            return run.wait(min(timeout, patience)).services
        except TooLateError as error:
            self._note_failure(error)
        except NoKeepServersError:
            pass  # recorded by the thread of the request
        return seen.services

    def close(self) -> None:
        """Wake all callers that wait for a list; their calls fail."""
        self._asking.close()
        self._asking_first.close()

    def doubt(self, services: Services) -> None:
        """Record that a service of this list didn't answer: the list may be out of date."""
        self._doubted = services

    def may_be_old(self, services: Services) -> bool:
        """Return whether a missing block may be on a service that isn't in this list."""
        seen = self._seen
        return (
            seen is not None
            and not seen.services.is_fixed
            and (seen.services is not services or self._clock() - seen.at > _YOUNG)
        )

    def _ask_unless_known(self) -> _Seen:
        """Fetch the first list, unless another request got it meanwhile."""
        return self._seen or self._ask()

    def _ask(self) -> _Seen:
        if self._api_client is None:
            raise KeepRequestError("there is no API client to ask")
        begun = self._clock()
        try:
            answer = self._api_client.keep_services().accessible().execute()
            services = _sensible(answer.get("items", ()))
        except Exception as error:
            self._note_failure(error)
            raise
        self._pause.end()
        if self._seen is None or begun >= self._seen.at:  # else a later request was faster
            self._seen = _Seen(services, begun)
        return self._seen

    def _note_failure(self, error: Exception) -> None:
        if self._pause.begin() and self._seen is not None:
            _log.warning("%s", of_stores.SERVICE_LIST_OLD(reason=error))


def _sensible(items: Any) -> Services:  # noqa: ANN401 - what the server says
    """Parse a list, which must have a service that can be read from.

    Raises:
        UselessAnswerError: It has none.
    """
    services = Services.of_list(items)
    if not services.allowing(Access.READ):
        raise UselessAnswerError(
            f"of {len(items)} services on it, none can be asked" if items else "it is empty"
        )
    return services


class Defaults:
    """The cluster's defaults for blocks, from its configuration, fetched on first use.

    If that fails, it is repeated after a pause. No caller waits longer than 30 s.

    Args:
        api_client: Fetches the configuration; None: the defaults stay unknown.
        clock: Replaces `time.monotonic`.
    """

    def __init__(
        self, api_client: ServiceFinder | None, clock: Callable[[], float] | None = None
    ) -> None:
        self._clock = clock or time.monotonic
        self._api_client = api_client
        self._pause = Pause(self._clock)
        self._asking = Joined(self._ask, "configuration", self._clock)
        self._config: Mapping[str, Any] | None = None if api_client else {}

    def storage_classes(self, timeout: float) -> tuple[str, ...]:
        """Return the default storage classes; empty if unknown, with a warning if it failed."""
        classes = self._get(timeout).get("StorageClasses")
        if not isinstance(classes, dict):
            return ()
        # A class without the key isn't a default.
        return tuple(
            sorted(str(name) for name, it in classes.items() if it and it.get("Default") is True)
        )

    def all_classes(self, timeout: float) -> frozenset[str]:
        """Return the names of all storage classes; empty if unknown."""
        classes = self._get(timeout).get("StorageClasses")
        return frozenset(map(str, classes)) if isinstance(classes, dict) else frozenset()

    def copies(self, timeout: float) -> int | None:
        """Return the default number of copies, or None if unknown."""
        collections = self._get(timeout).get("Collections")
        copies = collections.get("DefaultReplication") if isinstance(collections, dict) else None
        return copies if isinstance(copies, int) and copies > 0 else None

    def _get(self, timeout: float) -> Mapping[str, Any]:
        if self._config is not None:
            return self._config
        if not self._pause.is_over():
            return {}
        run = self._asking.start()
        try:
            patience = max(0.0, run.begun + _PATIENCE - self._clock())
            return run.wait(min(timeout, patience))
        except NoKeepServersError as error:
            if self._pause.begin():
                _log.warning("%s", of_stores.DEFAULTS_UNKNOWN(reason=error))
            return {}

    def close(self) -> None:
        """Wake all callers that wait for the configuration."""
        self._asking.close()

    def _ask(self) -> Mapping[str, Any]:
        if self._config is not None:  # another request got it meanwhile
            return self._config
        config = self._api_client.config() if self._api_client else {}
        # A stand-in for an API client may have no configuration.
        self._config = config if isinstance(config, dict) else {}
        return self._config
