"""Measuring: subject and baselines in turn, medians, processor time and peak memory."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

_TICKS = os.sysconf("SC_CLK_TCK")


class VerifyError(Exception):
    """What was read isn't what was stored, or wasn't fetched where it should have been."""


class Trial(Protocol):
    """One run of what is measured; prepares and verifies outside the time it returns."""

    def __call__(self) -> float:
        """Run, and return the seconds of the timed part."""


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
        rss: Its peak resident memory in MiB, over all trials.
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
    rss: float | None = None
    samples: list[float] = field(default_factory=list)
    others: dict[str, float] = field(default_factory=dict)
    verified: bool = True

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


def compare(
    name: str,
    amount: Amount,
    subject: Trial,
    baselines: dict[str, Trial],
    *,
    repeats: int,
    pid: int | None = None,
    target: Target | None = None,
) -> Figure:
    """Measure a subject and its baselines in turn.

    Args:
        name: The figure's.
        amount: What one trial does.
        subject: What is measured.
        baselines: What it is compared with; the first is the target's.
        repeats: Of each; one more of the subject and each baseline goes before, uncounted.
        pid: The process whose processor time and memory are meant.
        target: What to reach.
    """
    meter = Meter(pid) if pid is not None else None
    trials = {"": subject, **baselines}
    seconds: dict[str, list[float]] = {key: [] for key in trials}
    cpu: list[float] = []
    peak = 0.0
    for round_ in range(repeats + (repeats > 1)):
        for key, trial in trials.items():
            measured = meter if key == "" else None
            if measured:
                measured.restart()
                before = measured.cpu()
            took = trial()
            if measured:
                cpu.append(measured.cpu() - before)
                peak = max(peak, measured.peak())
            if round_ or repeats == 1:
                seconds[key].append(took)
    values = {key: amount.figure(statistics.median(taken)) for key, taken in seconds.items()}
    figure = Figure(
        name=name,
        value=values[""],
        unit=amount.unit,
        target=target,
        cpu=statistics.median(cpu) if cpu else None,
        rss=peak or None,
        samples=[amount.figure(taken) for taken in seconds[""]],
    )
    for key in baselines:
        ratio = values[""] / values[key]
        if figure.less_is_better:
            ratio = 1 / ratio
        if figure.ratio is None:
            figure.baseline, figure.baseline_value, figure.ratio = key, values[key], ratio
        else:
            figure.others[key] = ratio
    return figure
