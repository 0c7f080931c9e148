"""Long JSON: JSON with a very long text, written and read in pieces.

A manifest may have hundreds of megabytes. To keep only one JSON copy of it in
memory, `json_pieces` yields it in pieces for a request's body, and `LongTexts` extracts
it from an answer while that is received.
"""

from __future__ import annotations

import codecs
import json
import re
import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes or characters of a piece.
PIECE = 1 << 20
# The complete part of a JSON string, after its opening quote.
_TEXT = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_QUOTE = ord('"')


def json_pieces(text: str | bytes) -> Iterator[bytes]:
    """Yield a text as a JSON string without the quotes, in pieces.

    Raises:
        ValueError: It is not UTF-8, or has a lone surrogate.
    """
    if isinstance(text, str):
        for start in range(0, len(text), PIECE):
            yield _json_escaped(text[start : start + PIECE])
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(text)
    for start in range(0, len(view), PIECE):
        yield _json_escaped(decoder.decode(view[start : start + PIECE]))
    decoder.decode(b"", final=True)


def _json_escaped(piece: str) -> bytes:
    return json.dumps(piece, ensure_ascii=False).encode()[1:-1]


class LongTexts:
    """Reads a JSON object whose texts under one name may be very long.

    Feed it the pieces of the answer, then call `parsed`.

    Args:
        name: The key whose texts are extracted while they are received, at any
            depth. They are returned as bytes (UTF-8).
        most: Most bytes of the rest.
    """

    def __init__(self, name: str, most: int) -> None:
        # Matches keys only: quotes within a text are escaped.
        self._key = re.compile(rb'"%s"[ \t\r\n]*:[ \t\r\n]*"' % name.encode())
        # The key that replaces a long text while the rest is parsed; no answer can guess it.
        self._mark = secrets.token_hex(16)
        self._overlap = len(name) + 16
        self._most = most
        self._rest = bytearray()
        self._searched = 0
        self._texts: list[bytearray] = []
        self._pending: bytearray | None = None

    def feed(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            ValueError: It is not JSON, the rest is too long, or a text has no blanks.
        """
        if self._pending is None:
            self._rest += piece
        else:
            self._pending += piece
        while self._advance():
            pass
        if len(self._rest) > self._most:
            raise ValueError(f"more than {self._most} bytes")

    def parsed(self) -> Any:  # noqa: ANN401 - any JSON
        """Return the parsed object.

        Raises:
            ValueError: It is not JSON.
        """
        if self._pending is not None:
            raise ValueError("the answer ends within a text")
        return json.loads(self._rest, object_hook=self._replaced)

    def _replaced(self, found: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
        number = found.get(self._mark)
        if number is not None:
            # Drop the bytearray, so that two copies exist only for a short time.
            text, self._texts[number] = self._texts[number], bytearray()
            return bytes(text)
        return found

    def _advance(self) -> bool:
        """Process input up to the next start or end of a long text; False if there is none."""
        if self._pending is None:
            match = self._key.search(self._rest, self._searched)
            if match is None:
                self._searched = max(0, len(self._rest) - self._overlap)
                return False
            self._pending = self._rest[match.end() :]
            del self._rest[match.end() - 1 :]
            self._rest += b'{"%s":%d}' % (self._mark.encode(), len(self._texts))
            self._searched = len(self._rest)
            self._texts.append(bytearray())
        return self._take_text(self._pending)

    def _take_text(self, pending: bytearray) -> bool:
        match = _TEXT.match(pending)
        end = match.end() if match else 0
        is_over = end < len(pending) and pending[end] == _QUOTE
        # Cut before a blank: no escape sequence contains one.
        cut = end if is_over else max(0, pending.rfind(b" ", 0, end))
        text = json.loads(b'"' + pending[:cut] + b'"')
        self._texts[-1] += text.encode()
        if is_over:
            self._rest += pending[end + 1 :]
            self._pending = None
        else:
            del pending[:cut]
            if len(pending) > max(self._most, PIECE):
                raise ValueError(f"a text has {len(pending)} bytes without a blank")
        return is_over
