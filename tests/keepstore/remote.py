"""Blocks of other clusters, which a keepstore fetches for its clients.

The remote cluster's API server is asked, over https and without checking its
certificate, which services it has; the first that answers well is used.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
from typing import TYPE_CHECKING

from tests.keepstore.locators import Locator, RefusalError, quoted, salted, tokens, weight
from tests.keepstore.upstream import Fetched, fetch
from tests.keepstore.wire import Answer

if TYPE_CHECKING:
    from tests.keepstore.keepstore import Keepstore
    from tests.keepstore.wire import Request

_REMOTE_HINT = re.compile(r"R([^+]{5})-(.*)", re.DOTALL)


def read(store: Keepstore, request: Request, locator: Locator) -> Answer:
    """Answer a GET or HEAD of a locator that only another cluster has signed.

    Raises:
        RefusalError: There is no such cluster, or the token isn't fit for it.
    """
    token = next(iter(tokens(request)), "")
    if not token:
        raise RefusalError(401, "no token provided in Authorization header")
    parts = []
    api = salt = ""
    for part in locator.text.split("+"):
        hint = _REMOTE_HINT.match(part)
        if part.startswith("A"):
            continue
        if hint is None:
            parts.append(part)
            continue
        if hint[1] not in store.settings.remotes:
            raise RefusalError(400, "remote cluster not configured")
        api, salt = store.settings.remotes[hint[1]], salted(token, hint[1])
        parts.append(f"A{hint[2]}")
    if not api:
        raise RefusalError(400, "invalid remote hint")
    store.take_buffer(request)
    asked = "+".join(parts)
    status, body = _fetch_block(api, asked, salt, locator)
    wants_local = request.header("X-Keep-Signature").partition(",")[0] == "local"
    if status != 200:
        # The length of the block was announced before it turned out bad.
        return Answer(status, length=None if wants_local else locator.size)
    answer = Answer(200, body, length=len(body))
    if wants_local:
        store.write(locator.digest, body, set())
        answer.headers["X-Keep-Locator"] = store.sign(f"{locator.digest}+{len(body)}", token)
    if request.method == "HEAD":
        answer.body = b""
    return answer


def _fetch_block(api: str, asked: str, token: str, locator: Locator) -> tuple[int, bytes]:
    insecure = ssl.create_default_context()
    insecure.check_hostname = False
    insecure.verify_mode = ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {token}"}
    status = 404
    try:
        listed = fetch(
            "GET",
            f"{api}/arvados/v1/keep_services/accessible",
            {"Authorization": "Bearer xxx"},
            context=insecure,
        )
        for root in _roots(listed, locator.digest):
            block = fetch("GET", f"{root}/{quoted(asked)}", headers)
            if block.status == 200:
                if is_intact(block.body, locator):
                    return 200, block.body
                status = 500
    except (OSError, ValueError, KeyError):
        return 502, b""
    return status, b""


def _roots(listed: Fetched, digest: str) -> list[str]:
    services = json.loads(listed.body)["items"]
    services.sort(key=lambda service: weight(digest, service["uuid"]), reverse=True)
    return [
        f"http{'s' if each['service_ssl_flag'] else ''}://"
        f"{each['service_host']}:{each['service_port']}"
        for each in services
    ]


def is_intact(block: bytes, locator: Locator) -> bool:
    """Tell whether a block is the one that a locator names."""
    md5sum = hashlib.md5(block, usedforsecurity=False).hexdigest()
    return md5sum == locator.digest and locator.size in {0, len(block)}
