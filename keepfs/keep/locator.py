r"""KeepLocator: the name of a block, parsed and validated.

A locator is the MD5 of a block's bytes, its size, and hints, joined by `+`:

    acbd18db4cc2f85cedef654fccc4a4d8+3+A<40 hex digits>@<8 hex digits>

The documented grammar is `^[0-9a-f]{32}\\+[0-9]+(\\+[A-Z][-A-Za-z0-9@_]*)*$`.
As in the Python SDK the size may be missing. Unlike the SDK, text that no server
would accept as a locator is refused before it is sent.

Locators are values: immutable, comparable, hashable, usable from any thread.
"""

from __future__ import annotations

import datetime as dt
import re
import time
from typing import TYPE_CHECKING, NoReturn

from keepfs.keep.hashing.growing import md5_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Most bytes of a block. Fixed by the protocol (2**26).
MAX_BLOCK_SIZE = 64 * 1024 * 1024

# `\Z`, not `$`: a locator has no trailing newline.
_LOCATOR = re.compile(r"([0-9a-f]{32})(?:\+([0-9]+))?((?:\+[A-Z][-A-Za-z0-9@_]*)*)\Z", re.ASCII)
# The servers compare the signature as text, in lower case, and use the expiry's
# digits unchanged.
_PERMISSION_HINT = re.compile(r"A([0-9a-f]{40})@([0-9A-Fa-f]{8})\Z", re.ASCII)
# A signature in any text, perhaps damaged: of this cluster (+A), or of another (+R).
_SIGNATURE = re.compile(r"\+(A|R[a-z0-9]*-)[0-9A-Fa-f]{20,}(@[0-9A-Fa-f]+)?", re.ASCII)
# Sizes larger than any block are accepted, as by the servers, up to this many
# digits, so that no text is expensive to refuse.
_MAX_SIZE_DIGITS = 20


def _check_text(value: object) -> None:
    if not isinstance(value, str):
        kind = type(value).__name__
        raise TypeError(f"a locator is a str, several are one str joined by commas; not {kind}")


