"""keepfs unsaved: files that couldn't be stored; to list, retry, export or drop."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keepfs import stores
from keepfs.cli import clients, reporting, settings
from keepfs.cli.settings import config_file, setting, store_settings
from keepfs.fs.upload import failed_journal, unsaved
from keepfs.mount import mountpoint, runtime

if TYPE_CHECKING:
    from keepfs.config.options import StoreOptions
    from keepfs.fs.upload.unsaved import UnsavedFile


@click.group("unsaved", invoke_without_command=True)
@click.pass_context
def unsaved_command(context: click.Context) -> None:
    """Files in upload/ that couldn't be stored.

    While the mount runs it tries them again and again, and they are in
    upload/, with the reason in user.keep.error. When it ends they are put
    aside in its state directory; the next mount takes them up.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


_mountpoint = click.argument(
    "path", metavar="MOUNTPOINT", type=settings.FilledPath(path_type=Path)
)
_state_dir = setting(
    "--state-dir",
    type=settings.FilledPath(path_type=Path, file_okay=False),
    help="As given to mount.",
)


@unsaved_command.command("list")
@_mountpoint
@config_file
@_state_dir
@clients.zero_option
def list_command(path: Path, state_dir: Path | None, *, null: bool) -> None:
    """Show what isn't stored: its name here, size, path in upload/, and why."""
    directory = state_dir_of(path, state_dir)
    with reporting.in_one_line():
        spilled, flaws = unsaved.find_all(directory)
        running = runtime.find(mountpoint.resolve(path)) is not None
    if not running and not directory.exists():
        raise click.ClickException(
            f"{path} isn't mounted, and has no state directory {directory}: if it was mounted"
            " with --state-dir, give that"
        )
    if running:  # it has restored what was spilled
        for about in failed_journal.read(directory):
            why = about.error or "waits for its turn"
            clients.print_line(f"-\t{about.size}\t{about.path}\t{why}", null=null)
    else:
        for file in spilled:
            about = file.about
            clients.print_line(
                f"{file.name}\t{about.size}\t{about.path}\t{about.error}", null=null
            )
    if flaws:
        raise click.ClickException("\n".join(flaws))


@unsaved_command.command("retry")
@_mountpoint
def retry_command(path: Path) -> None:
    """Have the running mount try everything at once, not when it is its turn."""
    with reporting.in_one_line():
        running = runtime.find(mountpoint.resolve(path))
        if running is None:
            raise click.ClickException(
                f"{path} isn't mounted; mount it: what was put aside is tried at once"
            )
        os.kill(running.pid, signal.SIGUSR1)


@unsaved_command.command("export")
@_mountpoint
@click.argument("name")
@click.argument("output", type=settings.FilledPath(path_type=Path, dir_okay=False))
@_state_dir
@store_settings
def export_command(
    path: Path, name: str, output: Path, state_dir: Path | None, store: StoreOptions
) -> None:
    """Write the file that `list` calls NAME to OUTPUT, which must not exist.

    It has that name only when it is whole, and on the disk.
    """
    file = _named(path, state_dir, name)
    with reporting.in_one_line(), clients.ended_by_signals():
        pieces = file.pieces()
        with clients.written_whole(output, is_new=True) as written:
            for piece in pieces:
                begin = written.tell()
                if piece.receipt is not None:
                    with stores.open_client(store) as client:
                        written.write(client.get_block(piece.receipt.locator)[: piece.length])
                elif piece.staged is not None:
                    written.write(piece.staged)
                written.truncate(begin + piece.length)
                written.seek(begin + piece.length)
            written.flush()
            os.utime(written.fileno(), ns=(file.about.atime_ns, file.about.mtime_ns))
            os.fsync(written.fileno())


@unsaved_command.command("drop")
@_mountpoint
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@config_file
@_state_dir
def drop_command(path: Path, names: tuple[str, ...], state_dir: Path | None) -> None:
    """Give up the files that `list` calls NAME: their bytes are gone then."""
    wrong = []
    for name in names:
        try:
            _named(path, state_dir, name).remove()
        except click.ClickException as error:
            wrong.append(error.message)
    if wrong:
        raise click.ClickException("\n".join(wrong))


def _named(path: Path, state_dir: Path | None, name: str) -> UnsavedFile:
    if runtime.find(mountpoint.resolve(path)) is not None:
        raise click.ClickException(
            f"{path} is mounted: its unsaved files are in {path}/upload; copy or remove them there"
        )
    with reporting.in_one_line():
        spilled, flaws = unsaved.find_all(state_dir_of(path, state_dir))
    for file in spilled:
        if file.name == name:
            return file
    for flaw in flaws:
        if f"/{name} " in flaw:
            raise click.ClickException(flaw)
    raise click.ClickException(f"no unsaved file is called {name}: see keepfs unsaved list {path}")


def state_dir_of(path: Path, state_dir: Path | None) -> Path:
    """Return a mount's state directory: its own if it runs, else as given, else the default."""
    with reporting.in_one_line():
        resolved = mountpoint.resolve(path)
        running = runtime.find(resolved)
    if running is not None and running.state_dir:
        return Path(running.state_dir)
    return settings.absolute(state_dir or settings.default_state_dir(resolved))
