"""Parts of the commands on blocks: a client, concurrent calls, output, counted failures."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import errno
import json
import os
import signal
import stat
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, BinaryIO, NoReturn, TypeVar

import click

from keepfs.cli import reporting, waiting
from keepfs.collections.names import is_hash, is_uuid
from keepfs.keep.errors import Cause
from keepfs.keep.locator import KeepLocator, parse_list
from keepfs.messages import of_commands, of_stores
from keepfs.part_files import part_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from keepfs.config.options import StoreOptions
    from keepfs.keep.client import KeepClient
    from keepfs.keep.errors import KeepRequestError

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Where the files of a collection are.
_FILES_OF = "whose files are in collections/{name} of a mount"
#: Concurrent requests for blocks. Guessed.
_AT_ONCE = 8

#: For renameat2(2): names are relative to the working directory; replace no file.
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1

zero_option = click.option(
    "-0",
    "--null",
    "null",
    is_flag=True,
    help="End each line of output with a NUL byte instead of a newline.",
)


json_option = click.option(
    "--json", "is_json", is_flag=True, help="Print a JSON object on each line (docs/json.md)."
)


@contextlib.contextmanager
def command_client(store: StoreOptions, patience: float = 0.0) -> Iterator[KeepClient]:
    """Open a client for one command.

    Failures become one-line messages. SIGTERM and SIGHUP raise, so that the command cleans up.

    Args:
        store: The options of the store.
        patience: Seconds that a fetch waits for the disk cache; else its block is not kept there.
    """
    # Here, not above: `locate` and others use this module and need no client.
    from keepfs import stores  # noqa: PLC0415

    with (
        reporting.in_one_line(),
        ended_by_signals(),
        stores.open_client(store, patience=patience) as client,
        waiting.announced(store, client.is_waiting),
    ):
        yield client


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise SystemExit on SIGTERM and SIGHUP, so that no partial output is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {it: signal.signal(it, leave) for it in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Failures:
    """Counts the failed items of a list, while the command processes the others."""

    def __init__(self) -> None:
        self._count = 0

    @property
    def count(self) -> int:
        """The failures so far."""
        return self._count

    def note(self, message: str = "") -> None:
        """Count a failure, and print the message unless it is empty."""
        self._count += 1
        if message:
            click.ClickException(message).show()

    @contextlib.contextmanager
    def noted(self, name: str = "") -> Iterator[None]:
        """Note an expected failure and continue.

        Args:
            name: The file that the body is about: the message begins with it.
        """
        try:
            with reporting.in_one_line(name):
                yield
        except click.ClickException as error:
            self.note(error.message)

    def exit(self) -> None:
        """Exit with 1 if an item failed."""
        if self._count:
            raise SystemExit(1)


def flaw_of(text: str, error: ValueError) -> str:
    """Return why a text is no locator; of the uuid of a collection, where its files are."""
    if is_uuid(text):
        return f"{error}; it is the uuid of a collection, {_FILES_OF.format(name=text)}"
    return str(error)


def failure_of(locator: KeepLocator, error: KeepRequestError) -> str:
    """Return the text of a failed request for a block.

    An unsigned locator may be the portable data hash of a collection, which looks the same: then
    the text says where the files of that are.
    """
    name = str(locator)
    if error.cause not in {Cause.NOT_FOUND, Cause.DENIED} or not is_hash(name):
        return reporting.text_of(error)
    files = _FILES_OF.format(name=name)
    hint = f"perhaps it is the portable data hash of a collection, {files}"
    return of_stores.BY_CAUSE[error.cause.name](text=f"{error}; {hint}")


def locators_in(texts: Iterable[str], failed: Failures) -> list[KeepLocator]:
    """Parse texts of locators joined by commas; note and leave out invalid texts.

    Raises:
        click.UsageError: None of the texts is valid.
    """
    found: list[KeepLocator] = []
    wrong: list[str] = []
    for text in texts:
        try:
            found += parse_list(text)
        except ValueError as error:
            wrong.append(flaw_of(text, error))
    if not found:
        raise click.UsageError(of_commands.BAD_LOCATOR(text="; ".join(wrong)))
    for each in wrong:
        failed.note(of_commands.BAD_LOCATOR(text=each))
    return found


def side_by_side(function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[tuple[_T, _R]]:
    """Call a function for the items concurrently; yield the results in the order of the items.

    An exception of the function ends the iteration, and calls that have not begun are dropped.
    """
    pool = concurrent.futures.ThreadPoolExecutor(_AT_ONCE)
    ahead: deque[tuple[_T, concurrent.futures.Future[_R]]] = deque()
    try:
        for item in items:
            ahead.append((item, pool.submit(function, item)))
            if len(ahead) > 2 * _AT_ONCE:
                done, future = ahead.popleft()
                yield done, future.result()
        while ahead:
            done, future = ahead.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def print_line(text: str, *, null: bool = False) -> None:
    """Print a line; names in it may be undecodable bytes.

    Raises:
        click.ClickException: The line can't be written.
    """
    with writing():
        sys.stdout.buffer.write(os.fsencode(text) + (b"\0" if null else b"\n"))
        sys.stdout.buffer.flush()


def print_json(found: Mapping[str, object], *, null: bool = False) -> None:
    """Print an object as JSON on a line; undecodable bytes of names are lone surrogates.

    Raises:
        click.ClickException: The line can't be written.
    """
    print_line(json.dumps(found), null=null)


def check_name(name: str, *, null: bool) -> None:
    """Check that a file name is usable and fits on one line of output.

    Raises:
        click.ClickException: The name is empty, or has a newline without `null`.
    """
    if not name:
        raise click.ClickException(of_commands.BAD_NAME(text="a file name is empty; give a path"))
    if "\n" in name and not null:
        raise click.ClickException(
            of_commands.BAD_NAME(text=f"the file name {name!r} has a newline; use -0")
        )


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Add "standard output" to write errors. A closed pipe stays BrokenPipeError.

    Raises:
        click.ClickException: Standard output can't be written.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(
            of_commands.OUTPUT_FAILED(output="standard output", reason=error.strerror)
        ) from error


@contextlib.contextmanager
def written_whole(output: Path, *, is_new: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when it is complete.

    Until then it is a part file (`part_files`). A killed process leaves at most that. A device or
    pipe is written directly.

    Args:
        output: The name. A regular file of that name is replaced at the end.
        is_new: Refuse a name that exists, also one made meanwhile by another process.

    Raises:
        click.ClickException: The file can't be written.
    """
    target = output.resolve()
    part = part_path(target)
    try:
        if is_new and os.path.lexists(output):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if target.exists() and not target.is_file():
            with target.open("wb") as file:
                yield file
            return
        try:
            with part.open("xb") as file:
                yield file
            if is_new:
                _rename_to_new(part, target)
            else:
                if target.exists():
                    part.chmod(stat.S_IMODE(target.stat().st_mode))
                part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except BrokenPipeError:
        raise
    except OSError as error:  # the message has the requested name, not that of the part
        raise click.ClickException(
            of_commands.OUTPUT_FAILED(output=output, reason=error.strerror)
        ) from error


def _rename_to_new(part: Path, target: Path) -> None:
    """Rename a file to a name that doesn't exist.

    Raises:
        FileExistsError: The name exists.
        OSError: The file can't be renamed.
    """
    try:
        target.hardlink_to(part)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, such as FAT or a mount of keepfs
        names = os.fsencode(part), os.fsencode(target)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number)) from None
    else:
        part.unlink()
