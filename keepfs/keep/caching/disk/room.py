"""Room: keeps the files of the disk cache within their budget, and a part of the disk free."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keepfs.keep.caching.disk.block_folder import BlockFolder, CachedFile

#: What stays free: this part of the disk, or these bytes, whichever is more.
_FREE_PART, _FREE_BYTES = 0.10, 5 * 2**30
#: The part of the budget that an eviction leaves, so that not each block needs another.
_EVICT_TO = 0.95
#: Bytes written by this process, as a part of the budget, after which the directory is
#: listed again: other processes have written too.
_LIST_AFTER = 0.10
#: Files listed for an eviction. A smaller cache is listed completely. Of a larger one random
#: folders are listed, since MD5 spreads blocks evenly: its size is then an estimate, about
#: 1 % off, and an eviction removes at most an 8th of these files.
_SAMPLE, _PART_EVICTED = 20_000, 8
#: The parts of the disk, and of its bytes for the cache, that `automatic_budget` takes.
_AUTO_OF_DISK, _AUTO_OF_FREE = 0.10, 0.25
#: Times between two visits of a block after which it no longer counts as read repeatedly. Guessed.
_RHYTHM = 2
#: The part of the files that stays when the disk refuses a block, as a quota does; and the
#: seconds for which the files then take no more.
_REFUSED_TO, _REFUSED_FOR = 0.9, 3600.0
#: Seconds for which nothing is listed after an eviction that could not free enough of the disk:
#: other files fill it.
_PAUSE = 10.0


def automatic_budget(directory: Path, cached: int = 0) -> int:
    """Return a tenth of the disk, or a quarter of its bytes for the cache if that is less. Blocks.

    Bytes for the cache are the free ones and those that it has: else the budget would shrink as
    the cache grows.

    Args:
        directory: A directory of the disk; made if it doesn't exist.
        cached: Bytes of the cache's files.

    Raises:
        OSError: The directory can't be made or examined.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    disk = os.statvfs(directory)
    return int(
        min(
            _AUTO_OF_DISK * disk.f_blocks * disk.f_frsize,
            _AUTO_OF_FREE * (disk.f_bavail * disk.f_frsize + cached),
        )
    )


def expected_wait(file: CachedFile, now: int) -> tuple[bool, float]:
    """Return the sort key of an eviction: the file with the largest key is evicted first.

    Blocks that are read again and again are evicted last, the one with the longest time between
    visits, or since the last, before the others: so a long scan doesn't evict them. All others
    are evicted in the order of their last visits. A block counts as one of the first until it has
    not been visited for twice the time between its last two visits: so what is no longer read
    makes room. A visit in the future, of a clock that was wrong, counts as the longest ago.

    Args:
        file: The file.
        now: The time, in nanoseconds since the epoch.
    """
    idle = now - file.visited
    if idle < 0:
        return True, float("inf")
    interval = file.visited - file.visited_before if file.visited_before else 0
    if idle >= _RHYTHM * interval:
        return True, idle
    return False, max(interval, idle)


class Room:
    """The bytes of the disk that the files may take. For the thread that writes them.

    Other threads may read the attributes.

    Args:
        directory: The directory of the disk cache.
        budget: Most bytes of all files; None: `automatic_budget`, again before each write.
        least_free: Bytes of the disk that stay free; None: a tenth, at least 5 GiB.
        clock: Replaces `time.monotonic`, in seconds.

    Attributes:
        maxsize: The budget, in bytes; an automatic one as last determined.
        currsize: Bytes of the files, as last listed, plus those added since; 0 before.
        blocks: The number of these files.
        evictions: Files evicted.

    Raises:
        OSError: The directory can't be made or examined.
    """

    def __init__(
        self,
        directory: Path,
        budget: int | None,
        least_free: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._budget = budget
        self._least_free = least_free
        self._clock = clock
        self._listed = False
        self._written_since = 0
        # The most that the disk takes, until this time; and when it is examined again.
        self._most, self._most_until = 0, -float("inf")
        self._paused_until = -float("inf")
        self.currsize = self.blocks = self.evictions = 0
        self.maxsize = automatic_budget(directory) if budget is None else budget

    @property
    def is_limited(self) -> bool:
        """Whether the disk has refused a block in the last hour; see `shrink`."""
        return self._clock() < self._most_until

    def forget(self) -> None:
        """List the files before the next write: they are in another directory now."""
        self._listed = False
        self._paused_until = -float("inf")

    def note_added(self, length: int) -> None:
        """Count a file of `length` bytes."""
        self._written_since += length
        self.currsize += length
        self.blocks += 1

    def make(self, folder: BlockFolder, size: int) -> bool:
        """Evict files until `size` bytes fit the budget and the disk; return whether they do."""
        budget = self._determined(self.currsize)
        if size > budget and (self._listed or self._budget is not None):
            return False
        lacking = self._lacking(folder, size)
        known = self._listed and self._written_since <= _LIST_AFTER * budget
        if known and lacking <= 0 and self.currsize + size <= budget:
            return True
        if lacking > 0 and self._clock() < self._paused_until:
            return False
        files, part = self._list(folder)
        total = before = int(sum(it.length for it in files) / part)
        budget = self._determined(total)
        goal = total
        if size <= budget:
            goal = min(total, total - lacking)
            if total + size > budget:
                goal = min(goal, int(_EVICT_TO * budget) - size)
        if part < 1:  # of a large cache, only some of the sample is evicted at a time
            goal = max(goal, total - sum(it.length for it in files) // _PART_EVICTED)
        total = self._evict(folder, files, part, goal)
        # A large cache that seems over the budget shrinks with each block that it takes.
        fits = total + size <= budget or (part < 1 and before - total >= size)
        is_free = self._lacking(folder, size) <= 0
        self._paused_until = -float("inf") if is_free else self._clock() + _PAUSE
        return fits and is_free

    def shrink(self, folder: BlockFolder) -> bool:
        """Evict a tenth of the files: the disk has refused a block. Return whether any was.

        The other programs of a user whose quota is used up need some of it too, so for an hour
        the files take no more than is left of them.
        """
        files, part = self._list(folder)
        total, evictions = int(sum(it.length for it in files) / part), self.evictions
        self._most = self._evict(folder, files, part, int(_REFUSED_TO * total))
        self._most_until = self._clock() + _REFUSED_FOR
        return self.evictions > evictions

    def _list(self, folder: BlockFolder) -> tuple[list[CachedFile], float]:
        folder.remove_leftovers()
        return folder.sample(_SAMPLE)

    def _evict(self, folder: BlockFolder, files: list[CachedFile], part: float, goal: int) -> int:
        """Remove files until all of them have `goal` bytes; return the bytes that they have."""
        total, count = int(sum(it.length for it in files) / part), int(len(files) / part)
        evicted = 0
        if total > goal:
            now = time.time_ns()
            files = sorted(files, key=lambda it: expected_wait(it, now))
            while files and total > goal:
                worst = files.pop()
                evicted += folder.remove(worst.md5sum)
                total -= worst.length
        self._listed, self._written_since = True, 0
        self.evictions += evicted
        self.currsize, self.blocks = total, count - evicted
        return total

    def _lacking(self, folder: BlockFolder, size: int) -> int:
        return folder.lacking(size, self._least_free, _FREE_PART, _FREE_BYTES)

    def _determined(self, cached: int) -> int:
        """Return the budget of a cache with files of `cached` bytes."""
        if self._budget is None:
            self.maxsize = automatic_budget(self._directory, cached)
        return min(self.maxsize, self._most) if self.is_limited else self.maxsize
