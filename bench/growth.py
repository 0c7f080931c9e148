"""Cost as work grows: per block, per name and per reader it should stay what it is.

Each step's rate is compared with that of the smallest, measured in turn with it:
a ratio of 1 is linear, more is better. Memory is flat if it doesn't grow with
blocks and readers; names are kept, and take some.
"""

from __future__ import annotations

import functools
import itertools
import os
from typing import TYPE_CHECKING

from bench.measure import (
    Amount,
    Meter,
    Sample,
    Target,
    VerifyError,
    figure_of,
    prepare_memory,
    timed,
)
from bench.mounting import mounted
from bench.names import fill, stat_all
from bench.reading import Reader
from bench.services import md5

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.measure import Figure, Taken, Trial
    from bench.mounting import Mount
    from bench.rig import Rig

_BLOCKS = (1, 4, 16, 64)
_NAMES = (10, 1_000, 100_000)
_READERS = (1, 4, 16, 64)
#: Rounds of what takes minutes.
_MOST_ROUNDS = 3
#: Of the smallest step's rate: linear, and some noise.
_LINEAR = Target(0.67)


def measure(rig: Rig) -> Iterator[Figure]:
    """Measure growing work of each kind."""
    blocks = (1, 2) if rig.quick else _BLOCKS
    names = (10, 20) if rig.quick else _NAMES
    readers = (1, 2) if rig.quick else _READERS
    spare = 4 * rig.block
    with mounted(rig, "--cache-size", str(spare)) as mount:
        reader = Reader(rig, mount)
        in_mb = Amount(rig.block / 1e6, "MB/s")
        yield from _grown(
            rig,
            "cold, blocks in turn: {}",
            in_mb,
            {n: functools.partial(_in_turn, reader, n) for n in blocks},
            mount.pid,
        )
        for count, figure in zip(
            readers,
            _grown(
                rig,
                "cold, readers of a block each: {}",
                in_mb,
                {n: functools.partial(_at_once, reader, n) for n in readers},
                mount.pid,
            ),
            strict=True,
        ):
            if count in reader.gets:
                figure.others["GETs of each block"] = reader.gets[count]
            yield figure
    yield from _names(rig, names)


def _in_turn(reader: Reader, count: int) -> Taken:
    return reader.cold(reader.fresh.take(count))


def _at_once(reader: Reader, count: int) -> Taken:
    return reader.cold_by_many(reader.fresh.take(count))


def _names(rig: Rig, steps: tuple[int, ...]) -> Iterator[Figure]:
    # A mount each, so that each has the memory of its names alone.
    made: list[Figure] = []
    listed: list[Figure] = []
    known: list[Figure] = []
    for count in steps:
        with mounted(rig) as mount:
            for figures, what, trial in (
                (made, "making names: {:,}", _making(mount)),
                (listed, "listing names: {:,}", _list),
                (known, "stat of known names: {:,}", _stat),
            ):
                one = functools.partial(trial, mount.upload / "many-0", count)
                (figure,) = _grown(rig, what, Amount(1, "/s"), {count: one}, mount.pid, rounds=1)
                figures.append(figure)
    for figures in (made, listed, known):
        for figure in figures:
            _relate(figure, figures[0])
            yield figure


def _making(mount: Mount) -> Callable[[Path, int], float]:
    numbers = itertools.count()

    def make(_: Path, count: int) -> float:
        return timed(lambda: fill(mount.upload / f"many-{next(numbers)}", count))

    return make


def _list(directory: Path, count: int) -> float:
    found: list[str] = []
    seconds = timed(lambda: found.extend(os.listdir(directory)))  # noqa: PTH208 - bare names
    if len(set(found)) != count:
        raise VerifyError(f"{len(found)} names instead of {count}")
    return seconds


def _stat(directory: Path, count: int) -> float:
    paths = [str(directory / md5(str(number).encode())) for number in range(count)]
    stat_all(paths, 1)
    return stat_all(paths, 1)


def _grown(
    rig: Rig,
    what: str,
    one: Amount,
    steps: dict[int, Trial],
    pid: int,
    rounds: int = _MOST_ROUNDS,
) -> Iterator[Figure]:
    """Measure the steps in turn; `one` is what a step has per unit of its number."""
    meter, samples = Meter(pid), {count: Sample() for count in steps}
    for _ in range(min(rounds, rig.repeats)):
        for count, trial in steps.items():
            prepare_memory(4 * rig.block)
            samples[count].add(trial, meter)
    first: Figure | None = None
    for count, sample in samples.items():
        amount = Amount(one.count * count, one.unit)
        figure = figure_of(f"growth: {what.format(count)}", amount, sample)
        first = first or figure
        _relate(figure, first)
        yield figure


def _relate(figure: Figure, first: Figure) -> None:
    if figure is not first:
        figure.baseline = "the smallest"
        figure.baseline_value = first.value
        figure.ratio = figure.value / first.value
        figure.target = _LINEAR
