"""Request ids: by which the requests of one call are found in the logs of the services."""

from __future__ import annotations

import random

#: Digits after the prefix, as many as in Arvados's own ids; and the random bits in them.
_DIGITS = 20
_BITS = 4 * _DIGITS


def new_request_id() -> str:
    """Return a random id: "req-" and 20 hexadecimal digits. It is no secret."""
    return f"req-{random.getrandbits(_BITS):0{_DIGITS}x}"
