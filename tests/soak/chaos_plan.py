"""The schedule of the chaos soak: which faults come and go when, drawn from a seed.

Time is cut into epochs. In each one service stays free of faults, so that it is
known what must succeed: the refuge. A service has one fault at a time.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The services, by number.
SERVICES = (0, 1, 2)
#: For `Planned.target`: all services at once; not a service.
ALL, ELSEWHERE = -1, -2

#: What one service may have.
OF_A_SERVICE = (
    "dead",
    "slow",
    "stalled in a body",
    "hung PUTs",
    "hung PUTs, unread",
    "hung",
    "reset",
    "reset in a body",
    "wrong bytes",
    "wrong length",
    "corrupt copies",
    "full",
    "read-only",
    "answers 404",
    "answers 403",
    "answers 422",
    "answers 429",
    "answers 500",
    "answers 502",
    "answers 503",
    "lost answers",
)
#: What all services may have at once; GET works all the same.
OF_ALL = ("hung PUTs", "full", "answers 503 to PUTs")
#: What others than the services may have, by lane; a lane has one fault at a time.
OF_OTHERS = {
    "API server": ("down", "hanging", "answers 500"),
    "list": ("empty", "senseless", "smaller", "with a stranger", "a proxy"),
    "token": ("replaced", "damaged file", "refused"),
    "connections": ("cut",),
    "disk cache": ("damaged", "cut off", "removed", "a link in its place"),
    "limits": ("memory", "threads"),
}
#: Those that hold up transfers: meanwhile there are more large ones.
STALLS = frozenset({"slow", "stalled in a body", "hung PUTs", "hung PUTs, unread", "hung"})
#: While these last, it isn't known what must succeed.
UNCERTAIN = frozenset({"list: a proxy", "token: refused", "limits: memory", "limits: threads"})
#: What the mount remembers when they are over, so that it must end then.
REMEMBERED = frozenset({"list: a proxy", "list: smaller"})
#: How a mount may end.
ENDS = ("SIGTERM", "two SIGTERM", "SIGKILL", "SIGKILL while it drains", "unmount")


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault.

    Attributes:
        name: What goes wrong; `LANE: KIND` where it isn't a service.
        target: The service's number, ALL or ELSEWHERE.
        begin: Seconds since the begin of the epoch.
        end: When it goes.
        draw: A number for what else must be drawn; for a smaller list, who is left out.
    """

    name: str
    target: int
    begin: float
    end: float
    draw: int

    def __str__(self) -> str:
        where = {ALL: "all services: ", ELSEWHERE: ""}.get(self.target, f"service {self.target}: ")
        return f"{where}{self.name}"


@dataclass(frozen=True, slots=True)
class Epoch:
    """Some seconds with their faults.

    Attributes:
        number: Counted from 0.
        seconds: How long it takes.
        refuge: The service without a fault.
        faults: In no order.
        signals: SIGHUP and SIGUSR1 for the mount, with their times.
        end: How the mount ends, with the faults still there; empty: it doesn't.
        returns_full: Whether the next mount finds all services full, and is
            killed as soon as it answers.
        quiesces: Whether the workers rest afterwards, to look for what is left.
    """

    number: int
    seconds: float
    refuge: int
    faults: tuple[Planned, ...]
    signals: tuple[tuple[float, str], ...]
    end: str
    returns_full: bool
    quiesces: bool

    @property
    def sick(self) -> frozenset[int]:
        """The services that have a fault at some time."""
        targets = {it.target for it in self.faults}
        if ALL in targets:
            return frozenset(SERVICES)
        return frozenset(targets & set(SERVICES))

    @property
    def is_certain(self) -> bool:
        """Whether it is known what must succeed."""
        return not any(it.name in UNCERTAIN for it in self.faults)


def plan(
    seed: int,
    lengths: tuple[float, float] = (10.0, 30.0),
    end_once_in: int = 3,
    without: Sequence[str] = (),
) -> Iterator[Epoch]:
    """Draw epochs without end; the same for the same arguments.

    Args:
        seed: Of all that is drawn.
        lengths: The shortest and the longest epoch, in seconds.
        end_once_in: The mount ends in one of so many.
        without: Faults and ends with one of these words in their names are left
            out; the others are the same.
    """
    draw = random.Random(seed)  # noqa: S311 - a schedule, not secrets

    def is_wanted(name: str) -> bool:
        return not any(word in name for word in without)

    for number in itertools.count():
        epoch = _epoch(draw, number, draw.uniform(*lengths), end_once_in)
        faults = tuple(it for it in epoch.faults if is_wanted(it.name))
        end = epoch.end if is_wanted(epoch.end) else ""
        if not end:
            faults = tuple(it for it in faults if it.name not in REMEMBERED)
        yield replace(epoch, faults=faults, end=end)


def _epoch(draw: random.Random, number: int, seconds: float, end_once_in: int) -> Epoch:
    refuge = draw.choice(SERVICES)
    others = [it for it in SERVICES if it != refuge]
    faults: list[Planned] = []
    if draw.random() < 0.2:
        faults.append(_placed(draw, seconds, draw.choice(OF_ALL), ALL))
    else:
        for target in draw.sample(others, draw.choice((0, 1, 1, 1, 2, 2, 2))):
            faults += _one_or_two(draw, seconds, OF_A_SERVICE, target)
    for lane in draw.sample(sorted(OF_OTHERS), draw.choice((0, 1, 1, 2))):
        kinds = [f"{lane}: {kind}" for kind in OF_OTHERS[lane]]
        fault = _placed(draw, seconds, draw.choice(kinds), ELSEWHERE)
        if fault.name == "list: smaller":  # never without the refuge
            fault = replace(fault, draw=draw.choice(others))
        faults.append(fault)
    signals = [
        (draw.uniform(0, seconds), draw.choice(("SIGHUP", "SIGUSR1")))
        for _ in range(draw.choice((0, 0, 1, 2)))
    ]
    ends = draw.randrange(end_once_in) == 0 or any(it.name in REMEMBERED for it in faults)
    end = draw.choice(ENDS) if ends else ""
    returns_full = draw.random() < 0.3
    quiesces = draw.random() < 0.25
    return Epoch(
        number, seconds, refuge, tuple(faults), tuple(sorted(signals)), end, returns_full, quiesces
    )


def _one_or_two(
    draw: random.Random, seconds: float, kinds: Sequence[str], target: int
) -> list[Planned]:
    if draw.random() < 0.6:
        return [_placed(draw, seconds, draw.choice(kinds), target)]
    first = _placed(draw, seconds / 2, draw.choice(kinds), target)
    second = _placed(draw, seconds / 2, draw.choice(kinds), target)
    half = seconds / 2
    later = Planned(second.name, target, second.begin + half, second.end + half, second.draw)
    return [first, later]


def _placed(draw: random.Random, seconds: float, name: str, target: int) -> Planned:
    # Long, so that what hangs outlasts the bounds; half of them meet the end of the mount.
    begin = draw.uniform(0, seconds * 0.25)
    end = seconds if draw.random() < 0.5 else draw.uniform(seconds * 0.5, seconds)
    return Planned(name, target, begin, end, draw.getrandbits(32))
