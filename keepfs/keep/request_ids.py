"""Request ids: by which the requests of one call are found in the logs of the services."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Digits after the prefix, as many as in Arvados's own ids; and the random bits in them.
_DIGITS = 20
_BITS = 4 * _DIGITS


def new_request_id() -> str:
    """Return a random id: "req-" and 20 hexadecimal digits. It is no secret."""
    return f"req-{random.getrandbits(_BITS):0{_DIGITS}x}"


def without_request_id(headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the request id among headers, empty if there is none, and the other headers."""
    found, others = "", {}
    for name, value in headers.items():
        if name.lower() == "x-request-id":
            found = found or value
        else:
            others[name] = value
    return found, others
