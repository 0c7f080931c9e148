"""API tokens: check, salt for another cluster, remove from texts.

A token is a secret. No message here contains one; all text from a service passes
through `redacted` before it is shown.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import NamedTuple

from keepfs.keep.errors import ArgumentError
from keepfs.keep.locator import without_signatures

# The length of an HMAC-SHA1 in hex: a secret of this length is already salted.
_SALTED_LENGTH = 40
_OBSOLETE = re.compile(r"[0-9a-z]{41,}\Z", re.ASCII)
_PARTS_OF_V2 = 3
#: Most characters shown of a text from a service.
_MOST_SHOWN = 200


def clean_token(token: str) -> str:
    """Strip the blanks around a token, as every server does.

    Raises:
        ArgumentError: It has characters that aren't allowed in a header. The
            message doesn't contain the token.
    """
    token = token.strip()
    if not all("!" <= character <= "~" for character in token):
        raise ArgumentError("the API token has characters that no token has")
    return token


def salted_token(token: str, cluster_id: str) -> str:
    """Salt a token for another cluster, so that it is valid only there.

    A token that the other cluster issued is returned unchanged.

    Args:
        token: The user's token, `v2/uuid/secret`.
        cluster_id: The other cluster's id, five characters.

    Raises:
        ValueError: It can't be salted; the message says why, without the token.
    """
    version, _, rest = token.partition("/")
    uuid, slash, secret = rest.partition("/")
    if version != "v2" or not slash:
        raise ValueError(
            "obsolete token format" if _OBSOLETE.match(token) else "badly formatted token"
        )
    if uuid.startswith(cluster_id):
        return token
    secret = secret.split("/")[0]
    if len(secret) == _SALTED_LENGTH:
        raise ValueError("token already salted")
    salted = hmac.new(secret.encode(), cluster_id.encode(), hashlib.sha1).hexdigest()
    return f"v2/{uuid}/{salted}"


def redacted(text: str, token: str) -> str:
    """Replace a token, and its secret part, by `[token]` in a text from a service.

    Signatures of locators, which such a text may repeat, become `+A...`.
    """
    text = without_signatures(text)
    secrets = [token, *token.split("/", _PARTS_OF_V2)[2:3]] if token else []
    for secret in filter(None, secrets):
        text = text.replace(secret, "[token]")
    return text


def without_token(text: str, token: str) -> str:
    """Return a text from a service as one line of at most 200 characters, without the token."""
    line = " ".join(redacted(text, token).split())[:_MOST_SHOWN]
    if line.isprintable():
        return line
    return "".join(it if it.isprintable() else "?" for it in line)


class TokenStatistics(NamedTuple):
    """The state of the token, without the token.

    Attributes:
        read_at: When it was read, on the monotonic clock, in seconds.
        refused_at: When the token was last refused although it had been read again, on the
            same clock; None if it wasn't, or a request was accepted since. Refused signatures
            of locators don't count.
    """

    read_at: float
    refused_at: float | None
