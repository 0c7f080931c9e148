"""Starting: until a mount is ready, and the command line alone."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import Amount, Meter, Target, compare
from bench.mounting import command, environment, new_base

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.measure import Figure
    from bench.rig import Rig

_SECONDS = Amount(0, "s")


@dataclass
class Usage:
    """What processes took, of several trials: seconds, and MiB at most."""

    cpu: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)

    def add_to(self, figure: Figure) -> Figure:
        """Set it beside a figure."""
        figure.cpu = statistics.median(self.cpu)
        figure.rss = max(self.rss)
        return figure


def measure(rig: Rig) -> Iterator[Figure]:
    """Measure `keepfs mount` until it returns, and `keepfs --version`."""
    mounting, version = Usage(), Usage()
    python = {"python -c pass": lambda: _run(Usage(), "-c", "pass")}
    figure = compare(
        "start: keepfs mount until ready",
        _SECONDS,
        lambda: _mount(rig, mounting),
        python,
        repeats=rig.repeats,
        target=Target(0.7, "value"),
    )
    yield mounting.add_to(figure)
    figure = compare(
        "start: keepfs --version",
        _SECONDS,
        lambda: _run(version, "-m", "keepfs", "--version"),
        python,
        repeats=rig.repeats,
        target=Target(0.15, "value"),
    )
    version.rss.append(_peak_of("keepfs", "--version"))
    yield version.add_to(figure)


def _run(usage: Usage, *words: str) -> float:
    """Run Python to its end; return the seconds."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{words} ended with {process.returncode}")
    usage.cpu.append(used.ru_utime + used.ru_stime)
    return seconds


#: Runs a module, then says the peak of its own memory. (The peak that a parent is
#: told of a child includes the parent's own, from before the child's exec.)
_TELL_PEAK = """
import runpy, sys
module = sys.argv.pop(1)
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    with open("/proc/self/status") as status:
        print([line.split()[1] for line in status if line.startswith("VmHWM:")][0])
"""


def _peak_of(*words: str) -> float:
    """Run a module of Python to its end; return the most resident memory it had, in MiB."""
    command = [sys.executable, "-c", _TELL_PEAK, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return int(done.stdout.split()[-1]) / 1024


def _mount(rig: Rig, usage: Usage) -> float:
    """Mount in the background, and unmount; return the seconds until it was ready."""
    base = new_base(rig)
    env = environment(rig, base)
    begin = time.perf_counter()
    subprocess.run(command(base), check=True, env=env)
    seconds = time.perf_counter() - begin
    meter = Meter(_server_of(base / "mnt"))
    usage.cpu.append(meter.cpu())
    usage.rss.append(meter.peak())
    subprocess.run(
        [sys.executable, "-m", "keepfs", "unmount", str(base / "mnt")], check=True, env=env
    )
    return seconds


def _server_of(mountpoint: Path) -> int:
    """Return the number of the process that serves a mount."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[-2:-1] == [bytes(mountpoint)]:
            return int(process.name)
    raise LookupError(f"no process serves {mountpoint}")
