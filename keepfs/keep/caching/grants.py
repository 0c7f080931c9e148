"""Grants: which locators of a block may be answered from memory.

A Keep service checks the signature in a locator before it sends the block. The
cache finds a block by its digest alone, so it must not answer a locator that the
services would refuse. A locator is answered from memory if its signature has not
expired and one of these holds:

- a service has answered 200 to this locator;
- the locator came in the receipt of a put;
- with a disk cache: it came in a manifest that the API server had signed for the token;
- the services do not sign: one has answered 200 to a locator without a signature;
- the blocks are in a local store.

A refusal revokes the grant of that locator, and the conclusion that the services do
not sign. Any thread may call any method.
"""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING

from keepfs.keep.caching.trusted_names import TrustedNames
from keepfs.keep.errors import Cause
from keepfs.keep.forks import renew_in_children

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.errors import KeepReadError
    from keepfs.keep.locator import KeepLocator

#: Most names of manifests: blocks of 64 TiB, and 16 MB of memory.
_MOST_TRUSTED = 1_000_000
#: Hints that send the request to another cluster.
_REMOTE = ("R", "K")


class Grants:
    """The locators that the services have accepted.

    Args:
        most: Most locators recorded; one that was dropped is sent to a service again.
        are_needed: False for a local store, which accepts every locator.
        on_refusal: Called with each locator that the services refused.
    """

    def __init__(
        self,
        most: int,
        *,
        are_needed: bool = True,
        on_refusal: Callable[[KeepLocator], None] = lambda _: None,
    ) -> None:
        self._on_refusal = on_refusal
        self._most = most
        self._are_needed = are_needed
        self._services_sign = are_needed
        self._names = collections.OrderedDict[str, None]()
        self._trusted = TrustedNames(_MOST_TRUSTED)
        self._lock = threading.Lock()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Replace the lock in a forked child; see `forks`."""
        self._lock = threading.Lock()

    def allows(self, locator: KeepLocator) -> bool:
        """Return whether a locator may be answered from memory."""
        if locator.permission_expired():
            return False
        with self._lock:
            if not self._services_sign:
                return True
            key = _key(locator)
            if key in self._names:
                self._names.move_to_end(key)
                return True
            if not self._trusted.has(key):
                return False
            self._record(key)  # found faster the next time
            return True

    def answered(self, locator: KeepLocator) -> None:
        """Record that a service answered 200 to a locator."""
        if not _is_signed(locator):
            with self._lock:
                self._services_sign = False
        self.received(locator)

    def received(self, locator: KeepLocator) -> None:
        """Record a locator that the services will accept, such as that in a receipt."""
        if not self._are_needed:
            return
        with self._lock:
            self._record(_key(locator))

    def _record(self, key: str) -> None:
        self._names[key] = None
        self._names.move_to_end(key)
        if len(self._names) > self._most:
            self._names.popitem(last=False)

    def signed(self, manifest: bytes) -> None:
        """Record the locators in a manifest that the API server signed for this token.

        All of them, up to a million names of all manifests; names of other clusters are left
        out. Takes 2 µs for each.
        """
        table = self._trusted.table_of(manifest)
        with self._lock:
            self._trusted.add(table)

    def refused(self, locator: KeepLocator) -> None:
        """Record that the services refused a locator."""
        with self._lock:
            self._names.pop(_key(locator), None)
            self._trusted.refuse(_key(locator))
            self._services_sign = self._are_needed
        self._on_refusal(locator)

    def failed(self, locator: KeepLocator, error: KeepReadError) -> None:
        """Record that a request failed; if the cause is DENIED, the locator was refused."""
        if error.cause is Cause.DENIED:
            self.refused(locator)

    def clear(self) -> None:
        """Drop all grants: signatures are valid for one token, and the token has changed."""
        with self._lock:
            self._names.clear()
            self._trusted.clear()
            self._services_sign = self._are_needed


def _is_signed(locator: KeepLocator) -> bool:
    """Return whether a locator has a signature or names another cluster."""
    return locator.perm_sig is not None or any(it.startswith(_REMOTE) for it in locator.hints)


def _key(locator: KeepLocator) -> str:
    """Return the parts that the services check: digest and hints. The size is not signed."""
    if locator.perm_sig is None and not locator.hints:
        return locator.md5sum
    return locator.md5sum + str(locator)[len(locator.stripped()) :]
