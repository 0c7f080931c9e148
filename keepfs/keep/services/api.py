"""ApiClient: requests to the Arvados API server.

It is compatible with the SDK's client as far as `KeepClient` uses it, so `KeepClient`
accepts either. Each call blocks, for at most `timeout` seconds plus the time that long
bodies add.
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
from keepfs.keep.services.long_json import LongTexts
from keepfs.keep.services.outcome import TRANSPORT_ERRORS, cause_of_error, innermost
from keepfs.keep.services.tokens import clean_token, redacted, without_token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from keepfs.keep.http.transport import Answer

#: Seconds that a call may take. Guessed: the lists are short.
DEFAULT_TIMEOUT = 60.0
#: Seconds to connect.
_CONNECT = 10.0
#: Most bytes of an answer that are read: a list of services takes 400 for each.
_MOST_BYTES = 16 * 1024 * 1024
#: Most bytes of an error's answer that are read, and most reasons of it that are kept.
_MOST_ERROR, _MOST_LINES = 64 * 1024, 5
#: Least rate, in bytes per second, at which long bodies are sent, handled and received.
#: Guessed: a slow link has that; 128 MiB take 8.5 minutes at most.
LEAST_RATE = 256 * 1024
#: Bytes of a long answer that are received at a time.
_AT_ONCE = 64 * 1024
_DENIED = frozenset({401, 403})
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?\Z", re.ASCII)


class ApiError(HttpError):
    """A request to the API server failed.

    Args:
        status_code: The HTTP status; 0 without an answer.
        reason: The status line, or a description of the failure.
        cause: The cause, for exit codes and errnos.
        said: The server's own reasons (`errors` of its answer), each one line.
    """

    def __init__(
        self, status_code: int, reason: str, cause: Cause, said: Sequence[str] = ()
    ) -> None:
        super().__init__(status_code, reason)
        self.cause = cause
        self.said = tuple(said)


class ApiRequest:
    """A prepared request, as in the SDK; `execute` makes it."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self._make = make

    def execute(self, num_retries: int = 0) -> dict[str, Any]:  # noqa: ARG002 - the SDK's signature
        """Make the request once and return the answer; `num_retries` is ignored. Blocks.

        Raises:
            ApiError: The request failed.
        """
        return self._make()


class _KeepServices:
    def __init__(self, api: ApiClient) -> None:
        self._api = api

    def accessible(self) -> ApiRequest:
        """Return a request for the services that are accessible from this host."""
        return ApiRequest(lambda: self._api.get("arvados/v1/keep_services/accessible"))


class _Users:
    def __init__(self, api: ApiClient) -> None:
        self._api = api

    def current(self) -> ApiRequest:
        """Return a request for the token's user, which checks the token."""
        return ApiRequest(lambda: self._api.get("arvados/v1/users/current"))


class ApiClient:
    """A client of one API server. Any thread may use it.

    Args:
        root: Base URL.
        api_token: The user's token; it may be replaced at any time.
        insecure: Whether to disable certificate checks.
        request_id: Sent with each request, unless None.
        timeout: Seconds that a call may take.
        exchanges: Provides the connections; None: its own.
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
        """Make a client from the Arvados settings; `api_token` replaces their token.

        Raises:
            ArgumentError: Host or token is missing or invalid.
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
            ApiError: The request failed.
        """
        return self.get("arvados/v1/config")

    def get(self, path: str) -> dict[str, Any]:
        """Fetch one JSON object. Blocks.

        Raises:
            ApiError: The request failed.
        """
        return self.request("GET", path)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytearray | bytes | None = None,
        long_text: str = "",
        total: float | None = None,
    ) -> dict[str, Any]:
        """Make one request and return the JSON object of the answer. Blocks.

        The request is sent once; a GET or PUT is sent again if a kept connection turns out
        to be closed. Time limit: `timeout` for connecting, the server's work and short
        bodies; plus, for sending and handling `body`, twice its size divided by
        `LEAST_RATE`; plus the size of an answer with `long_text` divided by `LEAST_RATE`.

        Args:
            method: GET, POST, PATCH, PUT or DELETE.
            path: The quoted path and query after the base URL.
            body: JSON; sent without a copy; it must not change meanwhile.
            long_text: Name of texts in the answer that may be very long. They are
                returned as bytes (UTF-8). Receiving one takes its size in memory,
                twice that at the end.
            total: Seconds that the call may take in total; None for no other limit.

        Raises:
            ApiError: The request failed.
        """
        token = self.api_token
        headers = {"Accept": "application/json", "User-Agent": f"keepfs/{__version__}"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if isinstance(self.request_id, str):
            headers["X-Request-Id"] = self.request_id
        view = None
        silence = self.timeout
        if body is not None:
            headers["Content-Type"] = "application/json"
            view = memoryview(body)
            silence += view.nbytes / LEAST_RATE
        limit = self.timeout + (view.nbytes * 2 / LEAST_RATE if view else 0)
        now = time.monotonic()
        pace = Pace(Timeouts(_CONNECT, silence, 0), now + min(limit, total or limit))
        end = None if total is None else now + total
        try:
            transport = self._exchanges.begin(pace)
            limits = (min(_CONNECT, self.timeout), silence)
            with (
                transport.send(method, self.root, path, headers, view, limits, pace) as sent,
                sent.receive() as answer,
            ):
                return self._answer(answer, token, long_text, pace, end)
        except TRANSPORT_ERRORS as error:
            happened = pace.failure or innermost(error)
            text = redacted(str(happened) or type(happened).__name__, token)
            failure = ApiError(0, f"{self.root}: {text}", cause_of_error(pace.failure or error))
        finally:
            self._exchanges.end(pace)
        raise failure

    def close(self) -> None:
        """Close its connections."""
        self._exchanges.close()

    def _answer(
        self, answer: Answer, token: str, long_text: str, pace: Pace, end: float | None
    ) -> dict[str, Any]:
        status = answer.status
        if status != HTTPStatus.OK:
            line = redacted(f"{self.root}: {status} {answer.reason}".strip(), token)
            cause = Cause.DENIED if status in _DENIED else Cause.OTHER
            raise ApiError(status, line, cause, _said(answer.raw.read(_MOST_ERROR), token))
        try:
            if long_text:
                found = self._long(answer, long_text, pace, end)
            else:
                found = json.loads(answer.raw.read(_MOST_BYTES))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ApiError(status, f"{self.root}: not a JSON object", Cause.OTHER)
        return found

    def _long(self, answer: Answer, name: str, pace: Pace, end: float | None) -> Any:  # noqa: ANN401 - any JSON
        texts = LongTexts(name, _MOST_BYTES)
        pace.extend(_AT_ONCE / LEAST_RATE)
        while piece := answer.raw.read(_AT_ONCE):
            texts.feed(piece)
            pace.extend(len(piece) / LEAST_RATE)
            if end is not None:
                pace.hurry(end - time.monotonic())
        return texts.parsed()


def _said(body: bytes, token: str) -> list[str]:
    """Return the server's reasons from the answer to a failed request."""
    try:
        errors = json.loads(body)["errors"]
    except (ValueError, KeyError, TypeError):
        return []
    if not isinstance(errors, list):
        return []
    return [without_token(str(each), token) for each in errors[:_MOST_LINES]]


def verify_setting(
    *, insecure: bool, find_bundle: Callable[[], Path | None] = ca_file
) -> bool | str:
    """Return the `verify` setting of `requests`: a bundle's path, True or False."""
    if insecure:
        return False
    bundle = find_bundle()
    return True if bundle is None else str(bundle)
