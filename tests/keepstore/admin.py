"""Administration of a keepstore: index, trash, pull, health, metrics.

Work that the real keepstore puts off (trash and pull lists) is done here
before the answer, so that a test needs not wait for it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tests.keepstore.answers import http_error, refused
from tests.keepstore.locators import RefusalError, tokens
from tests.keepstore.upstream import fetch
from tests.keepstore.wire import Answer

if TYPE_CHECKING:
    from tests.keepstore.keepstore import Keepstore
    from tests.keepstore.wire import Content, Request

_MAX_LIST = 1 << 30


def health(management_token: str, request: Request) -> Answer | None:
    """Answer `/_health/ping` and `/_inspect/requests`; these are never busy."""
    path = request.path
    if path not in {"/_health/ping", "/_inspect/requests"}:
        return None
    if request.method not in {"GET", "HEAD"}:
        answer = http_error(405, "Method Not Allowed")
        answer.headers["Allow"] = "GET, OPTIONS"
        return answer
    known = tokens(request)
    if not known:
        return http_error(401, "authorization required")
    if management_token not in known:
        return http_error(403, "authorization error")
    body = b'{"health":"OK"}\n' if path == "/_health/ping" else b"[]\n"
    return Answer(200, body, {"Content-Type": "application/json"})


def metrics(management_token: str, request: Request) -> Answer | None:
    """Answer `/metrics` and `/metrics.json`, with a few of the real metrics."""
    path = request.path
    if path not in {"/metrics", "/metrics.json"} or request.method != "GET":
        return None
    known = tokens(request)
    if not known:
        return http_error(401, "Unauthorized")
    if management_token not in known:
        return http_error(403, "Forbidden")
    names = [f"arvados_keepstore_test_{number}" for number in range(128)]
    if path == "/metrics.json":
        return Answer(200, json.dumps([{"name": name} for name in names], indent=2).encode())
    lines = ["# HELP arvados_concurrent_requests Number of requests in progress"]
    lines += ["arvados_concurrent_requests 0", *(f"{name} 0" for name in names), ""]
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    return Answer(200, "\n".join(lines).encode(), headers)


def answer(store: Keepstore, request: Request) -> Answer | None:
    """Answer an administrator's request, or None if it is no such request."""
    for methods, pattern, handler in _ROUTES:
        match = re.fullmatch(pattern, request.path)
        if request.method in methods and match:
            known = tokens(request)
            if not known:
                return http_error(401, "Unauthorized")
            if store.settings.root_token not in known:
                return http_error(403, "Forbidden")
            try:
                return handler(store, request, **match.groupdict())
            except RefusalError as refusal:
                return refused(refusal)
    return None


def _index(store: Keepstore, request: Request, prefix: str) -> Answer:
    prefix = prefix or next(iter(request.query.get("prefix", [])), "")
    lines = [line for volume in store.volumes for line in volume.index(prefix)]
    return _lines(lines)


def _mounts(store: Keepstore, _request: Request) -> Answer:
    mounts = [
        {
            "uuid": volume.uuid,
            "device_id": f"{volume.host}:{volume.root}",
            "allow_write": not volume.read_only,
            "allow_trash": not volume.read_only,
            "replication": volume.replication,
            "storage_classes": dict.fromkeys(volume.classes, True),
        }
        for volume in store.volumes
    ]
    return Answer(200, json.dumps(mounts, separators=(",", ":")).encode() + b"\n")


def _mount_blocks(store: Keepstore, request: Request, uuid: str, prefix: str | None) -> Answer:
    prefix = prefix or next(iter(request.query.get("prefix", [])), "")
    for volume in store.volumes:
        if volume.uuid == uuid:
            return _lines(volume.index(prefix))
    raise RefusalError(404, "file does not exist")


def _lines(lines: list[str]) -> Answer:
    return Answer(200, "".join(f"{line}\n" for line in [*lines, ""]).encode())


def _touch(store: Keepstore, _request: Request, digest: str) -> Answer:
    now = store.clock.time_ns()
    touched = [each.touch(digest, now) for each in store.volumes if not each.read_only]
    if not any(touched):
        raise RefusalError(404, "file does not exist")
    return Answer(200)