class KeepLocator:
    """The name of a block.

    Args:
        locator_str: The locator's text, without blanks around it.

    Attributes:
        md5sum: 32 lower-case hex digits: the MD5 of the block's bytes.
        size: The size of the block in bytes, or None if the locator has none.
        hints: All hints except the permission hint, in order.
        perm_sig: The permission hint's signature: 40 hex digits, or None.

    Raises:
        ValueError: The text isn't a locator; the message says why.
        TypeError: It isn't text.
    """

    __slots__ = ("_expires", "_text", "hints", "md5sum", "perm_sig", "size")

    md5sum: str
    size: int | None
    hints: tuple[str, ...]
    perm_sig: str | None
    _expires: int | None
    _text: str

    def __init__(self, locator_str: str) -> None:
        _check_text(locator_str)
        match = _LOCATOR.match(locator_str)
        if match is None:
            raise ValueError(f"not a locator: {_quoted(locator_str)}: {_syntax_flaw(locator_str)}")
        md5sum, size, hints = match.groups()
        if size is not None and len(size) > _MAX_SIZE_DIGITS:
            raise ValueError(f"not a locator: {_quoted(locator_str)}: no block is that large")
        parts = hints.split("+")[1:]
        permissions = [part for part in parts if part[0] == "A"]
        if len(permissions) > 1:
            raise ValueError(f"not a locator: {_quoted(locator_str)}: two permission hints")
        signature, expires = None, None
        for permission in permissions:
            signed = _PERMISSION_HINT.match(permission)
            if signed is None:
                raise ValueError(
                    f"not a locator: {_quoted(locator_str)}: a permission hint is"
                    " +A, 40 lower-case hex digits, @, 8 hex digits"
                )
            signature, expires = signed[1], int(signed[2], 16)
        put = object.__setattr__  # a locator can't be changed by others
        put(self, "md5sum", md5sum)
        put(self, "size", None if size is None else int(size))
        put(self, "hints", tuple([part for part in parts if part[0] != "A"]))
        put(self, "perm_sig", signature)
        put(self, "_expires", expires)
        put(self, "_text", "+".join((self.stripped(), *parts)))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a KeepLocator can't be changed: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a KeepLocator can't be changed: {name}")

    def __reduce__(self) -> tuple[type[KeepLocator], tuple[str]]:
        return KeepLocator, (self._text,)

    def __str__(self) -> str:
        """Return the locator's text, hints in order, the size without leading zeros."""
        return self._text

    def __repr__(self) -> str:
        return f"KeepLocator({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, KeepLocator) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    @classmethod
    def of_block(cls, block: Buffer) -> KeepLocator:
        """Compute the unsigned locator of a block's bytes. Takes 1.7 ms per MiB."""
        return cls(f"{md5_of(block)}+{memoryview(block).nbytes}")

    def with_size(self, size: int) -> KeepLocator:
        """Return a copy with this size, in bytes. The locator must not have a size."""
        digest, plus, hints = str(self).partition("+")
        return KeepLocator(f"{digest}+{size}{plus}{hints}")

    def stripped(self) -> str:
        """Return the portable form: digest and size, without hints."""
        return self.md5sum if self.size is None else f"{self.md5sum}+{self.size}"

    def is_remote(self) -> bool:
        """Return whether another cluster signed it: services fetch the block from there."""
        return self.perm_sig is None and any(hint.startswith("R") for hint in self.hints)

    def permission_hint(self) -> str | None:
        """Return the permission hint without its `+`, or None."""
        return next((part for part in self._text.split("+") if part.startswith("A")), None)

    @property
    def perm_expiry(self) -> dt.datetime | None:
        """When the permission hint expires (aware, UTC), or None."""
        return None if self._expires is None else dt.datetime.fromtimestamp(self._expires, dt.UTC)

    def permission_expired(self, as_of_dt: dt.datetime | None = None) -> bool:
        """Return whether the permission hint has expired; False without one.

        Args:
            as_of_dt: The time to compare with; None: now. A naive time is taken as UTC.
        """
        if self._expires is None:
            return False
        if as_of_dt is None:
            return self._expires * 10**9 <= time.time_ns()
        if as_of_dt.tzinfo is None:
            as_of_dt = as_of_dt.replace(tzinfo=dt.UTC)
        return self._expires <= as_of_dt.timestamp()


#: The empty block. Reading it needs no service and can't fail.
EMPTY_BLOCK = KeepLocator("d41d8cd98f00b204e9800998ecf8427e+0")


def parse_list(text: str) -> tuple[KeepLocator, ...]:
    """Parse one or several locators, joined by commas.

    Raises:
        ValueError: A part isn't a locator, or is empty.
        TypeError: It isn't text.
    """
    _check_text(text)
    if "," not in text:
        return (KeepLocator(text),)
    return tuple(KeepLocator(part) for part in text.split(","))


def without_signatures(text: str) -> str:
    """Return a text, for a message, with `+A...` for each signature of a locator in it."""
    return _SIGNATURE.sub(r"+\1...", text)


def _quoted(text: str) -> str:
    most = 120  # guessed: enough to recognise it, short enough for a log
    text = without_signatures(text[: 2 * most])
    return repr(text if len(text) <= most else text[:most] + "...")


def _syntax_flaw(text: str) -> str:
    if not re.match(r"[0-9a-f]{32}(\+|\Z)", text, re.ASCII):
        return "a locator begins with exactly 32 lower-case hex digits"
    if not re.match(r"[0-9a-f]{32}(\Z|\+[0-9]+(\+|\Z)|\+[A-Z])", text, re.ASCII):
        return "the size is a decimal number"
    return "a hint is an upper-case letter, then letters, digits, @, _ or -"
