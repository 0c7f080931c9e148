"""Names of collections: which texts are uuids, and which are portable data hashes."""

from __future__ import annotations

import re

_UUID = re.compile(r"[0-9a-z]{5}-4zz18-[0-9a-z]{15}\Z", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{32}\+[0-9]{1,19}\Z", re.ASCII)


def is_uuid(name: str) -> bool:
    """Return whether a name is the uuid of a collection."""
    return _UUID.match(name) is not None


def is_hash(name: str) -> bool:
    """Return whether a name is a portable data hash, without hints."""
    return _HASH.match(name) is not None
