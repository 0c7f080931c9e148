"""Measuring: subject and baselines in turn, medians, processor time and peak memory."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TICKS = os.sysconf("SC_CLK_TCK")


class VerifyError(Exception):
    """What was read isn't what was stored, or wasn't fetched where it should have been."""


class NotMeasuredError(Exception):
    """A group can't be measured here; says why."""


@dataclass(frozen=True)
class Taken:
    """What the timed part of a trial took.

    Attributes:
        seconds: By the clock.
        cpu: Seconds of processor time of the measured process.
        busy: Share of all processors' time that was used by anybody, 0 to 1; None
            where it was too short to say.
    """

    seconds: float
    cpu: float
    busy: float | None


class Trial(Protocol):
    """One run of what is measured; prepares and verifies outside the time it returns."""

    def __call__(self) -> float | Taken:
        """Run, and return what the timed part took, or its seconds."""


@dataclass(frozen=True)
class Target:
    """What a figure should reach.

    Attributes:
        bound: At least this, or at most where less is better.
        of: Whether the ratio or the value is meant.
    """

    bound: float
    of: str = "ratio"


@dataclass
class Figure:
    """One line of the table, and what is behind it.

    Attributes:
        name: What was measured.
        value: Its median, in `unit`.
        baseline: What it is compared with; empty for nothing.
        ratio: Value over the baseline's; how much faster, so over 1 is better
            whatever the unit.
        target: What it should reach; None where nothing was promised.
        cpu: Seconds of processor time of the measured process, median of one trial.
        busy: Share of all processors' time that was used meanwhile; near 1 nothing
            goes faster here, however it waits. Median of one trial.
        rss: Its peak resident memory in MiB, over all trials.
        samples: The value of each trial.
        others: Ratios to further baselines.
    """

    name: str
    value: float
    unit: str
    baseline: str = ""
    baseline_value: float | None = None
    ratio: float | None = None
    target: Target | None = None
    cpu: float | None = None
    busy: float | None = None
    rss: float | None = None
    samples: list[float] = field(default_factory=list)
    others: dict[str, float] = field(default_factory=dict)

    @property
    def less_is_better(self) -> bool:
        """Whether the value is a time or a size, not a rate."""
        return self.unit in {"s", "MiB"}

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        if self.target.of == "ratio":
            return self.ratio is not None and self.ratio >= self.target.bound
        if self.less_is_better:
            return self.value <= self.target.bound
        return self.value >= self.target.bound


