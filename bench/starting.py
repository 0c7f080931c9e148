"""Starting: until a mount is ready, and the command line alone."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import TYPE_CHECKING

from bench.measure import Amount, Target, compare, timed
from bench.mounting import command, environment, new_base

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.measure import Figure
    from bench.rig import Rig


def measure(rig: Rig) -> Iterator[Figure]:
    """Measure `keepfs mount` until it returns, and `keepfs --version`."""
    python = {"python -c pass": lambda: _run("-c", "pass")}
    amount = Amount(0, "s")
    yield _with_usage(
        lambda: compare(
            "start: keepfs mount until ready",
            amount,
            lambda: _mount(rig),
            python,
            repeats=rig.repeats,
            target=Target(0.7, "value"),
        )
    )
    yield _with_usage(
        lambda: compare(
            "start: keepfs --version",
            amount,
            lambda: _run("-m", "keepfs", "--version"),
            python,
            repeats=rig.repeats,
            target=Target(0.15, "value"),
        )
    )


def _with_usage(work):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    figure = work()
    return figure


def _run(*words: str) -> float:
    return timed(
        lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)
    )


def _mount(rig: Rig) -> float:
    base = new_base(rig)
    env = environment(rig, base)
    seconds = timed(lambda: subprocess.run(command(base), check=True, env=env))
    subprocess.run(
        [sys.executable, "-m", "keepfs", "unmount", str(base / "mnt")], check=True, env=env
    )
    return seconds
