"""Timing: when the collection of a mount is brought up to date, and signatures are renewed.

Pure: times are arguments, in seconds, of any one clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from keepfs.keep.retry import Backoff

#: Seconds after a change until the collection is updated, so that one update has many changes.
#: Guessed: a copy of many small files stores some hundred in that time.
DEBOUNCE = 3.0
#: An update that took `n` seconds is followed by `n * REST` seconds without one: at most a
#: tenth of the time is spent on updates.
REST = 9.0
#: Seconds between two looks at a collection that has not to be changed: it may be deleted.
LOOK_AGAIN = 600.0
#: BlobSigningTTL in seconds if the cluster does not publish it: the default of Arvados.
DEFAULT_TTL = 14 * 24 * 3600.0
#: Retries after a failure; the cap is shortened for a short TTL.
_BACKOFF = Backoff(first=2.0, factor=2.0, cap=300.0)


def in_words(seconds: float) -> str:
    """Write a duration in days, or in seconds below one day."""
    days = seconds / 86400
    return f"{days:.0f} days" if days >= 1 else f"{seconds:.0f} s"


@dataclass(frozen=True, slots=True)
class Timing:
    """The intervals that follow from BlobSigningTTL, in seconds.

    Attributes:
        ttl: A block that no collection names may be trashed that long after its last
            PUT, and its signature ends.
    """

    ttl: float = DEFAULT_TTL

    @property
    def half(self) -> float:
        """The age of a signature or a block at which it is renewed."""
        return self.ttl / 2

    @property
    def debounce(self) -> float:
        """Seconds between the first change and the update."""
        return min(DEBOUNCE, self.ttl / 16)

    @property
    def look_again(self) -> float:
        """Seconds between two looks at a collection that has not to be changed."""
        return min(LOOK_AGAIN, self.ttl / 8)

    @property
    def tick(self) -> float:
        """Seconds between two looks at what is to be done."""
        return min(1.0, self.ttl / 40)

    def back_off(self, failures: int, draw: float) -> float:
        """Return the seconds to wait after a number of consecutive failures, at least 1.

        Args:
            failures: In a row, at least 1.
            draw: From [0, 1), to spread retries.
        """
        return min(_BACKOFF.wait(failures - 1, draw), self.ttl / 16)

    def update_at(self, last: Updated, changed: float | None) -> float:
        """Return when the collection is to be updated or checked.

        Args:
            last: The update before.
            changed: When the first change since then was noticed; None without one.
        """
        looked = last.ended + self.look_again
        if changed is None:
            return max(looked, last.ended + REST * last.duration)
        rested = last.ended + REST * last.duration
        # A tree whose update takes long is updated before its first block is due all the same.
        latest = changed + self.half / 2
        return min(max(changed + self.debounce, rested), max(latest, last.ended))

    def renew_at(self, earliest_expiry: float) -> float:
        """Return when signatures are to be renewed of which the first ends then."""
        return earliest_expiry - self.half


@dataclass(frozen=True, slots=True)
class Updated:
    """The last update of a collection.

    Attributes:
        ended: When.
        duration: How long it took, in seconds.
    """

    ended: float
    duration: float = 0.0
