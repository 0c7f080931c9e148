"""The command line of the bench."""

from __future__ import annotations

import os
import platform
import signal
import sys
from pathlib import Path

import click

from bench import (
    arvmount,
    disks,
    growth,
    inprocess,
    memory,
    names,
    reading,
    report,
    starting,
    trees,
    writing,
)
from bench.measure import NotMeasuredError
from bench.rig import MUCH_ROOM, ROOM, rig
from bench.services import Kind

#: What there is to measure, in this order.
GROUPS = {
    "services": inprocess.measure_services,
    "inprocess": inprocess.measure,
    "reading": reading.measure,
    "writing": writing.measure,
    "names": names.measure,
    "starting": starting.measure,
    "arv-mount": arvmount.measure,
    "collections": trees.measure,
    "disk": disks.measure,
    "growth": growth.measure,
    "memory": memory.measure,
}
#: What takes long, and is measured only where it is asked for.
_ON_DEMAND = ("collections", "disk", "growth", "memory")


@click.command()
@click.argument("groups", nargs=-1, type=click.Choice(list(GROUPS)))
@click.option(
    "--only", type=click.Choice(list(GROUPS)), multiple=True, help="Another way to name a group."
)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--quick", is_flag=True, help="Tiny amounts, once each: tries the bench itself.")
@click.option(
    "--services", multiple=True, metavar="URL", help="Measure with these Keep services; repeat it."
)
@click.option(
    "--like-keepstore",
    is_flag=True,
    help="Measure with three services in Go that do what keepstores do, with files here.",
)
@click.option(
    "--like-keepstores-elsewhere",
    is_flag=True,
    help="Measure with services that take as long as that, but no processor of this machine.",
)
@click.option(
    "--disk-blocks",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Blocks that the group disk reads: 1024 are 64 GiB, and need three times the room.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/bench"),
    show_default=True,
    help="Where the results go.",
)
def main(
    *,
    groups: tuple[str, ...],
    only: tuple[str, ...],
    repeats: int,
    quick: bool,
    services: tuple[str, ...],
    like_keepstore: bool,
    like_keepstores_elsewhere: bool,
    disk_blocks: int,
    output: Path,
) -> None:
    """Measure keepfs, as ratios to baselines of the same run.

    GROUPS are what is measured, by default all but
    collections, disk, growth and memory. A ratio
    is how many times as fast keepfs is: over 1 is faster than the baseline. A
    target that is missed is no failure; bytes that are wrong are.
    """
    if services and (like_keepstore or like_keepstores_elsewhere):
        raise click.UsageError("--like-... says what our services do, not those given")
    if like_keepstore and like_keepstores_elsewhere:
        raise click.UsageError("--like-keepstore and --like-keepstores-elsewhere: choose one")
    kind = Kind.KEEPSTORE if like_keepstore else Kind.MEMORY
    kind = Kind.ELSEWHERE if like_keepstores_elsewhere else kind
    # As on Ctrl-C: neither a mount nor a server stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    output.mkdir(parents=True, exist_ok=True)
    figures = []
    urls = tuple(url for words in services for url in words.split())
    wanted = (*groups, *only) or tuple(it for it in GROUPS if it not in _ON_DEMAND)
    with rig(
        *(urls, output / "programs", 1 if quick else repeats),
        quick=quick,
        kind=kind,
        room=MUCH_ROOM if {"collections", "disk", "growth"} & set(wanted) else ROOM,
    ) as it:
        it.disk_blocks = disk_blocks
        click.echo(report.heading(it.services.kind))
        for group in wanted:
            try:
                for figure in GROUPS[group](it):
                    figures.append(figure)
                    click.echo(report.line(figure))
            except NotMeasuredError as reason:
                click.echo(f"{group}: not measured: {reason}")
    about = {
        "services": it.services.kind,
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release()},
        "python": platform.python_version(),
        "repeats": 1 if quick else repeats,
        "quick": quick,
    }
    report.write_json(figures, about, output / "bench.json")
    click.echo(f"written: {output / 'bench.json'}")
    if report.write_chart(figures, output / "bench.png"):
        click.echo(f"written: {output / 'bench.png'}")
    else:
        click.echo("no chart: there is no matplotlib")


if __name__ == "__main__":
    main(prog_name="scripts/bench")
