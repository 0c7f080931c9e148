"""Faults of every kind at services, mount and machine, while files are written and read.

Three keepstores, a keepproxy and an API server with faults that come and go
(`chaos_plan`, `chaos_faults`); writers and readers that know what they must see
(`chaos_writer`, `chaos_readers`); a mount that is ended in every way and made
again (`chaos_mount`, `chaos_run`). The checks are in `chaos_findings`,
`chaos_ledger` and `chaos_verify`; docs/reliability.md lists them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tests.mounted.mounts import KeepfsMount
from tests.soak.chaos_findings import Findings, summary, table
from tests.soak.chaos_mount import REQUEST_TIMEOUT, SLACK
from tests.soak.chaos_run import Chaos, Scale

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of the time that was asked for, and seconds beyond: then the soak has hung.
_PATIENCE, _MOST_AFTER = 1.5, 600.0


def soak(base: Path, minutes: float, seed: int, scale: Scale | None = None) -> Findings:
    """Run, and return what was found."""
    findings = Findings(seed, REQUEST_TIMEOUT + SLACK)
    with _ended_after(60 * minutes * _PATIENCE + _MOST_AFTER, base, findings):
        Chaos(base, findings, scale or Scale()).run(minutes)
    return findings


@contextlib.contextmanager
def _ended_after(seconds: float, base: Path, findings: Findings) -> Iterator[None]:
    """End the process if the soak doesn't end by itself; its servers and agents end with it."""

    def give_up() -> None:
        findings.report("the soak hung", "the soak", f"its end within {seconds:.0f} s", "none")
        click.echo(f"{table(findings)}\n{summary(findings)}")
        KeepfsMount(base / "keep").clean_up()
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@click.command()
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True)
@click.option("--seed", type=int, help="Of the schedule; drawn and printed if it isn't given.")
@click.option(
    "--without",
    multiple=True,
    metavar="WORD",
    help="Leave out faults and ends of the mount with this in their names, or 'odd times'.",
)
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False), help="Leave log and state there."
)
def main(minutes: float, seed: int | None, without: tuple[str, ...], keep: Path | None) -> None:
    """Run as a script: exits with 1 if anything was found."""
    if seed is None:
        seed = random.SystemRandom().getrandbits(32)
    click.echo(f"seed {seed}")

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt  # so that everything is ended

    signal.signal(signal.SIGTERM, stop)
    with contextlib.ExitStack() as exits:
        if keep is None:
            base = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        else:
            keep.mkdir(parents=True, exist_ok=True)
            if any(keep.iterdir()):
                raise click.UsageError(f"{keep} is not empty: name a new directory for --keep")
            base = keep.resolve()
        findings = soak(base, minutes, seed, Scale(without=without))
    click.echo(table(findings))
    if findings.found:
        click.echo(f"\n{len(findings.found)} findings with seed {seed}, the first of each kind:")
        click.echo(summary(findings))
    sys.exit(1 if findings.found else 0)


if __name__ == "__main__":
    main()
