"""Answers that keepstore and keepproxy share."""

from __future__ import annotations

import secrets
import string
from typing import TYPE_CHECKING

from tests.keepstore.wire import Answer

if TYPE_CHECKING:
    from tests.keepstore.locators import RefusalError

#: On every answer of the block and admin routes.
CORS = {
    "Access-Control-Allow-Headers": "Authorization, Content-Length, Content-Type,"
    " X-Keep-Desired-Replicas, X-Keep-Signature, X-Keep-Storage-Classes",
    "Access-Control-Allow-Methods": "GET, HEAD, PUT, OPTIONS",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "X-Keep-Locator, X-Keep-Replicas-Stored,"
    " X-Keep-Storage-Classes-Confirmed",
    "Access-Control-Max-Age": "86486400",
}

_ID_CHARACTERS = string.digits + string.ascii_lowercase


def refused(refusal: RefusalError) -> Answer:
    """Answer with an error, as keepstore's own handlers do."""
    return Answer(refusal.status, b"" if refusal.text is None else f"{refusal.text}\n".encode())


def http_error(status: int, text: str) -> Answer:
    """Answer with an error, as Go's `http.Error` does."""
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        "X-Content-Type-Options": "nosniff",
    }
    return Answer(status, f"{text}\n".encode(), headers)


def request_id() -> str:
    """Make up an id for a request that brought none."""
    return "req-" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(20))