class Meter:
    """Processor time and peak memory of a process, by its number."""

    def __init__(self, pid: int) -> None:
        self._directory = Path(f"/proc/{pid}")

    def restart(self) -> None:
        """Forget the peak."""
        (self._directory / "clear_refs").write_text("5")

    def cpu(self) -> float:
        """Return the seconds it has used so far."""
        fields = (self._directory / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def peak(self) -> float:
        """Return the most resident memory since the restart, in MiB."""
        status = (self._directory / "status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024


class Stopwatch:
    """Measures what is done within `with`, all of it together if it is entered again.

    Args:
        pid: The process whose processor time is meant.
    """

    def __init__(self, pid: int) -> None:
        self._meter = Meter(pid)
        self._sums = [0.0, 0.0, 0.0, 0.0]
        self._begin = self._sums

    def __enter__(self) -> Self:
        self._begin = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        for at, (now, begin) in enumerate(zip(self._now(), self._begin, strict=True)):
            self._sums[at] += now - begin

    def taken(self) -> Taken:
        """Return what it took."""
        seconds, cpu, idle, all_ = self._sums
        return Taken(seconds, cpu, 1 - idle / all_ if all_ else None)

    def _now(self) -> list[float]:
        idle, all_ = _machine()
        return [time.perf_counter(), self._meter.cpu(), idle, all_]


def _machine() -> tuple[int, int]:
    """Return the ticks that the processors were idle, and all there were."""
    with Path("/proc/stat").open() as stat:
        ticks = [int(word) for word in stat.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def prepare_memory(size: int) -> None:
    """See to it that the next bytes the kernel hands out are there.

    A virtual machine's host may take back memory that is free for some seconds.
    Whoever is given such a page next waits until the host has found another: that
    takes longer than all that is measured here, and hits at random. So memory is
    touched and given back just before a trial.
    """
    if size:
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            for at in range(0, size, mmap.PAGESIZE):
                memory[at] = 1


def timed(work: Callable[[], object]) -> float:
    """Return the seconds something takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@dataclass(frozen=True)
class Amount:
    """What one trial does, to make its time a figure.

    Attributes:
        count: How much; 0 for the time itself.
        unit: Of the figure: a rate per second, or s.
    """

    count: float
    unit: str

    def figure(self, seconds: float) -> float:
        """Return the rate, or the time."""
        return self.count / seconds if self.count else seconds


def mb(size: int) -> Amount:
    """Return an amount of bytes, measured in MB/s of a million bytes."""
    return Amount(size / 1e6, "MB/s")


@dataclass
class Sample:
    """What the trials of one kind took.

    Attributes:
        seconds: Of each.
        cpu: Seconds of processor time in each, where a process is watched.
        busy: Share of the processors' time in each, where the trial says it.
        peak: Its most resident memory in any of them, in MiB.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    peak: float = 0.0

    def add(self, trial: Trial, meter: Meter | None) -> None:
        """Make a trial, watched by a meter if there is one."""
        if meter is None:
            self._note(trial(), 0.0)
            return
        meter.restart()
        before = meter.cpu()
        taken = trial()
        self._note(taken, meter.cpu() - before)
        self.peak = max(self.peak, meter.peak())

    def _note(self, taken: float | Taken, cpu: float) -> None:
        if isinstance(taken, Taken):
            self.seconds.append(taken.seconds)
            self.cpu.append(taken.cpu)
            if taken.busy is not None:
                self.busy.append(taken.busy)
        else:
            self.seconds.append(taken)
            self.cpu.append(cpu)


def compare(
    name: str,
    amount: Amount,
    subject: Trial,
    baselines: Mapping[str, Trial],
    *,
    repeats: int,
    pid: int | None = None,
    target: Target | None = None,
    memory: int = 0,
) -> Figure:
    """Measure a subject and its baselines in turn.

    Args:
        name: The figure's.
        amount: What one trial does.
        subject: What is measured.
        baselines: What it is compared with; the first is the target's.
        repeats: Of each; if several, one more of each goes before, uncounted.
        pid: The process whose processor time and memory are meant.
        target: What to reach.
        memory: Bytes that a trial is likely to touch first; see `prepare_memory`.
    """
    meter = None if pid is None else Meter(pid)
    if repeats > 1:
        for trial in (subject, *baselines.values()):
            trial()
    ours, theirs = Sample(), {key: Sample() for key in baselines}
    for _ in range(repeats):
        prepare_memory(memory)
        ours.add(subject, meter)
        for key, trial in baselines.items():
            prepare_memory(memory)
            theirs[key].add(trial, None)
    figure = figure_of(name, amount, ours)
    figure.target = target
    for key, sample in theirs.items():
        _relate(figure, key, amount.figure(statistics.median(sample.seconds)))
    return figure


def figure_of(name: str, amount: Amount, sample: Sample) -> Figure:
    """Make a figure of what trials took; compared with nothing yet."""
    return Figure(
        name=name,
        value=amount.figure(statistics.median(sample.seconds)),
        unit=amount.unit,
        cpu=statistics.median(sample.cpu) if any(sample.cpu) else None,
        busy=statistics.median(sample.busy) if sample.busy else None,
        rss=sample.peak or None,
        samples=[amount.figure(seconds) for seconds in sample.seconds],
    )


def _relate(figure: Figure, baseline: str, value: float) -> None:
    """Compare a figure with a baseline; with the first one for good, with others as well."""
    ratio = value / figure.value if figure.less_is_better else figure.value / value
    if figure.ratio is None:
        figure.baseline, figure.baseline_value, figure.ratio = baseline, value, ratio
    else:
        figure.others[baseline] = ratio
