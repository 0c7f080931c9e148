"""Exchange: a request in two halves, so that a thread can wait for several answers at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.keep.http.pace import pacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keepfs.keep.http.pace import Pace


class Exchange:
    """A request that is sent; its answer is still to be received. For one thread.

    Making it sends the request. Blocks.

    Args:
        pace: To keep.
        steps: Sends, yields the descriptor that the answer comes by, and
            receives it. It raises nothing, but for bugs.
        succeeded: Tells what came of it in the end.
    """

    def __init__(
        self, pace: Pace, steps: Iterator[int | None], succeeded: Callable[[], bool]
    ) -> None:
        self._pace = pace
        self._steps = steps
        self._succeeded = succeeded
        with pacing(pace, goes_on=True):
            self._descriptor = next(steps, None)

    def fileno(self) -> int | None:
        """Return the descriptor that the answer comes by; None where there is no wait for it."""
        return self._descriptor

    def patience(self) -> float:
        """Return the seconds to wait for the answer, at least 0."""
        return self._pace.left()

    def finish(self, *, is_answered: bool = False) -> bool:
        """Receive the answer, and tell whether the request succeeded. Blocks.

        `is_answered`: it has begun to come, be it that nobody looked for long.
        """
        if is_answered:
            self._pace.resume()
        with pacing(self._pace):
            next(self._steps, None)
        return self._succeeded()
