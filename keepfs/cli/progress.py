"""Progress of long commands, on standard error; by default only if it is a terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Protocol

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Key of a context's `meta`: the option, or None.
_WANTED = "keepfs.progress"


class Advance(Protocol):
    """Reports that `amount` more is done."""

    def __call__(self, amount: int = 1) -> None:
        """Report it. For any thread."""


def _note(context: click.Context, _: click.Parameter, wanted: bool | None) -> None:  # noqa: FBT001 - click's
    context.meta[_WANTED] = wanted


def progress_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options --progress and --no-progress to a command."""
    return click.option(
        "--progress/--no-progress",
        default=None,
        expose_value=False,
        callback=_note,
        help="Show progress on standard error.  [default: if it is a terminal]",
    )(command)


def is_wanted() -> bool:
    """Return whether progress is shown."""
    context = click.get_current_context(silent=True)
    wanted = None if context is None else context.meta.get(_WANTED)
    return sys.stderr is not None and (sys.stderr.isatty() if wanted is None else bool(wanted))


def _nothing(amount: int = 1) -> None:
    """Report nothing."""


@contextlib.contextmanager
def shown(what: str, total: int | None = None, *, is_bytes: bool = False) -> Iterator[Advance]:
    """Show the progress of the body while it runs; the display is removed at the end.

    Args:
        what: The work, as text for people.
        total: The amount of all work; None if it isn't known.
        is_bytes: Whether amounts are bytes.

    Yields:
        A function that reports an amount of finished work.
    """
    if not is_wanted():
        yield _nothing
        return
    # Imported here: it takes 60 ms, and most commands run without a terminal.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}")]
    if total is not None:
        columns += [BarColumn(), TaskProgressColumn()]
    if is_bytes:
        columns += [DownloadColumn(binary_units=True), TransferSpeedColumn()]
    elif total is not None:
        columns.append(MofNCompleteColumn())
    columns.append(TimeElapsedColumn() if total is None else TimeRemainingColumn())
    console = Console(stderr=True, force_terminal=True)
    with Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=sys.stderr.isatty(),
    ) as display:
        task = display.add_task(what, total=total)

        def advance(amount: int = 1) -> None:
            display.advance(task, amount)

        yield advance


def counted(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
    """Yield items, and show how many were yielded."""
    with shown(what, total) as advance:
        for each in items:
            yield each
            advance()
