"""How long another client of a mount waits meanwhile: a process that asks again and again."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

# It looks up ever new names, which the kernel can't answer by itself, until
# its input ends. It runs without site, to start quickly.
_ASKER = """
import itertools, os, select, sys, time
directory = sys.argv[1]
print(flush=True)
longest = 0.0
for number in itertools.count():
    begin = time.monotonic()
    try:
        os.stat(f"{directory}/no-{os.getpid()}-{number}")
    except FileNotFoundError:
        pass
    longest = max(longest, time.monotonic() - begin)
    if select.select([sys.stdin], [], [], 0.002)[0]:
        break
print(longest, flush=True)
"""


class Asker:
    """Another client, as a context manager: what it had to wait is known at the end.

    Args:
        directory: Where it looks names up: not the one that is worked in.

    Attributes:
        longest: Seconds the slowest answer took.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.longest = 0.0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _ASKER, self._directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        said, _ = self._process.communicate()
        if error is None:
            self.longest = float(said)
