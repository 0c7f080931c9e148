"""KeyboardInterrupt at each line of the cache: later reads succeed, no memory stays reserved."""

from __future__ import annotations

import functools
import itertools
import sys
from typing import TYPE_CHECKING, Any

from keepfs.keep import KeepBlockCache, KeepLocator

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

#: The source files with the lines that are interrupted: a part of their paths.
_INTERRUPTED = "/keep/caching/", "/cachetools/"
#: Blocks that fit.
_FIT = 2


class Reader:
    """Reads blocks of 100 bytes with a cache that has room for two."""

    def __init__(self) -> None:
        self.cache = KeepBlockCache(100 * _FIT + 50)

    def read(self, *numbers: int) -> None:
        """Read blocks. A wait for a fetch or for memory fails."""
        for number in numbers:
            block = bytes([number]) * 100
            locator = KeepLocator.of_block(block)
            read = self.cache.get_or_fetch(locator, functools.partial(bytes, block), timeout=0)
            assert bytes(read) == block


def interrupted(line: int, call: Callable[[], object]) -> str:
    """Raise KeyboardInterrupt at a line that `call` runs; return where, "" if it runs fewer."""
    left, place = line, ""

    def trace(frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401 - settrace's
        nonlocal left, place
        if not any(part in frame.f_code.co_filename for part in _INTERRUPTED):
            return None
        if event == "line" and not place:
            left -= 1
            if left < 0:
                place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return place


def test_an_interrupt_at_any_line_of_a_read_leaves_the_cache_usable() -> None:
    for line in itertools.count():
        reader = Reader()
        reader.read(0, 1, 2, 3)
        place = interrupted(line, lambda: reader.read(4, 2))  # noqa: B023 - called at once
        if not place:
            break
        reader.read(*range(7), *range(7))
        left = reader.cache.statistics()
        assert (left.blocks, left.currsize, left.in_flight) == (_FIT, 100 * _FIT, 0), place
    assert line > 100
