"""Timeouts: the limits on the time of a request, as a value."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: Seconds to connect, seconds of the interval over which the rate is measured, and
#: the least bytes per second; the SDK's values.
DEFAULT_TIMEOUT = (2, 256, 32768)
#: The same for proxies.
DEFAULT_PROXY_TIMEOUT = (20, 256, 32768)
#: Default deadline of a call, in seconds. A block of 64 MiB takes 2048 s at the
#: least rate.
DEFAULT_TOTAL_TIMEOUT = 2400.0

#: Limit of the doubled connect timeout, in seconds. Guessed: a host that doesn't
#: answer for a minute is down.
MAX_CONNECT = 60.0

_FEWEST_PARTS, _MOST_PARTS = 2, 3


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait for a service, and how slow it may be.

    Attributes:
        connect: Seconds for the TCP and TLS handshakes; doubled for each round.
        read: Seconds of the interval over which the rate is measured; also the
            longest silence.
        bandwidth: Least average rate over that interval, in bytes per second,
            sending or receiving.
    """

    connect: float = DEFAULT_TIMEOUT[0]
    read: float = DEFAULT_TIMEOUT[1]
    bandwidth: float = DEFAULT_TIMEOUT[2]

    @classmethod
    def of(cls, value: Timeouts | float | tuple[float, ...]) -> Timeouts:
        """Convert the SDK's forms: (connect, read[, bandwidth]), or one number for the first two.

        Raises:
            ValueError: It is none of these, the connect or read timeout isn't above 0, or
                the bandwidth is below 0.
        """
        if isinstance(value, Timeouts):
            return value
        parts = tuple(value) if isinstance(value, tuple | list) else (value, value)
        if not _FEWEST_PARTS <= len(parts) <= _MOST_PARTS:
            raise ValueError(f"a timeout is a number or 2 or 3 of them, not {value!r}")
        if min(parts[:2]) <= 0 or min(parts) < 0:
            raise ValueError(f"a timeout is above 0, not {value!r}")
        return cls(*parts)

    def for_attempt(self, attempt: int) -> Timeouts:
        """Return the timeouts for a round, counted from 0."""
        if not attempt:
            return self
        cap = max(self.connect, MAX_CONNECT)
        # Bound the exponent: 2.0**1024 overflows.
        return replace(self, connect=min(cap, self.connect * 2 ** min(attempt, 64)))

    def for_head(self, size: int) -> Timeouts:
        """Return timeouts for a HEAD: the service reads `size` bytes before it answers.

        The service sends no byte meanwhile, and its disk may be as slow as `bandwidth`.
        """
        if not self.bandwidth:
            return self
        return replace(self, read=max(self.read, size / self.bandwidth))

    def as_tuple(self) -> tuple[float, float, float]:
        """Return (connect, read, bandwidth), the SDK's form."""
        return self.connect, self.read, self.bandwidth
