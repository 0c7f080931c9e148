"""Roster: the services there are, asked for when it matters.

The API server is asked in a thread of its own. Callers join the request that
is under way, each no longer than its own patience lasts, and nobody waits who
could go on with the list as it was. A list that can't be had, or is of no use, never
replaces the one there is; it is asked for again after a pause.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from keepfs.keep.errors import KeepRequestError, NoKeepServersError
from keepfs.keep.services.discovery import Access, Services
from keepfs.keep.services.joined import Joined, Pause, TooLateError, UselessAnswerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)

#: Seconds after which a list is asked for again in passing. Guessed: a
#: cluster's services change a few times a year.
_OLD = 600.0
#: Seconds for which a list is believed though a service on it didn't answer,
#: or none of them had the block.
_YOUNG = 30.0
#: Seconds to wait for a newer list where there is one to go on with. Guessed.
_PATIENCE = 30.0
_LIST = "list of services"


class ServiceFinder(Protocol):
    """What finds the services: our API client, the SDK's, or anything that acts like it."""

    def keep_services(self) -> Any:  # noqa: ANN401 - `.accessible().execute()` is all we ask of it
        """Return the collection of service records."""

    def config(self) -> Mapping[str, Any]:
        """Return the cluster's public configuration."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A list, and when it was asked for."""

    services: Services
    at: float


class Roster:
    """The list of services, fixed or discovered. Any thread may use it.

    Args:
        api_client: Whom to ask; None where the list is fixed.
        fixed: The list that a user gave, or None.
        clock: Instead of `time.monotonic`.
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
        """Return the list as it is known, without asking."""
        seen = self._seen
        return None if seen is None else seen.services

    def current(self, timeout: float) -> Services:
        """Return the list; only the first ever has to be waited for.

        Raises:
            NoKeepServersError: There is none, and `timeout` seconds brought none.
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
        """Return a newer list than `stale`, which somebody may have fetched meanwhile.

        Where there is none to be had, the known one goes on serving: the
        services may well be there while the API server isn't.

        Raises:
            NoKeepServersError: There is no list at all.
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
            # Others may have waited for the same request for long.
            patience = max(0.0, run.begun + _PATIENCE - self._clock())
            return run.wait(min(timeout, patience)).services
        except TooLateError as error:
            self._note_failure(error)
        except NoKeepServersError:
            pass  # noted by the thread that asked
        return seen.services

    def close(self) -> None:
        """Let nobody wait for a list any more."""
        self._asking.close()
        self._asking_first.close()

    def doubt(self, services: Services) -> None:
        """Note that a service of this list didn't answer: the list may be old."""
        self._doubted = services

    def may_be_old(self, services: Services) -> bool:
        """Tell whether a block that nobody had may be on a service that isn't in the list."""
        seen = self._seen
        return (
            seen is not None
            and not seen.services.is_fixed
            and (seen.services is not services or self._clock() - seen.at > _YOUNG)
        )

    def _ask_unless_known(self) -> _Seen:
        """Ask for the first list, unless it came while somebody was about to ask."""
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
        if self._seen is None or begun >= self._seen.at:  # else this request had hung
            self._seen = _Seen(services, begun)
        return self._seen

    def _note_failure(self, error: Exception) -> None:
        if self._pause.begin() and self._seen is not None:
            _log.warning("going on with the known Keep services: %s", error)


def _sensible(items: Any) -> Services:  # noqa: ANN401 - what the server says
    """Take a list that names a service that can be asked.

    Raises:
        UselessAnswerError: It names none.
    """
    services = Services.of_list(items)
    if not services.allowing(Access.READ):
        raise UselessAnswerError(
            f"of {len(items)} services on it, none can be asked" if items else "it is empty"
        )
    return services


class Defaults:
    """What the cluster's configuration says of blocks: asked once, when first wanted.

    Where it can't be had, it is asked for again after a pause, and nobody waits for
    it longer than 30 s.

    Args:
        api_client: Whom to ask; None where there is none.
        clock: Instead of `time.monotonic`.
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
        """Return the classes that blocks go to by default; none, with a warning, if unknown."""
        classes = self._get(timeout).get("StorageClasses")
        if not isinstance(classes, dict):
            return ()
        # A class that doesn't say is no default; the others still are.
        return tuple(
            sorted(str(name) for name, it in classes.items() if it and it.get("Default") is True)
        )

    def all_classes(self, timeout: float) -> frozenset[str]:
        """Return the names of the storage classes that there are; none if unknown."""
        classes = self._get(timeout).get("StorageClasses")
        return frozenset(map(str, classes)) if isinstance(classes, dict) else frozenset()

    def copies(self, timeout: float) -> int | None:
        """Return how many copies the cluster wants by default, or None if it doesn't say."""
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
                _log.warning("the cluster's defaults are unknown: %s", error)
            return {}

    def close(self) -> None:
        """Let nobody wait for the configuration any more."""
        self._asking.close()

    def _ask(self) -> Mapping[str, Any]:
        if self._config is not None:  # it came while somebody was about to ask
            return self._config
        config = self._api_client.config() if self._api_client else {}
        # A stand-in for an API client may have no configuration.
        self._config = config if isinstance(config, dict) else {}
        return self._config
