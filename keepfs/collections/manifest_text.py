"""The hash of a manifest's text, and its JSON in a request, computed without parsing it."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from keepfs.keep.services.long_json import PIECE, escaped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_HINTS = re.compile(rb"( [0-9a-f]{32}\+[0-9]+)\+[^ \n]*")


def hash_of_text(manifest: str | bytes) -> str:
    """Return the portable data hash of a manifest's text, without normalising it.

    The API server computes the same: the MD5 and the length of the text in which each
    locator is cut to digest and size. It takes a few MiB of memory.
    """
    digest, length = hashlib.md5(usedforsecurity=False), 0
    for piece in _slices(manifest):
        stripped = _HINTS.sub(rb"\1", piece)
        digest.update(stripped)
        length += len(stripped)
    return f"{digest.hexdigest()}+{length}"


def _slices(manifest: str | bytes) -> Iterator[bytes]:
    """Cut a text before blanks, so that no token is divided."""
    pending = b""
    for start in range(0, len(manifest), PIECE):
        piece = manifest[start : start + PIECE]
        pending += piece.encode() if isinstance(piece, str) else piece
        cut = max(0, pending.rfind(b" "))
        yield pending[:cut]
        pending = pending[cut:]
    yield pending


def request_body(
    attributes: Mapping[str, object],
    manifest: str | bytes | None,
    options: Mapping[str, object],
) -> bytearray:
    """Return the JSON of a request; the manifest is encoded in pieces.

    Args:
        attributes: The attributes of the collection, without its manifest.
        manifest: The text of the manifest; None: not sent.
        options: The parameters of the request besides the collection.

    Raises:
        ValueError: The manifest isn't UTF-8.
    """
    body = bytearray(b'{"collection":')
    body += json.dumps(attributes).encode()
    if manifest is not None:
        del body[-1:]
        body += b',"manifest_text":"' if attributes else b'"manifest_text":"'
        for piece in escaped(manifest):
            body += piece
        body += b'"}'
    for name, value in options.items():
        body += f",{json.dumps(name)}:{json.dumps(value)}".encode()
    body += b"}"
    return body
