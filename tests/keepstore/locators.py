"""What keepstore makes of a locator, and how it signs one.

Written from the recordings, and on purpose without the client's code: the two
check each other.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.keepstore.clock import SECOND

if TYPE_CHECKING:
    from tests.keepstore.wire import Request

#: Most bytes of a block.
MAX_BLOCK_SIZE = 1 << 26

#: The digest of no bytes.
EMPTY_DIGEST = "d41d8cd98f00b204e9800998ecf8427e"

_HINTS = r"(?:\+[B-Z][A-Za-z0-9@_-]*)*"
_SIGNED = re.compile(
    rf"([0-9a-f]{{32}})(?:\+[0-9]+)?{_HINTS}\+A([0-9a-fA-F]{{40}})@([0-9a-fA-F]{{8}}){_HINTS}\Z",
    re.ASCII,
)
_INTEGER = re.compile(r"[+-]?[0-9]+\Z", re.ASCII)
_MAX_INTEGER = (1 << 63) - 1


class RefusalError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: Of the answer.
        text: The answer's body, without the line end; None for an empty body.
    """

    def __init__(self, status: int, text: str | None) -> None:
        super().__init__(f"{status} {text}")
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class Locator:
    """A locator as keepstore scans it.

    Attributes:
        size: 0 where the second part is no 64-bit integer.
        is_signed: Whether some part begins with A.
        is_remote: Whether some part begins with R.
    """

    text: str
    digest: str
    size: int
    is_signed: bool
    is_remote: bool


def scan(text: str) -> Locator:
    """Take a locator apart.

    Raises:
        RefusalError: It is none.
    """
    parts = text.split("+")
    digest = parts[0]
    if not all(parts) or re.fullmatch(r"[0-9a-f]{32}", digest) is None:
        raise RefusalError(400, "invalid locator")
    if any(part[0] in "0123456789" for part in parts[2:]):
        raise RefusalError(400, "invalid locator")
    size = 0
    if len(parts) > 1 and _INTEGER.match(parts[1]):
        size = int(parts[1])
        if not -_MAX_INTEGER - 1 <= size <= _MAX_INTEGER:
            size = 0
    return Locator(
        text,
        digest,
        size,
        is_signed=any(part.startswith("A") for part in parts[1:]),
        is_remote=any(part.startswith("R") for part in parts[1:]),
    )


@dataclass(frozen=True, slots=True)
class Signer:
    """A cluster's key.

    Attributes:
        key: The `BlobSigningKey`.
        ttl: Seconds for which a signature is made; a fraction counts for the
            expiry only.
    """

    key: str
    ttl: float

    def signature(self, digest: str, token: str, expiry: str) -> str:
        """Compute a signature over an expiry as it is written."""
        message = f"{digest}@{token}@{expiry}@{int(self.ttl):x}"
        return hmac.new(self.key.encode(), message.encode("latin-1"), hashlib.sha1).hexdigest()

    def sign(self, locator: str, token: str, now: int) -> str:
        """Add a permission hint that ends `ttl` seconds after `now` (nanoseconds)."""
        expiry = f"{(now + int(self.ttl * SECOND)) // SECOND:08x}"
        return f"{locator}+A{self.signature(locator[:32], token, expiry)}@{expiry}"

    def check(self, locator: str, token: str, now: int) -> None:
        """Accept a signed locator.

        Raises:
            RefusalError: It isn't signed, or not for this token, or no longer.
        """
        if not token:
            raise RefusalError(401, "no token provided in Authorization header")
        match = _SIGNED.match(locator)
        if match is None:
            raise RefusalError(400, "invalid signature")
        digest, signature, expiry = match.groups()
        if int(expiry, 16) * SECOND < now:
            raise RefusalError(401, "expired signature")
        if self.signature(digest, token, expiry) != signature:
            raise RefusalError(400, "invalid signature")


def tokens(request: Request) -> list[str]:
    """List the tokens of a request: header, Basic password, query, cookie."""
    found = []
    scheme, _, text = request.header("Authorization").partition(" ")
    if scheme in {"Bearer", "OAuth2"}:
        found.append(text.strip())
    if scheme.lower() == "basic":
        found.append(_base64(text).partition(":")[2].strip())
    found += request.query.get("api_token", [])
    for cookie in request.header("Cookie").split(";"):
        name, _, text = cookie.strip().partition("=")
        if name == "arvados_api_token":
            found.append(_base64(text.translate({ord("-"): "+", ord("_"): "/"})))
    return [token for token in found if token]


def _base64(text: str) -> str:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4)).decode("latin-1")
    except binascii.Error:
        return ""


def salted(token: str, cluster: str) -> str:
    """Make a token fit for another cluster, which must not learn the secret.

    Raises:
        RefusalError: It isn't a token that can be salted.
    """
    parts = token.split("/")
    if parts[0] != "v2" or len(parts) < 3:
        if re.fullmatch(r"[0-9a-z]{41,}", token):
            raise RefusalError(400, "obsolete token format")
        raise RefusalError(500, "badly formatted token")
    _, uuid, secret = parts[:3]
    if uuid.startswith(cluster):
        return token
    if len(secret) == 40:
        raise RefusalError(500, "token already salted")
    salt = hmac.new(secret.encode(), cluster.encode(), hashlib.sha1).hexdigest()
    return f"v2/{uuid}/{salt}"


def weight(digest: str, uuid: str) -> str:
    """Weigh a service or volume for a block; only the last 15 characters count."""
    return hashlib.md5((digest + uuid[-15:]).encode(), usedforsecurity=False).hexdigest()


def quoted(text: str) -> str:
    """Quote a path's part for a URL, leaving what locators are made of."""
    return urllib.parse.quote(text, safe="+@-_")
