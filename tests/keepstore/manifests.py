"""What the API server makes of a manifest: checked, signed, stripped, counted.

Written from the format's description, and on purpose without the client's code:
the two check each other.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from tests.keepstore.clock import SECOND
from tests.keepstore.locators import EMPTY_DIGEST, RefusalError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.keepstore.locators import Signer

_LOCATOR = re.compile(r"[0-9a-f]{32}\+[0-9]+(?:\+[A-Z][-A-Za-z0-9@_]*)*\Z")
_FILE = re.compile(r"([0-9]+):([0-9]+):(\S+)\Z")
_OF_LOCATOR = re.compile(r"(?<= )[0-9a-f]{32}\+[0-9]+(?:\+[A-Z][-A-Za-z0-9@_]*)*(?= )")
_HINTS = re.compile(r"( [0-9a-f]{32}\+[0-9]+)\+[^ ]*")
_SIGNATURE = re.compile(r"\+A[^+ ]*")
_ESCAPE = re.compile(r"\\([0-3][0-7][0-7])")


class ManifestError(ValueError):
    """A text that is no manifest."""


def portable_data_hash(manifest: str) -> str:
    """Return the name that a collection has by its contents; hints count for nothing."""
    data = _HINTS.sub(r"\1", manifest).encode()
    return f"{hashlib.md5(data, usedforsecurity=False).hexdigest()}+{len(data)}"


def check(manifest: str) -> None:
    """Accept a manifest.

    Raises:
        ManifestError: It is none; the text is what RailsAPI says.
    """
    if manifest and not manifest.endswith("\n"):
        raise ManifestError("Invalid manifest: does not end with newline")
    for number, line in enumerate(manifest.split("\n")[:-1], 1):
        where = f"Manifest invalid for stream {number}"
        stream, *words = line.split(" ")
        if not _is_name(stream, is_stream=True):
            raise ManifestError(f'{where}: missing or invalid stream name "{stream}"')
        blocks = 0
        while blocks < len(words) and _LOCATOR.match(words[blocks]):
            blocks += 1
        if not blocks:
            word = f'"{words[0]}"' if words else "nil"
            raise ManifestError(f"{where}: missing or invalid locator {word}")
        length = sum(int(word.split("+")[1]) for word in words[:blocks])
        if len(words) == blocks:
            raise ManifestError(f"{where}: no file tokens")
        for word in words[blocks:]:
            match = _FILE.match(word)
            if match is None or not (match[3] == r"\056" or _is_name(match[3])):
                raise ManifestError(f'{where}: invalid file token "{word}"')
            if int(match[1]) + int(match[2]) > length:
                raise ManifestError(
                    f'{where}: file token "{word}" is beyond the end of its blocks'
                )


def _is_name(word: str, *, is_stream: bool = False) -> bool:
    parts = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), word).split("/")
    if is_stream:
        if parts[0] != ".":
            return False
        parts = parts[1:]
    return all(part not in {"", ".", ".."} for part in parts) and not re.search(r"\s", word)


def locators(manifest: str) -> Iterator[str]:
    """List the locators, in order, repeated ones too."""
    return (match[0] for match in _OF_LOCATOR.finditer(manifest))


def check_signatures(manifest: str, signer: Signer, token: str, now: int) -> bool:
    """Tell whether each block but the empty one is signed for a token, and still is."""
    for locator in locators(manifest):
        if locator.startswith(EMPTY_DIGEST) and "+A" not in locator:
            continue
        try:
            signer.check(locator, token, now)
        except RefusalError:
            return False
    return True


def without_signatures(manifest: str) -> str:
    """Drop the permission hints; the other hints stay."""
    return _OF_LOCATOR.sub(lambda match: _SIGNATURE.sub("", match[0]), manifest)


def signed(manifest: str, signer: Signer, token: str, expires: int) -> str:
    """Sign each locator for a token.

    Args:
        manifest: Without signatures.
        signer: The cluster's key.
        token: The asking client's.
        expires: Unix time in nanoseconds, the same for all.
    """
    expiry = f"{expires // SECOND:08x}"

    def sign(match: re.Match[str]) -> str:
        return f"{match[0]}+A{signer.signature(match[0][:32], token, expiry)}@{expiry}"

    return _OF_LOCATOR.sub(sign, manifest)


def counts(manifest: str) -> tuple[int, int]:
    """Return how many files there are, and their bytes together."""
    names: set[tuple[str, str]] = set()
    size = 0
    for line in manifest.split("\n")[:-1]:
        stream, *words = line.split(" ")
        for word in words:
            match = _FILE.match(word)
            if match and match[3] != r"\056":
                names.add((stream, match[3]))
                size += int(match[2])
    return len(names), size
