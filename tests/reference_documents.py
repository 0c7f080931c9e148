"""The generated parts of the reference pages in docs/; scripts/reference runs it."""

from __future__ import annotations

import errno
import inspect
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keepfs.cli import keepfs
from keepfs.config.options import CONFIG_KEYS
from keepfs.fs.errnos import ERRNO_BY_CAUSE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOCS = Path(__file__).parent.parent / "docs"
#: What is between these lines is generated.
_BEGIN, _END = "<!-- generated -->", "<!-- end of what is generated -->"


def commands() -> str:
    """Return a section for each command: usage, help and options."""
    context = click.Context(keepfs, info_name="keepfs", max_content_width=100)
    return "\n\n".join(_sections(keepfs, context))


def variables() -> str:
    """Return a table of the options of `keepfs mount`, their variables and keys."""
    context = click.Context(keepfs, info_name="keepfs")
    mount = keepfs.get_command(context, "mount")
    assert mount is not None
    rows = []
    for option in mount.params:
        key = option.opts[-1].lstrip("-")
        if key in CONFIG_KEYS:
            variable = "KEEPFS_" + key.upper().replace("-", "_")
            rows.append(f"| `--{key}` | `{variable}` | `{key}` |")
    assert len(rows) == len(CONFIG_KEYS)
    return "\n".join(("| Option | Variable | Key |", "|---|---|---|", *rows))


def errnos() -> str:
    """Return a table of the causes of a failed request and their errnos."""
    rows = [
        f"| {cause.value} | {errno.errorcode[number]} | {os.strerror(number)} |"
        for cause, number in ERRNO_BY_CAUSE.items()
    ]
    return "\n".join(("| Failure | errno | As programs print it |", "|---|---|---|", *rows))


#: Page: what makes its generated part.
PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands,
    "errnos.md": errnos,
    "variables.md": variables,
}


def page(name: str) -> str:
    """Return a page of `PAGES` with its present generated part."""
    before, _, rest = (DOCS / name).read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{PAGES[name]()}\n\n{_END}{after}"


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    if context.parent is not None:
        usage = " ".join((context.command_path, *command.collect_usage_pieces(context)))
        yield f"## {context.command_path}\n\n    {usage}"
        yield _markdown(command.help or "")
        options = [each for each in command.params if isinstance(each, click.Option)]
        records = [each.get_help_record(context) for each in options]
        rows = [_row(*each) for each in records if each is not None]
        if rows:
            yield "\n".join(("| Option | |", "|---|---|", *rows))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _sections(
                inner, click.Context(inner, info_name=name, parent=context, max_content_width=100)
            )


def _row(names: str, text: str) -> str:
    cells = (f"`{names}`", _escaped(" ".join(text.split())))
    return "| {} | {} |".format(*(cell.replace("|", "\\|") for cell in cells))


def _markdown(text: str) -> str:
    """Convert click's help: a paragraph that begins with a backspace keeps its lines."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b"):
            paragraphs.append("\n".join(f"    {line}" for line in paragraph.splitlines()[1:]))
        else:
            paragraphs.append(_escaped(" ".join(paragraph.split())))
    return "\n\n".join(paragraphs)


def _escaped(text: str) -> str:
    return re.sub(r"([<>*])", r"\\\1", text)


if __name__ == "__main__":
    for each in PAGES:
        (DOCS / each).write_text(page(each))
