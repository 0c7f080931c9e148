"""ApiClient: the little that a Keep client asks the Arvados API server.

It acts like the SDK's client as far as that goes, so either can be given to
`KeepClient`. Each call blocks, and ends within `timeout` seconds.
"""

from __future__ import annotations

import json
import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from keepfs import __version__
from keepfs.config.arvados import Settings, ca_file, load_settings
from keepfs.keep.errors import ArgumentError, Cause, HttpError
from keepfs.keep.http.exchange import Exchanges
from keepfs.keep.http.pace import Pace
from keepfs.keep.http.timeouts import Timeouts
from keepfs.keep.services.outcome import TRANSPORT_ERRORS, cause_of_error, innermost
from keepfs.keep.services.tokens import clean_token, redacted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keepfs.keep.http.transport import Answer

#: Seconds that a call may take. Guessed: the lists are short.
DEFAULT_TIMEOUT = 60.0
#: Seconds to connect.
_CONNECT = 10.0
#: Bytes of the largest answer that is read: a list of services takes 400 each.
_MOST_BYTES = 16 * 1024 * 1024
_DENIED = frozenset({401, 403})
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?\Z", re.ASCII)


class ApiError(HttpError):
    """The API server didn't answer as it should.

    Args:
        status_code: The HTTP status; 0 without an answer.
        reason: What it said, or what happened.
        cause: Why, for whoever must tell the user.
    """

    def __init__(self, status_code: int, reason: str, cause: Cause) -> None:
        super().__init__(status_code, reason)
        self.cause = cause


class ApiRequest:
    """A request that is ready to be made, as the SDK's are."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self._make = make

    def execute(self, num_retries: int = 0) -> dict[str, Any]:  # noqa: ARG002 - the SDK's signature
        """Make the request and return what the server says. Blocks.

        Raises:
            ApiError: It didn't work.
        """
        return self._make()


class _KeepServices:
    def __init__(self, api: ApiClient) -> None:
        self._api = api

    def accessible(self) -> ApiRequest:
        """Ask for the services that may be used from here."""
        return ApiRequest(lambda: self._api.get("arvados/v1/keep_services/accessible"))


class _Users:
    def __init__(self, api: ApiClient) -> None:
        self._api = api

    def current(self) -> ApiRequest:
        """Ask whose the token is: the check that it is good."""
        return ApiRequest(lambda: self._api.get("arvados/v1/users/current"))


class ApiClient:
    """Asks one API server. Any thread may use it.

    Args:
        root: Base URL.
        api_token: The user's; it may be replaced at any time.
        insecure: Whether certificates go unchecked.
        request_id: Goes with each request, if given.
        timeout: Seconds that a call may take.
        exchanges: Where connections come from; its own when not given.
    """

    def __init__(
        self,
        root: str,
        api_token: str = "",
        *,
        insecure: bool = False,
        request_id: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        exchanges: Exchanges | None = None,
    ) -> None:
        self.root = root if root.endswith("/") else f"{root}/"
        self.api_token = clean_token(api_token)
        self.insecure = insecure
        self.request_id = request_id
        self.timeout = timeout
        self._exchanges = exchanges or Exchanges(verify_setting(insecure=insecure))

    def __repr__(self) -> str:
        return f"ApiClient({self.root!r})"

    @classmethod
    def of_settings(
        cls, settings: Settings | None = None, api_token: str | None = None
    ) -> ApiClient:
        """Make one from Arvados's own settings; `api_token` counts instead of theirs.

        Raises:
            ArgumentError: They don't say where, or for whom.
        """
        settings = settings or load_settings()
        token = settings.api_token if api_token is None else api_token
        named = {"ARVADOS_API_HOST": settings.api_host, "ARVADOS_API_TOKEN": token}
        missing = [name for name, value in named.items() if not value]
        if missing:
            raise ArgumentError(
                f"no Keep services are configured: {' and '.join(missing)} not set, neither in"
                " the environment nor in ~/.config/arvados/settings.conf; to go without a"
                " cluster, give local_store=DIRECTORY or set KEEP_LOCAL_STORE"
            )
        if not _HOST.match(settings.api_host):
            raise ArgumentError(
                f"{settings.origin('ARVADOS_API_HOST')} is {settings.api_host!r}: give HOST or"
                " HOST:PORT; the API server is always asked over https"
            )
        root = f"https://{settings.api_host}/"
        return cls(root, token, insecure=settings.insecure)

    def keep_services(self) -> _KeepServices:
        """Return the collection of Keep services."""
        return _KeepServices(self)

    def users(self) -> _Users:
        """Return the collection of users."""
        return _Users(self)

    def config(self) -> dict[str, Any]:
        """Return the cluster's public configuration. Blocks.

        Raises:
            ApiError: It didn't work.
        """
        return self.get("arvados/v1/config")

    def get(self, path: str) -> dict[str, Any]:
        """Fetch one JSON object. Blocks.

        Raises:
            ApiError: It didn't work.
        """
        token = self.api_token
        headers = {"Accept": "application/json", "User-Agent": f"keepfs/{__version__}"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if isinstance(self.request_id, str):
            headers["X-Request-Id"] = self.request_id
        pace = Pace(Timeouts(_CONNECT, self.timeout, 0), time.monotonic() + self.timeout)
        try:
            with self._exchanges.begin(pace) as transport:
                limits = (min(_CONNECT, self.timeout), self.timeout)
                with (
                    transport.send("GET", self.root, path, headers, None, limits, pace) as sent,
                    sent.receive() as answer,
                ):
                    return self._answer(answer, token)
        except TRANSPORT_ERRORS as error:
            happened = pace.failure or innermost(error)
            text = redacted(str(happened) or type(happened).__name__, token)
            failure = ApiError(0, f"{self.root}: {text}", cause_of_error(pace.failure or error))
        raise failure

    def close(self) -> None:
        """Close its connections."""
        self._exchanges.close()

    def _answer(self, answer: Answer, token: str) -> dict[str, Any]:
        status = answer.status
        if status != HTTPStatus.OK:
            line = redacted(f"{self.root}: {status} {answer.reason}".strip(), token)
            raise ApiError(status, line, Cause.DENIED if status in _DENIED else Cause.OTHER)
        text = answer.raw.read(_MOST_BYTES)
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ApiError(status, f"{self.root}: not a JSON object", Cause.OTHER)
        return found


def verify_setting(
    *, insecure: bool, find_bundle: Callable[[], Path | None] = ca_file
) -> bool | str:
    """Choose what certificates are checked against, in the form `requests` takes."""
    if insecure:
        return False
    bundle = find_bundle()
    return True if bundle is None else str(bundle)
