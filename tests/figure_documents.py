"""The generated parts of docs/metrics.md and docs/status.md; scripts/document-figures runs it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

from keepfs.cli.status import MountStatus
from keepfs.mount import figures
from keepfs.mount.metrics import table

DOCS = Path(__file__).parent.parent / "docs"
#: What is between these lines is generated.
_BEGIN, _END = "<!-- generated -->", "<!-- end of what is generated -->"


def metrics_page(text: str) -> str:
    """Return docs/metrics.md with the present table."""
    return _replaced(text, table())


def status_page(text: str) -> str:
    """Return docs/status.md with the present fields."""
    kinds: list[type] = [
        kind
        for _, kind in inspect.getmembers(figures, inspect.isclass)
        if dataclasses.is_dataclass(kind) and kind.__module__ == figures.__name__
    ]
    kinds.sort(key=lambda kind: (kind is not figures.MountFigures, kind.__name__))
    return _replaced(text, "\n\n".join(map(_fields, [MountStatus, *kinds])))


def _fields(kind: type) -> str:
    """Return the fields of a class as a table, from the `Attributes` of its docstring."""
    doc = inspect.cleandoc(kind.__doc__ or "")
    first = doc.splitlines()[0]
    texts = dict(
        re.findall(
            r"^    (\w+): (.*(?:\n {8}.*)*)", doc.partition("Attributes:\n")[2], re.MULTILINE
        )
    )
    rows = [
        f"| `{each.name}` | {' '.join(texts[each.name].split())} |"
        for each in dataclasses.fields(kind)
    ]
    return "\n".join((f"### {kind.__name__}", "", first, "", "| Field | |", "|---|---|", *rows))


def _replaced(text: str, new: str) -> str:
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{new}\n\n{_END}{after}"


if __name__ == "__main__":
    for page, made in (("metrics.md", metrics_page), ("status.md", status_page)):
        path = DOCS / page
        path.write_text(made(path.read_text()))
