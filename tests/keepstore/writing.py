"""Where a keepstore puts a block: the volumes that cover the wanted classes."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.keepstore.locators import RefusalError
from tests.keepstore.volumes import BrokenError, FullError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.keepstore.volumes import Volume
    from tests.keepstore.wire import Content


class Written(NamedTuple):
    """What a PUT has stored: copies in all, and copies by storage class."""

    replicas: int
    classes: dict[str, int]


@dataclass(slots=True)
class Placement:
    """The placing of one block.

    Attributes:
        classes: The wanted storage classes; without any, one volume will do.
        now: The time that the block gets, in nanoseconds.
    """

    digest: str
    content: Content
    classes: set[str]
    now: int
    _used: list[Volume] = field(default_factory=list, init=False)

    def write(self, volumes: Sequence[Volume]) -> Written:
        """Touch the copies there are, then write what is missing.

        Raises:
            RefusalError: Nothing could be stored, or other bytes have the same name.
        """
        self._touch(volumes)
        are_full = self._fill(volumes)
        if not self._used and are_full:
            raise RefusalError(507, "insufficient storage")
        if not self._used:
            raise RefusalError(503, "volume unavailable")
        counts: collections.Counter[str] = collections.Counter()
        for volume in self._used:
            counts.update(dict.fromkeys(volume.classes, volume.replication))
        return Written(sum(volume.replication for volume in self._used), dict(counts))

    def _wants(self, volume: Volume) -> bool:
        missing = self.classes.difference(*(each.classes for each in self._used))
        if volume in self._used or (self._used and not missing):
            return False
        return not missing or not missing.isdisjoint(volume.classes)

    def _touch(self, volumes: Sequence[Volume]) -> None:
        for volume in filter(self._wants, volumes):
            try:
                block = volume.block(self.digest)
            except RefusalError:
                continue
            if block is None:
                continue
            if block.content != self.content:
                raise RefusalError(500, "hash collision")
            volume.touch(self.digest, self.now)
            self._used.append(volume)

    def _fill(self, volumes: Sequence[Volume]) -> bool:
        # Returns whether all failures, if any, were for want of room.
        are_full = True
        for volume in filter(self._wants, volumes):
            try:
                volume.write(self.digest, self.content, self.now)
                self._used.append(volume)
            except FullError:
                pass
            except BrokenError:
                are_full = False
        return are_full
