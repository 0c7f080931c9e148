"""Roster: the services there are, asked for when it matters and never twice at once.

The API server is asked in a thread of its own. Callers join the request that
is under way, each no longer than its own patience lasts, and nobody waits who
could go on with the list as it was.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from keepfs.keep.discovery import Services
from keepfs.keep.errors import Cause, KeepRequestError, NoKeepServersError
from keepfs.keep.outcome import cause_of_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Seconds after which a list is asked for again in passing. Guessed: a
#: cluster's services change a few times a year.
_OLD = 600.0
#: Seconds for which a list is believed though a service on it didn't answer,
#: or none of them had the block.
_YOUNG = 30.0
#: Seconds to wait for a newer list where there is one to go on with. Guessed.
_PATIENCE = 30.0


class ApiClient(Protocol):
    """What finds the services: our API client, the SDK's, or anything that acts like it."""

    def keep_services(self) -> Any:  # noqa: ANN401 - `.accessible().execute()` is all we ask of it
        """Return the collection of service records."""

    def config(self) -> Mapping[str, Any]:
        """Return the cluster's public configuration."""


class Joined(Generic[_T]):
    """A function that runs once at a time, however many call for it.

    Args:
        function: What to run; in a daemon thread of its own.
    """

    def __init__(self, function: Callable[[], _T]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._run: _Run[_T] | None = None

    def start(self) -> _Run[_T]:
        """Join the run under way, or start one. Returns at once."""
        with self._lock:
            if self._run is None or self._run.done.is_set():
                self._run = _Run()
                threading.Thread(
                    target=self._run.execute, args=(self._function,), daemon=True
                ).start()
            return self._run


class _Run(Generic[_T]):
    """One run, and what came of it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self._result: list[_T] = []
        self._failure: tuple[str, Cause] = ("", Cause.OTHER)

    def execute(self, function: Callable[[], _T]) -> None:
        """Run it; no error leaves."""
        try:
            self._result.append(function())
        except Exception as error:  # noqa: BLE001 - the API client may be anybody's
            # Only what it says is kept: its traceback would keep frames alive.
            self._failure = (f"{type(error).__name__}: {error}", cause_of_error(error))
        finally:
            self.done.set()

    def wait(self, timeout: float) -> _T:
        """Wait for the result.

        Raises:
            NoKeepServersError: It failed, or takes longer than `timeout` seconds.
        """
        if not self.done.wait(max(0.0, timeout)):
            raise NoKeepServersError("the API server takes too long", cause=Cause.TIMED_OUT)
        if self._result:
            return self._result[0]
        text, cause = self._failure
        raise NoKeepServersError(f"the API server gave no list of services ({text})", cause=cause)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A list, and when it was had."""

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
        api_client: ApiClient | None,
        fixed: Services | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._clock = clock or time.monotonic
        self._seen = None if fixed is None else _Seen(fixed, self._clock())
        self._doubted: Services | None = None
        self._api_client = api_client
        self._asking = Joined(self._ask)
        self._asking_first = Joined(self._ask_unless_known)

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
            return self._asking_first.start().wait(timeout).services
        if not seen.services.is_fixed:
            age = self._clock() - seen.at
            if age > _OLD or (age > _YOUNG and self._doubted is seen.services):
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
        try:
            limit = timeout if seen is None else min(timeout, _PATIENCE)
            asking = self._asking_first if seen is None else self._asking
            return asking.start().wait(limit).services
        except NoKeepServersError as error:
            if seen is None:
                raise
            _log.warning("going on with the known Keep services: %s", error)
            return seen.services

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
        answer = self._api_client.keep_services().accessible().execute()
        self._seen = _Seen(Services.of_list(answer.get("items", ())), self._clock())
        return self._seen


class Defaults:
    """What the cluster's configuration says of blocks: asked once, when first wanted.

    Args:
        api_client: Whom to ask; None where there is none.
    """

    def __init__(self, api_client: ApiClient | None) -> None:
        self._api_client = api_client
        self._asking = Joined(self._ask)
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
        try:
            return self._asking.start().wait(timeout)
        except NoKeepServersError as error:
            _log.warning("the cluster's defaults are unknown: %s", error)
            return {}

    def _ask(self) -> Mapping[str, Any]:
        if self._config is not None:  # it came while somebody was about to ask
            return self._config
        config = self._api_client.config() if self._api_client else {}
        # A stand-in for an API client may have no configuration.
        self._config = config if isinstance(config, dict) else {}
        return self._config
