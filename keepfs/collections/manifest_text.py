"""The text of a manifest as JSON in a request."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from keepfs.keep.services.long_json import json_pieces

if TYPE_CHECKING:
    from collections.abc import Mapping


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
        for piece in json_pieces(manifest):
            body += piece
        body += b'"}'
    for name, value in options.items():
        body += f",{json.dumps(name)}:{json.dumps(value)}".encode()
    body += b"}"
    return body
