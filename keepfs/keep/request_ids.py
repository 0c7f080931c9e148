"""Request ids: by which the requests of one call are found in the logs of the services."""

from __future__ import annotations

import base64
import random

#: Characters after the prefix, as in Arvados's own ids, and the random bytes for them: five
#: bits a character.
_LENGTH, _BYTES = 20, 13


def new_request_id() -> str:
    """Return a random id: "req-" and 20 lower-case letters and digits. It is no secret."""
    drawn = base64.b32encode(random.randbytes(_BYTES)).decode("ascii")  # noqa: S311
    return "req-" + drawn[:_LENGTH].lower()
