"""KnownSignatures: signed locators that this mount has used, for names without a signature.

A Keep service accepts a signature of the mount's token from every user of the mount. With
`--share-signatures` a name without a signature is read with a signature that another user of
the mount has used. For the trio thread only.
"""

from __future__ import annotations

import collections

from keepfs.keep.locator import KeepLocator

#: Most blocks whose signature is kept, those used last; about 5 MB.
MAX_SIGNATURES = 10_000


class KnownSignatures:
    """The newest accepted signature of each block."""

    def __init__(self) -> None:
        self._signed = collections.OrderedDict[str, KeepLocator]()

    def add(self, locator: KeepLocator) -> None:
        """Keep a locator that a service has accepted or issued, if it is signed."""
        if locator.perm_expiry is None:
            return
        known = self._signed.get(locator.md5sum)
        if known is None or known.perm_expiry is None or known.perm_expiry <= locator.perm_expiry:
            self._signed[locator.md5sum] = locator
        self._signed.move_to_end(locator.md5sum)
        if len(self._signed) > MAX_SIGNATURES:
            self._signed.popitem(last=False)

    def signed(self, locator: KeepLocator) -> KeepLocator:
        """Return the known signed locator of a block, or `locator` itself.

        A locator with hints, another size or a signature is returned unchanged: a forged or
        expired signature is never replaced.
        """
        if locator.hints or locator.perm_sig is not None:
            return locator
        known = self._signed.get(locator.md5sum)
        if known is None or known.permission_expired():
            return locator
        return known if locator.size in {None, known.size} else locator
