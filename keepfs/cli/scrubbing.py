"""Removes tokens, signatures and passwords from texts that leave the machine."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from keepfs.config.arvados import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: Patterns of secrets: tokens of version 2, signatures of locators, the credentials of a
#: header, those of a URL, and fields such as `token=`.
_SECRETS = (
    (re.compile(r"v2/[0-9a-z]{5}-[0-9a-z]{5}-[0-9a-z]{15}/[0-9A-Za-z]+"), "[token]"),
    (re.compile(r"\+[AR][0-9A-Za-z-]*[0-9a-f]{8,}@[0-9a-f]+"), "+A[signature]"),
    (re.compile(r"(?i)\b(OAuth2|Bearer|Basic)\s+[^\s\"',;]+"), r"\1 [token]"),
    (re.compile(r"(://)[^/\s@]+@"), r"\1[password]@"),
    (
        re.compile(
            r"(?i)\b((?:api_?)?token|password|secret|signature)([\"']?[=:]\s*[\"']?)[^\s\"'&,;]+"
        ),
        r"\1\2[secret]",
    ),
)
#: Least length of a value that is removed as a secret: a shorter one occurs in other words.
_LEAST = 6


class Scrubber:
    """Removes secrets from texts: values of secret settings and variables, and `_SECRETS`.

    Args:
        token_files: Files with tokens.
        texts: Further tokens.
    """

    def __init__(self, token_files: Iterable[Path] = (), texts: Iterable[str] = ()) -> None:
        secrets = {*texts}
        secrets |= {value for name, value in os.environ.items() if _is_secret(name)}
        for path in token_files:
            try:
                secrets.add(path.read_text(errors="replace").strip())
            except OSError:
                continue
        with contextlib.suppress(OSError):
            secrets.add(load_settings().api_token)
        parts = {part for each in secrets for part in each.split("/")}
        found = {each.strip() for each in secrets | parts}
        # The longest first: a token contains its parts.
        self._secrets = sorted((it for it in found if len(it) >= _LEAST), key=len, reverse=True)

    def scrubbed(self, text: str) -> str:
        """Return a text without secrets."""
        for pattern, instead in _SECRETS:
            text = pattern.sub(instead, text)
        for secret in self._secrets:
            text = text.replace(secret, "[token]")
        return text


def _is_secret(name: str) -> bool:
    words = ("TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL")
    return any(word in name.upper() for word in words) and not name.upper().endswith("_FILE")
