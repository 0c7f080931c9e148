"""keepfs mount --exec: runs a program in a mount and exits with its status."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from typing import TYPE_CHECKING, Any, Self

import click

from keepfs.messages import of_commands

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import FrameType

_FLAG = "--exec"
#: Key of a context's `meta`: the words behind --exec.
_WORDS = "keepfs.exec"
#: Signals sent on to the program. The terminal sends SIGINT and SIGQUIT to both processes.
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)
_LEFT_TO_PROGRAM = (signal.SIGINT, signal.SIGQUIT)
#: Exit statuses of shells for a program that can't be run, and for one that doesn't exist.
_NOT_EXECUTABLE, _NOT_THERE = 126, 127


class ExecutingCommand(click.Command):
    """A command whose last option is --exec: the words behind it are a program's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Store the program's words in the context, and parse the others."""
        if _FLAG in args:
            at = args.index(_FLAG)
            words = args[at + 1 :]
            if words[:1] == ["--"]:
                del words[0]
            if not words:
                raise click.UsageError(
                    of_commands.USAGE(text=f"{_FLAG} needs a program: {_FLAG} PROGRAM ARGUMENT...")
                )
            ctx.meta[_WORDS] = words
            args = args[: at + 1]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the pieces with --exec as the last."""
        return [*super().collect_usage_pieces(ctx), f"[{_FLAG} PROGRAM ARGUMENT...]"]


def executing_option(command: Any) -> Any:  # noqa: ANN401 - click's own
    """Add the option --exec to a command's help; `words_of` returns the words behind it."""
    return click.option(
        _FLAG,
        is_flag=True,
        expose_value=False,
        help="The last option: run the program behind it in the mount, its working directory;"
        " unmount when it has ended, and exit with its status (128 + number of a signal).",
    )(command)


def words_of(context: click.Context) -> list[str]:
    """Return the program and its arguments; empty without --exec."""
    words: list[str] = context.meta.get(_WORDS, [])
    return words


def run_program(words: Sequence[str], directory: Path) -> int:
    """Run a program to its end. Blocks, in the main thread.

    SIGTERM and SIGHUP are sent on to it.

    Args:
        words: The program, looked for in $PATH unless it has a slash, and its arguments.
        directory: Its working directory.

    Returns:
        Its exit status; 128 and the number of the signal that ended it; 126 or 127, with a
        message, if it can't be run or doesn't exist.
    """
    with _Forwarding() as forwarding:
        try:
            program = subprocess.Popen(words, cwd=directory)  # noqa: S603 - the user's own
        except OSError as error:
            said = of_commands.NO_PROGRAM(program=words[0], reason=error.strerror)
            click.echo(f"Error: {said}", err=True)
            return _NOT_THERE if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
        forwarding.to(program)
        status = program.wait()
    return 128 - status if status < 0 else status


class _Forwarding:
    """Forwards signals to a program; those that arrive before it runs are sent at its start."""

    def __init__(self) -> None:
        self._program: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for number in _FORWARDED:
            self._stack.enter_context(_handled(number, self._forward))
        for number in _LEFT_TO_PROGRAM:
            # A handler, not SIG_IGN, which the program would inherit.
            self._stack.enter_context(_handled(number, lambda *_: None))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def to(self, program: subprocess.Popen[bytes]) -> None:
        """Forward to this program from now on, the earlier signals first."""
        self._program = program
        for number in self._early:
            program.send_signal(number)

    def _forward(self, number: int, _: FrameType | None) -> None:
        if self._program is None:
            self._early.append(number)
        else:
            self._program.send_signal(number)


@contextlib.contextmanager
def _handled(number: signal.Signals, handler: Any) -> Iterator[None]:  # noqa: ANN401 - signal's
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
