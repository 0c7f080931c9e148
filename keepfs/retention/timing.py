"""Timing: when the collection of a mount is brought up to date, and signatures are renewed.

Everything here is pure: times are arguments, in seconds on one clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from keepfs.keep.retry import Backoff

#: Seconds after a change until the collection is updated, so that one update has many changes.
#: Guessed: a copy of many small files stores hundreds in that time.
DEBOUNCE = 3.0
#: An update that took `n` seconds is followed by `n * REST` seconds without one: at most a
#: tenth of the time is spent on updates.
REST = 9.0
#: Seconds between two checks of a collection without changes: another client may delete it.
LOOK_AGAIN = 600.0
#: BlobSigningTTL in seconds if the cluster does not publish it: the default of Arvados.
DEFAULT_TTL = 14 * 24 * 3600.0
#: Retries after a failure; the cap is shortened for a short TTL.
_BACKOFF = Backoff(first=2.0, factor=2.0, cap=300.0)


def in_words(seconds: float) -> str:
    """Return a duration as text: in days, or in seconds below one day."""
    days = seconds / 86400
    return f"{days:.0f} days" if days >= 1 else f"{seconds:.0f} s"


@dataclass(frozen=True, slots=True)
class Timing:
    """The intervals that follow from BlobSigningTTL, in seconds.

    Attributes:
        ttl: The time after its last PUT at which the signature of a block expires. A block
            that no collection names may be trashed then.
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
        """Seconds between two checks of a collection without changes."""
        return min(LOOK_AGAIN, self.ttl / 8)

    @property
    def tick(self) -> float:
        """Seconds between two checks whether work is due."""
        return min(1.0, self.ttl / 40)

    def back_off(self, failures: int, draw: float) -> float:
        """Return the seconds to wait after failures.

        Args:
            failures: The number of consecutive failures, at least 1.
            draw: A random number from [0, 1), to spread retries.
        """
        return min(_BACKOFF.wait(failures - 1, draw), self.ttl / 16)

    def update_at(self, last: Updated, changed: float | None) -> float:
        """Return when the collection is to be updated or checked.

        Args:
            last: The last update.
            changed: When the first change since then was detected; None without one.
        """
        looked = last.ended + self.look_again
        if changed is None:
            return max(looked, last.ended + REST * last.duration)
        rested = last.ended + REST * last.duration
        # Even if updates take long, one is made before the first new block expires.
        latest = changed + self.half / 2
        return min(max(changed + self.debounce, rested), max(latest, last.ended))

    def renew_at(self, earliest_expiry: float) -> float:
        """Return when to renew signatures of which the first expires at `earliest_expiry`."""
        return earliest_expiry - self.half


@dataclass(frozen=True, slots=True)
class Updated:
    """The last update of a collection.

    Attributes:
        ended: When it ended, in seconds.
        duration: The seconds that it took.
    """

    ended: float
    duration: float = 0.0


def time_of(text: str) -> float:
    """Parse a recorded time, in seconds since the epoch; 0 if it is missing or damaged."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