def _delete(store: Keepstore, _request: Request, digest: str) -> Answer:
    if not store.settings.trash:
        raise RefusalError(405, "method not allowed")
    failed: RefusalError | None = None
    count = 0
    for volume in store.volumes:
        if volume.read_only:
            continue
        try:
            _trash_one(store, volume.uuid, digest)
            count += 1
        except RefusalError as refusal:
            failed = refusal
    if failed and not count:
        raise failed
    return Answer(200)


def _trash_one(store: Keepstore, uuid: str, digest: str) -> None:
    settings = store.settings
    for volume in store.volumes:
        if volume.uuid == uuid:
            now = store.clock.time_ns()
            volume.trash(digest, now, settings.ttl, settings.trash_lifetime)


def _trash_list(store: Keepstore, request: Request) -> Answer:
    for wish in _parsed(request.body.read(_MAX_LIST)):
        digest = wish["locator"][:32]
        for volume in store.volumes:
            if volume.read_only or wish.get("mount_uuid") not in {None, "", volume.uuid}:
                continue
            block = volume.block(digest)
            if block is not None and block.mtime == wish["block_mtime"]:
                _trash_one(store, volume.uuid, digest)
    return Answer(200)


def _untrash(store: Keepstore, _request: Request, digest: str) -> Answer:
    now = store.clock.time_ns()
    brought = [each.untrash(digest, now) for each in store.volumes if not each.read_only]
    if not any(brought):
        raise RefusalError(404, "file does not exist")
    return Answer(200)


def _pull_list(store: Keepstore, request: Request) -> Answer:
    wishes = _parsed(request.body.read(_MAX_LIST))
    if any(not re.match(r"[0-9a-f]{32}\+[0-9]", wish["locator"]) for wish in wishes):
        text = (
            "rejecting pull list containing a locator without a size hint"
            " -- this probably means keep-balance needs to be upgraded"
        )
        raise RefusalError(400, text)
    for wish in wishes:
        _pull(store, wish)
    return Answer(200)


def _pull(store: Keepstore, wish: dict[str, Any]) -> None:
    token = store.settings.root_token
    locator = store.sign(wish["locator"], token)
    for server in wish["servers"]:
        try:
            fetched = fetch("GET", f"{server}/{locator}", {"Authorization": f"Bearer {token}"})
        except OSError:
            continue
        if fetched.status == 200:
            for volume in store.volumes:
                if wish.get("mount_uuid") in {None, "", volume.uuid}:
                    volume.write(locator[:32], fetched.body, store.clock.time_ns())
                    return


def _parsed(body: Content) -> list[dict[str, Any]]:
    text = bytes(body).decode()
    try:
        parsed: list[dict[str, Any]] = json.loads(text)
    except ValueError:
        # Two of Go's messages; the real one has more.
        first = text.lstrip()[:1]
        if first and first not in '[{"-0123456789tfn':
            message = f"invalid character {first!r} looking for beginning of value"
        else:
            message = "unexpected EOF"
        raise RefusalError(500, message) from None
    return parsed


_DIGEST = r"(?P<digest>[0-9a-f]{32})"
_ROUTES = (
    ({"GET", "HEAD"}, r"/index/?(?P<prefix>)", _index),
    ({"GET", "HEAD"}, r"/index/(?P<prefix>[0-9a-f]{1,32})", _index),
    ({"GET"}, r"/mounts", _mounts),
    ({"GET"}, r"/mounts/(?P<uuid>[^/]+)/blocks/?(?P<prefix>[0-9a-f]{1,32})?", _mount_blocks),
    ({"TOUCH"}, rf"/{_DIGEST}", _touch),
    ({"DELETE"}, rf"/{_DIGEST}", _delete),
    ({"PUT"}, r"/trash", _trash_list),
    ({"PUT"}, r"/pull", _pull_list),
    ({"PUT"}, rf"/untrash/{_DIGEST}", _untrash),
)
