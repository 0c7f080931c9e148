"""Grants: which names of a block may be answered from memory.

A Keep service checks the signature in a locator before it sends the block. The
cache finds a block by its digest alone, so it must not answer a name that the
services would refuse. The rule: a name is answered from memory if its
signature has not expired and one of these holds:

- a service has answered 200 to this very name;
- the name came in the receipt of a put;
- the services do not sign: one has answered 200 to a name without a signature;
- the blocks are in a local store.

Every refusal takes back the grant of that name, and what was learned about
signing. Any thread may call any method.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from typing import TYPE_CHECKING

from keepfs.keep.errors import Cause, KeepReadError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.keep.locator import KeepLocator

#: Hints that send the question to another cluster.
_REMOTE = ("R", "K")


class Grants:
    """The names that the services have answered to.

    Args:
        most: Names remembered at most; a forgotten one is asked for again.
        are_needed: False where there is nobody who could refuse a name.
    """

    def __init__(self, most: int, *, are_needed: bool = True) -> None:
        self._most = most
        self._are_needed = are_needed
        self._services_sign = are_needed
        self._names = collections.OrderedDict[str, None]()
        self._lock = threading.Lock()

    def allows(self, locator: KeepLocator) -> bool:
        """Tell whether a name may be answered from memory."""
        if locator.permission_expired():
            return False
        with self._lock:
            if not self._services_sign:
                return True
            key = _key(locator)
            if key not in self._names:
                return False
            self._names.move_to_end(key)
            return True

    def answered(self, locator: KeepLocator) -> None:
        """Note that a service answered 200 to a name."""
        with self._lock:
            if not _is_signed(locator):
                self._services_sign = False
        self.received(locator)

    def received(self, locator: KeepLocator) -> None:
        """Note the name in the receipt of a put."""
        if not self._are_needed:
            return
        with self._lock:
            self._names[_key(locator)] = None
            self._names.move_to_end(_key(locator))
            if len(self._names) > self._most:
                self._names.popitem(last=False)

    def refused(self, locator: KeepLocator) -> None:
        """Note that the services refused a name."""
        with self._lock:
            self._names.pop(_key(locator), None)
            self._services_sign = self._are_needed

    @contextlib.contextmanager
    def judged(self, locator: KeepLocator) -> Iterator[None]:
        """Take back a name's grant if what is done within is refused."""
        try:
            yield
        except KeepReadError as error:
            if error.cause is Cause.DENIED:
                self.refused(locator)
            raise

    def clear(self) -> None:
        """Forget everything: the token is another now, and signatures are made for a token."""
        with self._lock:
            self._names.clear()
            self._services_sign = self._are_needed


def _is_signed(locator: KeepLocator) -> bool:
    """Tell whether something in a name may be why a service answers to it."""
    return locator.perm_sig is not None or any(it.startswith(_REMOTE) for it in locator.hints)


def _key(locator: KeepLocator) -> str:
    """Return what the services judge by: digest and hints. The size is not signed."""
    return locator.md5sum + str(locator)[len(locator.stripped()) :]
