"""JSON with one very long text in it, written and read in pieces.

A manifest may have hundreds of megabytes. Here its JSON form exists once, beside the
manifest itself: `escaped` appends it to the request's body piece by piece, and
`LongTexts` takes it out of an answer while that is being received.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes or characters handled at once.
PIECE = 1 << 20
# A text of JSON from behind its opening quote on, as far as it is complete.
_TEXT = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_QUOTE = ord('"')
# Stands for a long text while the rest is parsed. PostgreSQL's JSON has no such key.
_MARK = "\0"


def escaped(text: str | bytes) -> Iterator[bytes]:
    """Yield a text as it stands in JSON, without the quotes, in pieces.

    Raises:
        ValueError: It is not UTF-8, or has a lone surrogate.
    """
    if isinstance(text, str):
        for start in range(0, len(text), PIECE):
            yield _quoted(text[start : start + PIECE])
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(text)
    for start in range(0, len(view), PIECE):
        yield _quoted(decoder.decode(view[start : start + PIECE]))
    decoder.decode(b"", final=True)


def _quoted(piece: str) -> bytes:
    return json.dumps(piece, ensure_ascii=False).encode()[1:-1]


class LongTexts:
    """Reads a JSON object whose texts under one name may be very long.

    Feed it the pieces of the answer, then call `parsed`.

    Args:
        name: The key whose texts are taken out while they are received. They are
            returned as bytes (UTF-8), wherever they stand in the object.
        most: Bytes of all the rest.
    """

    def __init__(self, name: str, most: int) -> None:
        # Within a text its quotes would be escaped, so this matches keys only.
        self._key = re.compile(rb'"%s"[ \t\r\n]*:[ \t\r\n]*"' % name.encode())
        self._overlap = len(name) + 16
        self._most = most
        self._rest = bytearray()
        self._searched = 0
        self._texts: list[bytearray] = []
        self._pending: bytearray | None = None

    def feed(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            ValueError: It is not JSON, or the rest is too long.
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
        """Return what was fed.

        Raises:
            ValueError: It is not JSON.
        """
        if self._pending is not None:
            raise ValueError("the answer ends within a text")
        return json.loads(self._rest, object_hook=self._replaced)

    def _replaced(self, found: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
        if found.keys() == {_MARK}:
            # Bytes are what a caller keeps; the copy is the only one, and short-lived.
            text, self._texts[found[_MARK]] = self._texts[found[_MARK]], bytearray()
            return bytes(text)
        return found

    def _advance(self) -> bool:
        """Go on to the next beginning or end of a long text; False without one."""
        if self._pending is None:
            match = self._key.search(self._rest, self._searched)
            if match is None:
                self._searched = max(0, len(self._rest) - self._overlap)
                return False
            self._pending = self._rest[match.end() :]
            del self._rest[match.end() - 1 :]
            self._rest += b'{"\\u0000":%d}' % len(self._texts)
            self._searched = len(self._rest)
            self._texts.append(bytearray())
        return self._take_text(self._pending)

    def _take_text(self, pending: bytearray) -> bool:
        match = _TEXT.match(pending)
        end = match.end() if match else 0
        is_over = end < len(pending) and pending[end] == _QUOTE
        # A blank stands in no escape sequence, so a cut before it divides none.
        cut = end if is_over else max(0, pending.rfind(b" ", 0, end))
        text = json.loads(b'"' + pending[:cut] + b'"')
        self._texts[-1] += text.encode()
        if is_over:
            self._rest += pending[end + 1 :]
            self._pending = None
        else:
            del pending[:cut]
        return is_over
