"""Succession: recognizes programs that read the files of a collection one after another.

A file follows another if its bytes do, in the manifest. Programs that copy or archive a
collection read its files in this order.

For the trio thread only.
"""

from __future__ import annotations

from collections import OrderedDict

#: Most runs that are recorded: programs that read at the same time.
_MOST_RUNS = 64


class Succession:
    """The runs of one collection: files that were read one after another, each to its end.

    An address is an offset in the bytes of all blocks of the collection, in the order of its
    manifest.
    """

    def __init__(self) -> None:
        # The bytes of each run, by the address at which it has ended so far.
        self._runs: OrderedDict[int, int] = OrderedDict()

    def length(self, address: int) -> int:
        """Return the bytes of the run that ends at an address; 0 if none does."""
        return self._runs.get(address, 0)

    def extend(self, begin: int, end: int) -> None:
        """Record that a file was read to its end, from address `begin` to `end`."""
        length = self._runs.pop(begin, 0) + end - begin
        self._runs[end] = max(length, self._runs.get(end, 0))
        self._runs.move_to_end(end)
        if len(self._runs) > _MOST_RUNS:
            self._runs.popitem(last=False)
