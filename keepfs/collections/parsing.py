r"""Parsing: reads the text of a manifest, whole or in pieces; raises one error if it is none.

    stream = name 1*( SP locator ) 1*( SP position ":" size ":" path ) LF

The text is read in pieces of a mebibyte, whatever the length of its lines. Time and
memory are linear in its length: a segment is stored as it is written, and mapped to blocks
when it is read.

Beyond the grammar, colons and slashes in file names are accepted, as other readers accept them.
A segment without bytes may have any position. Unlike the Python SDK the parser refuses segments
beyond the stream's blocks (the SDK shortens the file) and a last line without its newline: both
are signs of a text that was cut off.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, NoReturn

from keepfs.collections.assembly import Assembly
from keepfs.collections.escapes import check_component, decoded, unescape
from keepfs.collections.manifest import Manifest
from keepfs.collections.manifest_errors import ConflictError, EntryError, ManifestError
from keepfs.collections.tables import MAX_SIZE
from keepfs.keep.locator import KeepLocator, without_signatures

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Bytes that are read at once.
_PIECE = 1 << 20
#: The longest token. Guessed: 256 times the longest path that Linux can open (PATH_MAX).
MAX_TOKEN = 1 << 20

_HINTS = rb"(?:\+[B-Z][-A-Za-z0-9@_]*)*"
# The locators with a size that `KeepLocator` accepts; one expression is fast enough for millions.
_LOCATOR = re.compile(
    rb"([0-9a-f]{32}\+([0-9]{1,19})%b(?:\+A[0-9a-f]{40}@[0-9A-Fa-f]{8}%b)?)([ \n])"
    % (_HINTS, _HINTS)
)
_SEGMENT = re.compile(rb"([0-9]{1,19}):([0-9]{1,19}):([^\x00-\x20]+)([ \n])")
_TOKEN = re.compile(rb"[^ \n]*")
_CONTROLS = bytes(range(0x20)).replace(b"\n", b"")
_CONTROL = re.compile(b"[%b]" % re.escape(_CONTROLS))


def parse(text: str | bytes | Iterable[bytes]) -> Manifest:
    """Parse the text of a manifest.

    Takes a few microseconds for each file and block. The only I/O is that of iterating
    `text`. It can't be cancelled.

    Args:
        text: The text; as bytes it is UTF-8. Pieces of bytes may be cut anywhere.

    Returns:
        The manifest, hints of locators included.

    Raises:
        ManifestError: The text is not a manifest; the error has line, column and reason.
    """
    parser = _Parser()
    for piece in _pieces(text):
        parser.feed(piece)
    return parser.finish()


def _pieces(text: str | bytes | Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(text, str):
        for start in range(0, len(text), _PIECE):
            # Lone surrogates become bytes that are not UTF-8, and are refused as those are.
            yield text[start : start + _PIECE].encode("utf-8", "surrogatepass")
    elif isinstance(text, bytes):
        for start in range(0, len(text), _PIECE):
            yield text[start : start + _PIECE]
    else:
        yield from text


class _Parser:
    """The state of a parse between two pieces of the text."""

    def __init__(self) -> None:
        self._assembly = Assembly()
        self._line_starts = array("Q", [0])
        self._base = 0  # the place of the first byte of the piece in the text
        self._rest = b""  # the beginning of a token whose end is in the next piece
        self._next = self._stream_name
        self._stream = b""
        self._directory = 0
        self._stream_start = self._stream_end = 0  # addresses of the stream's blocks

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the text."""
        text = self._rest + piece
        end = max(text.rfind(b" "), text.rfind(b"\n")) + 1
        self._rest = text[end:]
        text = text[:end]
        # Parse the text before an invalid character first, to report the first error.
        wrong = _wrong_character(text)
        if wrong:
            end = max(text.rfind(b" ", 0, wrong[0]), text.rfind(b"\n", 0, wrong[0])) + 1
        self._parse(text[:end])
        if wrong:
            self._fail(wrong[0] - end, wrong[1])
        if len(self._rest) > MAX_TOKEN:
            self._fail(0, f"a token has more than {MAX_TOKEN} bytes")

    def _parse(self, text: bytes) -> None:
        """Parse whole tokens."""
        at = 0
        while at < len(text):
            at = self._next(text, at)
        self._base += len(text)

    def finish(self) -> Manifest:
        """Return the manifest of all pieces."""
        if self._rest or self._next != self._stream_name:
            wrong = _wrong_character(self._rest)
            if wrong:
                self._fail(*wrong)
            self._fail(len(self._rest), "the text ends within a line: it was cut")
        try:
            return Manifest(self._assembly.finish())
        except ConflictError as error:
            self._fail(error.place - self._base, str(error))

    def _fail(self, at: int, reason: str) -> NoReturn:
        place = self._base + at
        line = bisect_right(self._line_starts, place)
        raise ManifestError(reason, line, place - self._line_starts[line - 1] + 1)

    def _end_line(self, at: int) -> None:
        self._line_starts.append(self._base + at)
        self._next = self._stream_name

    def _stream_name(self, text: bytes, at: int) -> int:
        token = self._token(text, at)
        end = at + len(token)
        if token != b"." and not token.startswith(b"./"):
            self._fail(at, f"a stream's name is '.' or begins with './', not {_excerpt(token)}")
        self._stream = unescape(token[2:])
        if token == b"./":
            self._fail(at, "'./' has an empty name: each name has at least one byte")
        try:
            self._directory = self._assembly.directory(self._stream, self._base + at)
        except EntryError as error:
            self._fail(at, str(error))
        if text[end] != ord(" "):
            self._fail(end, "the stream has no blocks: at least the empty block is named")
        self._next = self._locators
        self._stream_start = self._stream_end = -1
        return end + 1

    def _locators(self, text: bytes, at: int) -> int:
        assembly, match = self._assembly, _LOCATOR.match
        end = len(text)
        while at < end:
            found = match(text, at)
            if found is None:
                return self._end_of_locators(text, at)
            locator, digits, separator = found.groups()
            size = int(digits)
            if digits[0] == ord("0") and len(digits) > 1:
                locator = b"%b+%d%b" % (locator[:32], size, locator[33 + len(digits) :])
            if size > MAX_SIZE:
                self._fail(at, "a block of more than 2**63 - 1 bytes")
            if len(locator) > MAX_TOKEN:
                self._fail(at, f"a token has more than {MAX_TOKEN} bytes")
            try:
                start = assembly.lay(locator, size)
            except EntryError as error:
                self._fail(at, str(error))
            if self._stream_start < 0:
                self._stream_start = start
            self._stream_end = start + size
            at = found.end()
            if separator == b"\n":
                self._fail(at - 1, "the stream has no files: an empty one has 0:0:\\056")
        return at

    def _end_of_locators(self, text: bytes, at: int) -> int:
        token = self._token(text, at)
        if b":" not in token or self._stream_start < 0:
            self._fail(at, _locator_flaw(token))
        self._next = self._files
        return at

    def _files(self, text: bytes, at: int) -> int:  # noqa: C901 - one loop, run for each file
        assembly, match, base = self._assembly, _SEGMENT.match, self._base
        stream_start, available = self._stream_start, self._stream_end - self._stream_start
        last_token = None
        end = len(text)
        while at < end:
            found = match(text, at)
            if found is None:
                self._fail(at, _segment_flaw(self._token(text, at)))
            position, digits, token, separator = found.groups()
            size = int(digits)
            if size:
                start = int(position)
                if start + size > available:
                    self._fail(
                        at, f"bytes {start} to {start + size} of a stream of {available} bytes"
                    )
            else:
                start = 0
            if token != last_token:
                last_token = token
                if b"\\" in token or b"/" in token or token[0] == ord("."):
                    self._odd_file(at, token, size)
                    last_token = None
                else:
                    assembly.file(self._directory, token, base + at)
                if len(token) > MAX_TOKEN:
                    self._fail(at, f"a token has more than {MAX_TOKEN} bytes")
            if size:
                try:
                    assembly.segment(stream_start + start, size)
                except EntryError as error:
                    self._fail(at, str(error))
            at = found.end()
            if separator == b"\n":
                self._end_line(at)
                break
        return at

    def _odd_file(self, at: int, token: bytes, size: int) -> None:
        """Begin a file whose name has an escape or a slash, or begins with a dot."""
        path = unescape(token)
        above, slash, name = path.rpartition(b"/")
        try:
            directory = self._directory
            if slash:
                whole = self._stream + b"/" + above if self._stream else above
                # An empty path is the root: refuse it here, as a component without a name.
                check_component(above, path)
                directory = self._assembly.directory(whole, self._base + at)
            if name == b".":
                if size:
                    self._fail(at, f"the empty directory {decoded(path)!r} has {size} bytes")
                return
            check_component(name, path)
            self._assembly.file(directory, name, self._base + at)
        except EntryError as error:
            self._fail(at, str(error))

    def _token(self, text: bytes, at: int) -> bytes:
        found = _TOKEN.match(text, at)
        token = found[0] if found else b""
        if not token:
            self._fail(at, "a token is missing: one blank separates tokens, and no line is empty")
        if len(token) > MAX_TOKEN:
            self._fail(at, f"a token has more than {MAX_TOKEN} bytes")
        return token


