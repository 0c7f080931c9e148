"""The same steps on a mount and on a local disk, for claims that say "as on a local disk"."""

from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING

from tests.soak.twins import outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: What each `file` has.
CONTENT = b"0123456789"


class Places:
    """Directories in upload/ and on a disk, alike: a file, a full directory, two symlinks.

    Args:
        mounted: In upload/; to be filled.
        disk: On a local disk.
    """

    def __init__(self, mounted: Path, disk: Path) -> None:
        self._mounted = mounted
        self._disk = disk
        self._numbers = itertools.count(1)

    def fresh(self) -> Path:
        """Make a directory in upload/ alone, for what is keepfs's own."""
        return self._made(self._mounted, next(self._numbers))

    def both(self, work: Callable[[Path], object]) -> object:
        """Do the same in both places; return the outcome, which must be one."""
        number = next(self._numbers)
        on_disk, on_mount = (self._made(base, number) for base in (self._disk, self._mounted))
        expected = outcome(lambda: work(on_disk))
        assert outcome(lambda: work(on_mount)) == expected
        return expected

    def fail(self, number: int, *attempts: Callable[[Path], object]) -> None:
        """See that each attempt fails in both places, with the same errno."""
        for attempt in attempts:
            assert self.both(attempt) == errno.errorcode[number]

    def fail_mounted(self, number: int, *attempts: Callable[[Path], object]) -> None:
        """See that each attempt fails on the mount, where a local disk might do it."""
        for attempt in attempts:
            here = self.fresh()
            found = outcome(lambda it=attempt, at=here: it(at))  # type: ignore[misc] # bound now
            assert found == errno.errorcode[number]

    def _made(self, base: Path, number: int) -> Path:
        place = base / str(number)
        (place / "full" / "inner").mkdir(parents=True)
        (place / "file").write_bytes(CONTENT)
        (place / "link").symlink_to("file")
        (place / "loop").symlink_to("loop")
        return place
