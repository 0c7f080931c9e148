"""keepfs unsaved: list, retry, export or drop files that could not be stored."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keepfs.cli import clients, progress, reporting, settings, values
from keepfs.cli.settings import config_file, setting, store_settings
from keepfs.fs.upload import failed_journal, unsaved
from keepfs.messages import of_commands, of_uploads
from keepfs.mount import mountpoint, runtime

if TYPE_CHECKING:
    from keepfs.config.options import StoreOptions
    from keepfs.fs.upload.unsaved import About, UnsavedFile


@click.group("unsaved", invoke_without_command=True)
@click.pass_context
def unsaved_command(context: click.Context) -> None:
    """List, retry, export or drop unstored files.

    These are files of upload/ whose store has failed. While the mount runs,
    the files are in upload/ and are retried in the background; user.keep.error
    has the reason. At unmount they are written to the state directory, and the
    next mount restores them.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


_mountpoint = settings.mountpoint_argument()
_state_dir = setting(
    "--state-dir",
    type=values.FilledPath(path_type=Path, file_okay=False),
    help="The state directory that was given to mount.",
)


@unsaved_command.command("list")
@_mountpoint
@config_file
@_state_dir
@clients.json_option
@clients.zero_option
def list_command(path: Path, state_dir: Path | None, *, is_json: bool, null: bool) -> None:
    """List the unstored files.

    A line of output has the name, size, path in upload/ and reason, separated
    by tabs. The name is for `export` and `drop`; it is `-` while the mount runs.
    """
    directory = existing_state_dir(path, state_dir)
    with reporting.in_one_line():
        spilled, flaws = unsaved.find_records(directory)
        running = runtime.find(mountpoint.resolve(path)) is not None
    found: list[tuple[str | None, About]]
    if running:  # the mount has restored the spill records
        found = [(None, about) for about in failed_journal.read(directory)]
    else:
        found = [(file.name, file.about) for file in spilled]
    for name, about in found:
        why = about.error or ("waits for its store" if running else "")
        if is_json:
            row = {"name": name, "size": about.size, "path": about.path, "error": why}
            clients.print_json(row, null=null)
        else:
            clients.print_line(f"{name or '-'}\t{about.size}\t{about.path}\t{why}", null=null)
    if flaws:
        raise click.ClickException(of_uploads.UNSAVED_DAMAGED(text="\n".join(flaws)))


@unsaved_command.command("retry")
@_mountpoint
def retry_command(path: Path) -> None:
    """Make the running mount retry all failed files at once."""
    with reporting.in_one_line():
        running = runtime.find(mountpoint.resolve(path))
        if running is None:
            mountpoint.check_ours(mountpoint.resolve(path))
            raise click.ClickException(of_uploads.UNSAVED_NOT_MOUNTED(path=path))
        os.kill(running.pid, signal.SIGUSR1)


@unsaved_command.command("export")
@_mountpoint
@click.argument("name")
@click.argument("output", type=values.FilledPath(path_type=Path, dir_okay=False))
@_state_dir
@progress.progress_option
@store_settings
def export_command(
    path: Path, name: str, output: Path, state_dir: Path | None, store: StoreOptions
) -> None:
    """Write an unsaved file to OUTPUT.

    NAME is the name that `list` prints. OUTPUT must not exist. It gets its
    name only when it is complete and synced to the disk.
    """
    from keepfs import stores  # noqa: PLC0415 - 100 ms that `list` need not spend

    file = _named(path, state_dir, name)
    with reporting.in_one_line(), clients.ended_by_signals(), contextlib.ExitStack() as stack:
        pieces, client = file.pieces(), None
        with (
            clients.written_whole(output, is_new=True) as written,
            progress.shown("exporting", file.about.size, is_bytes=True) as advance,
        ):
            for piece in pieces:
                begin = written.tell()
                if piece.stored:
                    client = client or stack.enter_context(stores.open_client(store))
                    for each in piece.stored.ranges:
                        block = client.get_block(each.locator)
                        written.write(block[each.offset : each.offset + each.length])
                elif piece.staged is not None:
                    written.write(piece.staged)
                written.truncate(begin + piece.length)
                written.seek(begin + piece.length)
                advance(piece.length)
            written.flush()
            os.utime(written.fileno(), ns=(file.about.atime_ns, file.about.mtime_ns))
            os.fsync(written.fileno())


@unsaved_command.command("drop")
@_mountpoint
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@config_file
@_state_dir
def drop_command(path: Path, names: tuple[str, ...], state_dir: Path | None) -> None:
    """Delete unsaved files; their bytes are lost.

    NAME is the name that `list` prints.
    """
    wrong = []
    for name in names:
        try:
            _named(path, state_dir, name).delete()
        except click.ClickException as error:
            wrong.append(error.message)
        except OSError as error:
            wrong.append(of_commands.FILE_FAILED(text=error))
    if wrong:
        raise click.ClickException("\n".join(wrong))


def _named(path: Path, state_dir: Path | None, name: str) -> UnsavedFile:
    with reporting.in_one_line():
        if runtime.find(mountpoint.resolve(path)) is not None:
            raise click.ClickException(of_uploads.UNSAVED_IS_MOUNTED(path=path))
        spilled, flaws = unsaved.find_records(existing_state_dir(path, state_dir))
    for file in spilled:
        if file.name == name:
            return file
    for flaw in flaws:
        if f"/{name} " in flaw:
            raise click.ClickException(of_uploads.UNSAVED_DAMAGED(text=flaw))
    raise click.ClickException(of_uploads.NO_UNSAVED_FILE(name=name, path=path))


def existing_state_dir(path: Path, state_dir: Path | None) -> Path:
    """Return a mount's state directory: that of the running mount, the given or the default.

    Raises:
        click.ClickException: No mount of this user runs there, and the directory doesn't exist.
    """
    with reporting.in_one_line():
        resolved = mountpoint.resolve(path)
        running = runtime.find(resolved)
        if running is None and state_dir is None:
            mountpoint.check_ours(resolved)  # its state directory isn't this user's default
        if running is not None and running.state_dir:
            return Path(running.state_dir)
        directory = settings.absolute(state_dir or settings.default_state_dir(resolved))
        if running is None and not directory.exists():
            said = of_uploads.NO_STATE_DIRECTORY(path=path, directory=directory)
            raise click.ClickException(said)
        return directory
