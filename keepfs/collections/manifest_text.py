"""What a request needs of a manifest's text, without parsing it: its hash, its JSON."""

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
    """Return the portable data hash of a manifest as it stands: nothing is normalised.

    That is what the API server computes: MD5 and length of the text whose locators
    are cut to digest and size. Memory: some pieces of 1 MiB.
    """
    digest, length = hashlib.md5(usedforsecurity=False), 0
    for piece in _slices(manifest):
        stripped = _HINTS.sub(rb"\1", piece)
        digest.update(stripped)
        length += len(stripped)
    return f"{digest.hexdigest()}+{length}"


def _slices(manifest: str | bytes) -> Iterator[bytes]:
    """Cut a text before blanks, so that no word is divided."""
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
    """Write the JSON of a request; the manifest in pieces.

    Args:
        attributes: The attributes of the collection, without its manifest.
        manifest: Its text; None leaves it as it is.
        options: Parameters beside the collection.

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
