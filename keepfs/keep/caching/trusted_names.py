"""TrustedNames: the locators that the API server signed in manifests, 16 bytes for each.

The API server signs a manifest for the token of the request, so the services accept each of its
locators. A collection may have a million blocks, so only keyed hashes are kept: a sorted table
for each manifest. If there are too many names, the oldest tables are dropped.
"""

from __future__ import annotations

import bisect
import collections
import hashlib
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A locator whose only hint is a signature of this cluster: digest, size, signature.
_SIGNED = re.compile(rb"(?<= )([0-9a-f]{32})(\+[0-9]+)(\+A[0-9a-f]{40}@[0-9a-f]{8})(?=[ \n])")
_HASH = 16


class TrustedNames:
    """The names in the manifests that were added last. Not thread-safe.

    Args:
        most: Most names of all manifests together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._key = os.urandom(_HASH)
        self._tables: collections.deque[_Table] = collections.deque()
        # Hashes of names in the tables that the services have refused.
        self._refused: set[bytes] = set()

    def table_of(self, manifest: bytes) -> _Table:
        """Return the table of a manifest's first `most` names; 2 µs for each. Any thread."""
        found = {self._hash(name) for name in _names_in(manifest, self._most)}
        return _Table(b"".join(sorted(found)))

    def add(self, table: _Table) -> None:
        """Add a table, and drop the oldest ones that don't fit beside it."""
        if table in self._tables:
            self._tables.remove(table)
        self._tables.append(table)
        while sum(map(len, self._tables)) > self._most:
            self._tables.popleft()
        self._refused = {it for it in self._refused if self._is_in_a_table(it)}

    def has(self, name: str) -> bool:
        """Return whether a name, of digest and hints, is in a table and was not refused."""
        if not self._tables:
            return False
        hashed = self._hash(name.encode())
        return hashed not in self._refused and self._is_in_a_table(hashed)

    def refuse(self, name: str) -> None:
        """Stop trusting a name."""
        if self.has(name):
            self._refused.add(self._hash(name.encode()))

    def clear(self) -> None:
        """Drop all names."""
        self._tables.clear()
        self._refused.clear()

    def _is_in_a_table(self, hashed: bytes) -> bool:
        return any(hashed in each for each in self._tables)

    def _hash(self, name: bytes) -> bytes:
        return hashlib.blake2b(name, digest_size=_HASH, key=self._key).digest()


class _Table:
    """Sorted hashes in one bytes object."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __len__(self) -> int:
        return len(self._content) // _HASH

    def __getitem__(self, number: int) -> bytes:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._content[_HASH * number : _HASH * (number + 1)]

    def __contains__(self, hashed: bytes) -> bool:
        place = bisect.bisect_left(self, hashed)
        return place < len(self) and self[place] == hashed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Table) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)


def _names_in(manifest: bytes, most: int) -> Iterator[bytes]:
    """Yield digest and signature of the first `most` signed locators of this cluster."""
    for number, found in enumerate(_SIGNED.finditer(manifest)):
        if number >= most:
            return
        yield found[1] + found[3]
