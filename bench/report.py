"""The table, the JSON and the chart."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bench.measure import Figure

_WIDE = "{:<48} {:>11} {:<5} {:>6} {:<16} {:>8} {:>7} {:>5} {:>8}  {:<7} {}"


def heading(services: str) -> str:
    """Return the table's first lines: which services are measured with, and its columns."""
    columns = _WIDE.format(
        *("name", "value", "unit", "ratio", "to", "target", "CPU s", "busy", "RSS MiB"),
        *("", "further ratios"),
    )
    return f"measured with services: {services}\n{columns}"


def line(figure: Figure) -> str:
    """Return a figure as a line of the table."""
    target = ""
    if figure.target is not None:
        bound = figure.target.bound
        if figure.target.of == "ratio":
            target = f"≥{bound:g}x"
        else:
            target = f"{'≤' if figure.less_is_better else '≥'}{bound:g}"
    return _WIDE.format(
        figure.name,
        number(figure.value),
        figure.unit,
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        figure.baseline,
        target,
        "" if figure.cpu is None else f"{figure.cpu:.2f}",
        "" if figure.busy is None else f"{figure.busy:.0%}",
        "" if figure.rss is None else f"{figure.rss:.0f}",
        {None: "", True: "met", False: "MISSED"}[figure.met],
        ", ".join(f"{ratio:.2f} {name}" for name, ratio in figure.others.items()),
    ).rstrip()


def number(value: float) -> str:
    """Write a number with three digits that count."""
    if value >= 100:  # noqa: PLR2004 - three digits
        return f"{value:,.0f}"
    return f"{value:.3g}"


def write_json(figures: Iterable[Figure], about: dict[str, object], path: Path) -> None:
    """Write everything that was measured."""
    rows = [{**dataclasses.asdict(figure), "met": figure.met} for figure in figures]
    path.write_text(json.dumps({**about, "figures": rows}, indent=2) + "\n")


def write_chart(figures: Iterable[Figure], path: Path) -> bool:
    """Draw the ratios, with their targets; tell whether there is matplotlib to do it."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib as mpl  # noqa: PLC0415 - only a bench has it

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - ditto

    rows = [(it, it.ratio) for it in figures if it.ratio is not None][::-1]
    drawing, axes = plt.subplots(figsize=(11, 1 + 0.32 * len(rows)), layout="constrained")
    colours = {None: "#8899aa", True: "#2a9d5c", False: "#cc4444"}
    axes.barh(
        [f"{it.name}  /  {it.baseline}" for it, _ in rows],
        [ratio for _, ratio in rows],
        color=[colours[it.met] for it, _ in rows],
    )
    for at, (it, _) in enumerate(rows):
        if it.target is not None and it.target.of == "ratio":
            axes.plot([it.target.bound] * 2, [at - 0.45, at + 0.45], color="black")
    axes.set_xscale("log")
    axes.axvline(1, color="#cccccc", zorder=0)
    axes.set_xlabel("speed over the baseline's, measured in the same run; black: the target")
    drawing.savefig(path, dpi=120)
    plt.close(drawing)
    return True
