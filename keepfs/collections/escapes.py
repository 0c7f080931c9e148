r"""Names in a manifest: which are possible, and how they are escaped.

A name is bytes. In the text a backslash, a colon and each byte up to and including blank are
written as a backslash and three octal digits (blank is `\040`); so are bytes that are not UTF-8,
because a manifest is UTF-8. When a text is read, a backslash and three octal digits up to 377
denote a byte, and two backslashes denote one, as for the API server and keep-web. Any other
backslash is literal. The Python SDK differs: it reads the digits as a code point, and two
backslashes as two.
"""

from __future__ import annotations

import re

from keepfs.collections.manifest_errors import EntryError

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2}|\\)")
_SPECIAL = re.compile(rb"[\x00-\x20\\:]")
# The bytes that `surrogateescape` decodes to lone surrogates.
_NOT_UTF_8 = re.compile("[\udc80-\udcff]")


def escape(name: bytes) -> bytes:
    """Return a name or path as it is written in a manifest; slashes stay."""
    if _SPECIAL.search(name):
        name = _SPECIAL.sub(lambda found: b"\\%03o" % found[0][0], name)
    if name.isascii():
        return name
    text = name.decode("utf-8", "surrogateescape")
    return _NOT_UTF_8.sub(lambda found: f"\\{ord(found[0]) - 0xDC00:03o}", text).encode()


def unescape(token: bytes) -> bytes:
    """Return the name or path that a manifest's token denotes."""
    return _ESCAPE.sub(_byte, token) if b"\\" in token else token


def _byte(found: re.Match[bytes]) -> bytes:
    digits = found[1]
    return digits if digits == b"\\" else bytes((int(digits, 8),))


def decoded(name: bytes) -> str:
    """Return a name or path as the public interface and messages have it.

    The result is a `str` as `os.fsdecode` returns it for UTF-8: bytes that are not UTF-8 are
    lone surrogates.
    """
    return name.decode("utf-8", "surrogateescape")


def encoded(name: str) -> bytes:
    """Return the bytes of a name or path; the inverse of `decoded`.

    Raises:
        EntryError: It has surrogates that stand for no byte.
    """
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise EntryError(f"{name!r} has code points that UTF-8 can't represent") from None


def check_component(name: bytes, path: bytes) -> None:
    """Check one component of a path.

    Args:
        name: The component.
        path: The whole path, for the message.

    Raises:
        EntryError: The name is empty, `.`, `..`, or has a NUL.
    """
    if not name:
        raise EntryError(f"{decoded(path)!r} has an empty name: each name has at least one byte")
    if name in (b".", b".."):
        raise EntryError(f"{decoded(path)!r} has the name {decoded(name)!r}, which is reserved")
    if b"\0" in name:
        raise EntryError(f"{decoded(path)!r} has a NUL byte, which no file name can have")
