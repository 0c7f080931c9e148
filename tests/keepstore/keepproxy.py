"""A keepproxy: checks tokens, writes several copies, and maps errors its own way.

It stands in front of running keepstores, which it asks over their sockets, and
holds no blocks itself. Unlike the real one it knows its tokens without an API
server, and it waits between its rounds only if told to.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.keepstore import admin
from tests.keepstore.answers import CORS, http_error, request_id
from tests.keepstore.clock import Clock
from tests.keepstore.keepstore import MANAGEMENT_TOKEN, ROOT_TOKEN, TEST_TOKEN
from tests.keepstore.locators import (
    EMPTY_DIGEST,
    MAX_BLOCK_SIZE,
    RefusalError,
    quoted,
    weight,
)
from tests.keepstore.slots import BusyError, DeadlineError, Slots
from tests.keepstore.upstream import Fetched, fetch
from tests.keepstore.wire import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.keepstore.wire import Content, Request

_VIA = "HTTP/1.1 keepproxy"
_ROUTE = re.compile(r"/([0-9a-f]{32}(?:\+.*)?)", re.DOTALL)
_K_HINT = re.compile(r"\+K@[a-z0-9]{5}(?=\+|\Z)")
_NOT_ALLOWED = "Missing or invalid Authorization header, or method not allowed"
_TOO_FEW = "Could not write sufficient replicas"
# Bytes of another server's error that are quoted.
_MOST_QUOTED = 4096


class Store(NamedTuple):
    """A keepstore behind the proxy."""

    uuid: str
    url: str


@dataclass(slots=True, kw_only=True)
class ProxySettings:
    """What an administrator would have configured; may be changed at any time.

    Attributes:
        stores: The keepstores, in any order.
        tokens: Of users who may do what users may.
        admin_tokens: Of administrators, who may do everything.
        scoped_tokens: Good for reading only.
        user_upload: Whether users may write.
        user_download: Whether users may read.
        replication: Copies made for a PUT that doesn't say how many.
        rounds: How often a keepstore with a temporary failure is asked.
        round_delay: Seconds between two rounds. The real one waits a random
            time of up to 2 s, then twice as long.
        max_requests: Requests at once; None for any number.
        max_queued: Requests that may wait for others to end.
        management_token: For health and metrics.
    """

    stores: list[Store] = field(default_factory=list)
    tokens: tuple[str, ...] = (TEST_TOKEN,)
    admin_tokens: tuple[str, ...] = (ROOT_TOKEN,)
    scoped_tokens: tuple[str, ...] = ()
    user_upload: bool = True
    user_download: bool = True
    replication: int = 2
    rounds: int = 3
    round_delay: float = 0.0
    max_requests: int | None = 64
    max_queued: int | None = 128
    management_token: str = MANAGEMENT_TOKEN


@dataclass(slots=True)
class _Copies:
    """The copies of one block, as far as they are made."""

    count: int = 0
    locator: str = ""
    errors: dict[str, str] = field(default_factory=dict)


class Keepproxy:
    """The service of a keepproxy."""

    def __init__(self, settings: ProxySettings | None = None, clock: Clock | None = None) -> None:
        self.settings = settings or ProxySettings()
        self.clock = clock or Clock()
        self.slots = Slots(self.settings.max_requests, self.settings.max_queued)

    def stop(self) -> None:
        """Let no request wait any longer: the server ends."""
        self.slots.stop()

    def answer(self, request: Request) -> Answer:
        """Carry out a request."""
        management = self.settings.management_token
        answer = admin.metrics(management, request)
        if answer is not None:
            return answer
        answer = admin.health(management, request) or self._limited(request)
        answer.headers["X-Request-Id"] = request.header("X-Request-Id") or request_id()
        return answer

    def _limited(self, request: Request) -> Answer:
        try:
            self.slots.take(300.0)
        except (BusyError, DeadlineError):
            return Answer(503)
        request.releases.callback(self.slots.give_back)
        return self._routed(request)

    def _routed(self, request: Request) -> Answer:
        path, method = request.path, request.method
        route = _ROUTE.fullmatch(path)
        via = {"Via": _VIA}
        if method == "OPTIONS":
            answer, via = Answer(200), {}
        elif method in {"GET", "HEAD"} and (match := re.fullmatch(r"/index(?:/(.*))?", path)):
            answer, via = self._index(request, match[1] or ""), {}
        elif (method in {"GET", "HEAD", "PUT"} and route) or (method == "POST" and path == "/"):
            if any(_VIA in text for name, text in request.headers if name.lower() == "via"):
                return http_error(500, "loop detected")
            is_write = method in {"PUT", "POST"}
            locator = route[1] if route else ""
            answer = self._write(request, locator) if is_write else self._read(request, locator)
        else:
            return Answer(405)
        answer.headers |= CORS | via
        answer.headers["Access-Control-Allow-Methods"] += ", POST"
        return answer

    def _token(self, request: Request, *, is_write: bool) -> str | None:
        scheme, _, text = request.header("Authorization").partition(" ")
        token = text.strip()
        settings = self.settings
        if scheme not in {"Bearer", "OAuth2"}:
            return None
        is_permitted = settings.user_upload if is_write else settings.user_download
        allowed = token in settings.admin_tokens or (token in settings.tokens and is_permitted)
        return token if allowed or (token in settings.scoped_tokens and not is_write) else None

    def _ordered(self, digest: str) -> list[Store]:
        return sorted(
            self.settings.stores, key=lambda store: weight(digest, store.uuid), reverse=True
        )

    def _index(self, request: Request, prefix: str) -> Answer:
        lines = b""
        headers = {"Authorization": request.header("Authorization")}
        for store in self.settings.stores:
            try:
                listed = fetch("GET", f"{store.url}/index/{prefix}", headers)
            except OSError as error:
                return http_error(502, str(error))
            if listed.status != 200:
                return http_error(502, f"Got http status code: {listed.status}")
            lines += listed.body[:-1]
        return Answer(200, lines + b"\n")

    # --- reading ------------------------------------------------------------

    def _read(self, request: Request, text: str) -> Answer:
        token = self._token(request, is_write=False)
        if token is None:
            return http_error(403, _NOT_ALLOWED)
        locator = _K_HINT.sub("", text)
        if locator.startswith(f"{EMPTY_DIGEST}+0"):
            return Answer(200, length=0)
        try:
            found, size = self._find(request.method, locator, token)
        except RefusalError as refusal:
            return http_error(refusal.status, refusal.text or "")
        return Answer(200, found.body, length=size)

    def _find(self, method: str, locator: str, token: str) -> tuple[Fetched, int]:
        hinted = re.match(r"[0-9a-f]{32}\+([0-9]+)", locator)
        size = int(hinted[1]) if hinted else None
        stores = self._ordered(locator[:32])
        errors: list[str] = []
        missing = 0
        for round_number in range(self.settings.rounds):
            again = []
            for store in stores:
                url = f"{store.url}/{locator}"
                try:
                    found = self._get(method, store, locator, token)
                except OSError as error:
                    errors.append(f'{url}: {method.title()} "{url}": {_dial_error(store, error)}')
                    again.append(store)
                    continue
                if found.status != 200:
                    text = found.body[:_MOST_QUOTED].decode().strip()
                    errors.append(f"{url}: HTTP {found.status} {json.dumps(text)}")
                    missing += found.status == 404
                    if _is_temporary(found.status):
                        again.append(store)
                    continue
                if size is not None and found.length != size:
                    text = f"size hint {size} != Content-Length {found.length}"
                    raise RefusalError(500, f'error reading "{locator}": {text}')
                return found, found.length or 0
            stores = again
            self._rest(round_number, stores)
        if missing == len(self.settings.stores):
            raise RefusalError(404, "Block not found")
        text = f"{method} {locator} failed: [{' '.join(errors)}]"
        raise RefusalError(502 if stores else 422, text)

    def _get(self, method: str, store: Store, locator: str, token: str) -> Fetched:
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/octet-stream"}
        return fetch(method, f"{store.url}/{quoted(locator)}", headers)

    def _rest(self, round_number: int, stores: list[Store]) -> None:
        if stores and round_number + 1 < self.settings.rounds and self.settings.round_delay:
            time.sleep(self.settings.round_delay)

    # --- writing ------------------------------------------------------------

    def _write(self, request: Request, locator: str) -> Answer:
        try:
            token = self._checked_token(request, locator)
        except RefusalError as refusal:
            return http_error(refusal.status, refusal.text or "")
        announced = int(request.header("Content-Length"))
        too_big = f"Exceeded maximum block size ({MAX_BLOCK_SIZE})"
        if locator and announced > MAX_BLOCK_SIZE:
            return _stored(http_error(413, too_big), 0)
        content = request.body.read(announced)
        if len(content) > MAX_BLOCK_SIZE:
            return _stored(http_error(413, too_big), 0)
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        wanted = _first_number(request.header("X-Keep-Desired-Replicas"))
        classes = request.header("X-Keep-Storage-Classes")
        names = [name.strip() for name in classes.split(",")] if classes else []
        copies = _Copies()
        if not locator or locator[:32] == digest:
            copies = self._copy(
                digest,
                content,
                self.settings.replication if wanted is None else wanted,
                {"Authorization": f"Bearer {token}", "X-Keep-Storage-Classes": ", ".join(names)},
            )
        if locator and locator != digest:
            text = f"block hash {digest} did not match provided hash {locator}"
            return _stored(http_error(502, text), 0)
        if copies.count < (self.settings.replication if wanted is None else wanted):
            text = ": ".join([_TOO_FEW, *filter(None, ["; ".join(copies.errors.values())])])
            return _stored(http_error(503, text), copies.count)
        answer = _stored(Answer(200, copies.locator.encode()), copies.count)
        if names:
            confirmed = ", ".join(f"{name}={copies.count}" for name in names)
            answer.headers["X-Keep-Storage-Classes-Confirmed"] = confirmed
        return answer

    def _checked_token(self, request: Request, locator: str) -> str:
        announced = request.header("Content-Length")
        if not announced:
            raise RefusalError(411, "Length Required")
        hinted = re.match(r"[0-9a-f]{32}\+([0-9]+)", locator)
        if hinted and int(hinted[1]) not in {0, int(announced)}:
            raise RefusalError(400, "Locator size hint does not match Content-Length header")
        token = self._token(request, is_write=True)
        if token is None:
            raise RefusalError(403, _NOT_ALLOWED)
        return token

    def _copy(
        self, digest: str, content: Content, wanted: int, headers: dict[str, str]
    ) -> _Copies:
        copies = _Copies()
        stores: Iterable[Store] = self._ordered(digest)
        for round_number in range(self.settings.rounds):
            again = []
            for store in stores:
                if copies.count >= wanted:
                    return copies
                url = f"{store.url}/{digest}"
                try:
                    done = fetch("PUT", url, headers, content)
                except OSError as error:
                    reason = _dial_error(store, error).removesuffix(": connection refused")
                    copies.errors[url] = f'[0] Put "{url}": {reason}'
                    again.append(store)
                    continue
                if done.status == 200:
                    copies.count += int(done.headers["x-keep-replicas-stored"])
                    copies.locator = done.body.decode().strip()
                    copies.errors.pop(url, None)
                    continue
                copies.errors[url] = f"[{done.status}] {done.body.decode().strip()}"
                if _is_temporary(done.status) and done.status != 507:
                    again.append(store)
            stores = again
            self._rest(round_number, again)
        return copies


def _stored(answer: Answer, copies: int) -> Answer:
    answer.headers["X-Keep-Replicas-Stored"] = str(copies)
    return answer


def _first_number(text: str) -> int | None:
    match = re.match(r"\s*([+-]?[0-9]+)", text)
    return int(match[1]) if match else None


def _is_temporary(status: int) -> bool:
    return status in {408, 429} or status >= 500


def _dial_error(store: Store, error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        address = store.url.partition("://")[2]
        return f"dial tcp {address}: connect: connection refused"
    return "EOF"
