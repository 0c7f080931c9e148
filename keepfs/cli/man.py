"""keepfs man: man pages of keepfs and its commands, made from their help."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keepfs import __version__
from keepfs.cli import clients, keepfs, reporting, values
from keepfs.messages import of_commands

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command("man")
@click.argument("words", metavar="[COMMAND]...", nargs=-1)
@click.option(
    "--output",
    type=values.FilledPath(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write all pages into DIR, such as ~/.local/share/man/man1.",
)
def man_command(words: tuple[str, ...], output: Path | None) -> None:
    """Show the man page of COMMAND, or of keepfs.

    On a terminal man(1) shows it; else it is printed in the language of man(7).
    The pages have the text of the help. The Debian package and a recent pipx
    install them for man(1); `uv tool install` does not.
    """
    if output is not None:
        if words:
            raise click.UsageError(
                of_commands.OPTIONS_CONFLICT(text="--output writes all pages; give no COMMAND")
            )
        with reporting.in_one_line():
            for path in write(output):
                clients.print_line(str(path))
        return
    text = dict(pages()).get("-".join(("keepfs", *words)) + ".1")
    if text is None:
        raise click.UsageError(
            of_commands.USAGE(text=f"there is no command {' '.join(words)}; see keepfs --help")
        )
    if not _is_shown(text):
        clients.print_line(text.rstrip("\n"))


def _is_shown(text: str) -> bool:
    """Show a page on the terminal; return False if it isn't one, or there is no man(1)."""
    viewer = shutil.which("man") if sys.stdout.isatty() else None
    if viewer is None:
        return False
    return not subprocess.run([viewer, "-l", "-"], input=text.encode(), check=False).returncode  # noqa: S603 - our own page


def pages() -> Iterator[tuple[str, str]]:
    """Yield (file name, text) of each man page, in the language of man(7)."""
    yield from _pages_of(keepfs, click.Context(keepfs, info_name="keepfs"))


def write(directory: Path) -> list[Path]:
    """Write the man pages into a directory, created if missing; return their paths.

    Raises:
        OSError: They can't be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages():
        (directory / name).write_text(text, encoding="utf-8")
        written.append(directory / name)
    return written


def _pages_of(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    name = context.command_path.replace(" ", "-")
    yield f"{name}.1", "\n".join(_lines(command, context, name)) + "\n"
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            if below is not None and not below.hidden:
                inner = click.Context(below, parent=context, info_name=each)
                yield from _pages_of(below, inner)


def _lines(command: click.Command, context: click.Context, name: str) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield f'.TH "{name.upper()}" "1" "" "keepfs {__version__}" "keepfs"'
    yield ".SH NAME"
    yield f"{_escaped(name)} \\- {_escaped(command.get_short_help_str(200).rstrip('.'))}"
    yield ".SH SYNOPSIS"
    yield f"\\fB{_escaped(context.command_path)}\\fR {_escaped(usage)}"
    yield ".SH DESCRIPTION"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield ".PP"
        if paragraph.startswith("\b"):
            yield from (".nf", _escaped(paragraph.lstrip("\b\n")), ".fi")
        else:
            yield _escaped(paragraph)
    yield ".SH OPTIONS"
    records = [each.get_help_record(context) for each in command.params]
    for names, text in (*filter(None, records), ("-h, --help", "Show the help.")):
        yield from (".TP", f"\\fB{_escaped(names)}\\fR", _escaped(text))
    if isinstance(command, click.Group):
        yield ".SH COMMANDS"
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            if below is not None:
                yield ".TP"
                yield f"\\fB{_escaped(name)}\\-{_escaped(each)}\\fR(1)"
                yield _escaped(below.get_short_help_str(200))
    yield ".SH EXIT STATUS"
    yield "0: success. 1: failure. 2: usage. 3: keepfs check could not tell. 130: interrupted."
    yield ".SH SEE ALSO"
    yield "\\fBkeepfs\\fR(1); keepfs explain ID explains a message."


def _escaped(text: str) -> str:
    r"""Return a text for man(7): `\`, `-`, and `.` or `'` at the beginning of a line."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(
        f"\\&{line}" if line.startswith((".", "'")) else line for line in text.split("\n")
    )


if __name__ == "__main__":
    for _path in write(Path(sys.argv[1])):
        click.echo(_path)
