"""API tokens: made fit to send, salted for another cluster, kept out of texts.

A token is a secret. No message here contains one, and everything that a
service said goes through `redacted` before anybody reads it.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from keepfs.keep.errors import ArgumentError

# Bytes of an HMAC-SHA1 in hex: a secret of this length is salted already.
_SALTED_LENGTH = 40
_OBSOLETE = re.compile(r"[0-9a-z]{41,}\Z", re.ASCII)
_PARTS_OF_V2 = 3
#: Characters of a text from elsewhere that are shown.
_MOST_SHOWN = 200


def clean_token(token: str) -> str:
    """Drop the blanks around a token, as every server does.

    Raises:
        ArgumentError: It has characters that can't stand in a header. The
            message doesn't quote it.
    """
    token = token.strip()
    if not all("!" <= character <= "~" for character in token):
        raise ArgumentError("the API token has characters that no token has")
    return token


def salted_token(token: str, cluster_id: str) -> str:
    """Make the token that another cluster may see: of use there only.

    A token that the cluster itself issued is returned unchanged.

    Args:
        token: The user's own, in the form `v2/uuid/secret`.
        cluster_id: Five characters.

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
    """Blot a token, and its secret part, out of a text from elsewhere."""
    secrets = [token, *token.split("/", _PARTS_OF_V2)[2:3]] if token else []
    for secret in filter(None, secrets):
        text = text.replace(secret, "[token]")
    return text


def shown(text: str, token: str) -> str:
    """Make a text from elsewhere fit to be shown: one short line, without the token."""
    line = " ".join(redacted(text, token).split())[:_MOST_SHOWN]
    if line.isprintable():
        return line
    return "".join(it if it.isprintable() else "?" for it in line)
