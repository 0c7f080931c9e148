"""Renews objects in a forked child process, where only the thread that forked goes on.

A lock that another thread of the parent held is never released there, and no thread does what
others of the parent were doing.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewed(Protocol):
    """An object that works on in a forked child."""

    def renew_after_fork(self) -> None:
        """Replace the locks, and forget what other threads were doing; must not raise or wait."""


_all = weakref.WeakSet[Renewed]()


def renew_in_children(it: Renewed) -> None:
    """Call `renew_after_fork` of an object in each forked child, as long as it lives."""
    _all.add(it)


def _renew_all() -> None:
    for each in list(_all):
        each.renew_after_fork()


os.register_at_fork(after_in_child=_renew_all)
