"""The portable data hash: the name of a collection by its content, whatever its signatures."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HINTS = re.compile(rb"( [0-9a-f]{32}\+[0-9]+)\+[^ \n]*")
# Bytes or characters of a text that are stripped at once.
_PIECE = 1 << 20


def portable_data_hash(text: str | bytes | Iterable[bytes]) -> str:
    """Compute the portable data hash of a manifest's text, as the API server does.

    It is the MD5 and the length of the text in which each locator is cut to digest and size.
    The text is hashed as it is. If it is not in normal form, its hash differs from that of the
    normal form (`Manifest.portable_data_hash`), which the Python SDK computes.

    Args:
        text: A manifest; as bytes it is UTF-8. Pieces may be cut anywhere. The call takes a few
            MiB of memory, or twice the largest piece.
    """
    md5 = hashlib.md5(usedforsecurity=False)
    length = 0
    for piece in stripped(text):
        md5.update(piece)
        length += len(piece)
    return f"{md5.hexdigest()}+{length}"


def stripped(text: str | bytes | Iterable[bytes]) -> Iterator[bytes]:
    """Yield a manifest's text with each locator cut to digest and size, in pieces."""
    rest = b""
    for piece in _sliced(text) if isinstance(text, str | bytes) else text:
        rest += piece
        # The separator stays with the token after it: the expression begins with it.
        end = max(rest.rfind(b" "), rest.rfind(b"\n"))
        if end > 0:
            yield _HINTS.sub(rb"\1", rest[: end + 1])[:-1]
            rest = rest[end:]
    yield _HINTS.sub(rb"\1", rest)


def _sliced(text: str | bytes) -> Iterator[bytes]:
    for start in range(0, len(text), _PIECE):
        piece = text[start : start + _PIECE]
        yield piece.encode() if isinstance(piece, str) else piece