def _wrong_character(text: bytes) -> tuple[int, str] | None:
    """Return the offset of the first byte that no manifest has, and the reason; or None."""
    # Deleting control characters takes a quarter of the time of searching for them.
    control = _CONTROL.search(text) if len(text.translate(None, _CONTROLS)) < len(text) else None
    end = control.start() if control else len(text)
    try:
        text[:end].decode()
    except UnicodeDecodeError as error:
        return error.start, f"the byte {text[error.start]:#04x} is not UTF-8"
    if control:
        return end, f"the control character {text[end]:#04x} is not escaped"
    return None


def _excerpt(token: bytes) -> str:
    most = 120  # guessed: enough to recognise it, too little to flood a log
    text = without_signatures(decoded(token[: 2 * most]))
    return repr(text[:most]) + ("..." if len(text) > most else "")


def _locator_flaw(token: bytes) -> str:
    try:
        size = KeepLocator(token.decode()).size
    except ValueError as error:
        return str(error)
    if size is None:
        return f"the locator {_excerpt(token)} has no size"
    return f"the locator {_excerpt(token)} has a size of more than 19 digits"


def _segment_flaw(token: bytes) -> str:
    position, _, rest = token.partition(b":")
    size, colon, _ = rest.partition(b":")
    if _LOCATOR.fullmatch(token + b" "):
        return f"the locator {_excerpt(token)} comes after a file: blocks come first"
    if not colon:
        return f"{_excerpt(token)} is not position:size:name"
    if not (position.isdigit() and size.isdigit()):
        return f"position and size are decimal numbers: {_excerpt(token)}"
    if max(len(position), len(size)) > len(str(MAX_SIZE)):
        return f"position and size have at most {len(str(MAX_SIZE))} digits: {_excerpt(token)}"
    return f"the name is missing: {_excerpt(token)}"
