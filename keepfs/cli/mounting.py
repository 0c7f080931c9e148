"""keepfs mount."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keepfs.cli import executing, fstab_words, reporting, settings, unmounting, values, waiting
from keepfs.cli.settings import setting
from keepfs.collections.names import is_hash, is_uuid
from keepfs.config import options
from keepfs.messages import of_commands
from keepfs.mount import daemon, mountpoint, runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.mount.daemon import Reporter

#: Valid user and group numbers; the next one, 2**32 - 1, means none.
_IDS = click.IntRange(0, 2**32 - 2)


def _check_collection(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    """Refuse a name that is neither a uuid nor a portable data hash."""
    if name is not None and not (is_uuid(name) or is_hash(name)):
        raise click.BadParameter(of_commands.BAD_COLLECTION(name=name))
    return name


def _check_metrics_file(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    """Refuse a file that the text collector does not read; return the absolute path."""
    if path is not None and path.suffix != ".prom":
        raise click.BadParameter(
            of_commands.BAD_VALUE(
                text=f"{str(path)!r} does not end in .prom; node-exporter reads no other files"
            )
        )
    return None if path is None else settings.absolute(path)


@click.command("mount", cls=executing.ExecutingCommand)
@settings.mountpoint_argument("mountpoint_")
@click.option(
    "-f", "--foreground", is_flag=True, help="Stay in the foreground; log to standard error."
)
@click.option(
    "-o",
    "words",
    multiple=True,
    metavar="OPT[=VALUE],...",
    expose_value=False,
    is_eager=True,
    callback=fstab_words.read_words,
    help="Options as in /etc/fstab: those below without their dashes, and ro.",
)
@executing.executing_option
@settings.store_settings
@setting(
    "--lookup",
    type=click.Choice(["fetch", "head", "trust"]),
    help="On a lookup: start to fetch the block, send a HEAD request, or send nothing and trust"
    " the name.  [default: fetch; head with a local store]",
)
@setting(
    "--lookup-wait",
    type=click.FloatRange(0),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest wait of a lookup for the services. After it, the name is trusted, and a read"
    " reports a missing block.",
)
@setting(
    "--collection",
    callback=_check_collection,
    metavar="UUID|PDH",
    help="Mount the files of this collection alone, read-only.",
)
@setting(
    "--collection-refresh",
    type=click.FloatRange(0),
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds after which an access to a collection by uuid checks for a new version.",
)
@setting(
    "--staging-size",
    type=values.Size(),
    default="512MiB",
    show_default=True,
    help="Memory for unstored bytes. A faster writer waits.",
)
@setting(
    "--direct-io",
    is_flag=True,
    help="Bypass the page cache for files in upload/: large files are written faster, but"
    " can't be mapped as shared memory.",
)
@setting("--uid", type=_IDS, help="Owner of everything.  [default: the creator]")
@setting("--gid", type=_IDS, help="Group of everything.  [default: the creator's group]")
@setting(
    "--umask",
    type=values.Octal(),
    default="022",
    show_default=True,
    help="Permissions removed from the mount's root, by_id/ and upload/.",
)
@setting(
    "--allow-other", is_flag=True, help="Let other users access the mount, subject to permissions."
)
@setting(
    "--share-signatures",
    is_flag=True,
    help="Serve a name without a signature in by_id/ if any user of the mount has looked up or"
    " stored the block with a valid signature.",
)
@setting("--read-only", is_flag=True, help="Refuse every change.")
@setting("--noexec", is_flag=True, help="Let no program of the mount be run.")
@setting("--nonempty", is_flag=True, help="Mount over a directory that has entries.")
@setting(
    "--state-dir",
    type=values.FilledPath(path_type=Path, file_okay=False),
    help="Directory for the names in upload/, unsaved files and the log, of this mount alone."
    "  [default: one per mount point, in /var/lib/keepfs for root, else in"
    " ~/.local/state/keepfs]",
)
@setting(
    "--request-timeout",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="A request that takes longer fails with a timeout.",
)
@setting(
    "--drain-timeout",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Time at unmount to store files that are not stored yet.",
)
@settings.retain_setting
@settings.retain_as_setting
@setting(
    "--read-ahead",
    type=values.Size(),
    default="1MiB",
    show_default=True,
    help="Read-ahead of the kernel, if root mounts. 0 keeps the kernel's value.",
)
@setting(
    "--core-dumps",
    is_flag=True,
    help="Let the kernel write core dumps of the process. They contain the token and blocks.",
)
@setting(
    "--metrics",
    type=values.Address(),
    metavar="[HOST:]PORT",
    help="Serve Prometheus metrics there; on the loopback address if only a port is given.",
)
@setting(
    "--metrics-file",
    type=values.FilledPath(path_type=Path, dir_okay=False),
    callback=_check_metrics_file,
    metavar="FILE.prom",
    help="Write metrics to this file every 15 s, for the text collector of node-exporter.",
)
@setting(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
    help="Least severe level that is logged.",
)
@setting(
    "--log-file",
    type=values.FilledPath(path_type=Path, dir_okay=False),
    help="Log to this file.  [default: log in the state directory; standard error with -f]",
)
def mount_command(
    mountpoint_: Path,
    *,
    foreground: bool,
    store: options.StoreOptions,
    state_dir: Path | None,
    log_file: Path | None,
    log_level: str,
    **others: Any,  # noqa: ANN401 - named and typed in MountOptions
) -> None:
    """Mount Keep on the directory MOUNTPOINT.

    Returns when the mount is ready. If it fails, it prints the reason. Every
    option is also a variable KEEPFS_<OPTION> and a key of the configuration
    file. The command line overrides the environment, and the environment
    overrides the file. http_proxy, https_proxy and no_proxy are ignored.
    """
    words = executing.words_of(click.get_current_context())
    if words and foreground:
        raise click.UsageError(
            of_commands.OPTIONS_CONFLICT(
                text="--exec mounts in the background: leave --foreground out"
            )
        )
    if others["collection"] is not None:
        others["read_only"] = True
    with reporting.in_one_line():
        path = mountpoint.resolve(mountpoint_)
        told = options.MountOptions(
            mountpoint=path,
            store=store,
            state_dir=settings.absolute(state_dir or settings.default_state_dir(path)),
            log_file=None if log_file is None else settings.absolute(log_file),
            log_level=log_level.upper(),
            **others,
        )

    def serve(reporter: Reporter) -> int:
        # Imported here: the parent process, which only forks, needs neither trio nor pyfuse3.
        from keepfs.mount.serve import run  # noqa: PLC0415

        return run(told, reporter, foreground=foreground)

    is_new = not os.path.exists(told.state_dir)  # noqa: PTH110 - never raises
    if foreground:
        person = _Foreground(is_log_shown=told.log_file is None)
        with waiting.announced(store, person.waits):
            code = serve(person)
        if is_new and not person.was_ready:
            _remove_state(path, told.state_dir)
        raise SystemExit(code)
    reason: str | None = ""
    try:
        reason = daemon.run_in_background(
            lambda pipe: _serve_telling(serve, pipe),
            lambda: waiting.announce(store),
            lambda warning: click.echo(f"Warning: {warning}", err=True),
            keeps_group=mountpoint.is_automount_point(path),
        )
    finally:
        if is_new and reason is not None:
            _remove_state(path, told.state_dir)
    if reason is not None:
        click.echo(f"Error: {reason}", err=True)
        raise SystemExit(daemon.exit_status_of(reason))
    if words:
        raise SystemExit(_execute(words, path))


def _execute(words: list[str], path: Path) -> int:
    """Run a program in a mount, unmount, and return the exit status.

    It is the program's, or 1 if that is 0 and the unmount fails or a file isn't stored.
    """
    status = executing.run_program(words, path)
    running, entry = runtime.find(path), mountpoint.mounted_at(path)
    try:
        if entry is not None and entry.kind == mountpoint.FILE_SYSTEM_TYPE:
            try:
                mountpoint.detach(path, lazy=False)
            except mountpoint.MountpointError as error:
                # Processes that the program has left lose the mount: no wait for them.
                click.echo(f"Warning: {unmounting.who_holds(entry) or error}", err=True)
                mountpoint.detach(path, lazy=True)
        if running is not None:
            unmounting.end(running)
    except (click.ClickException, mountpoint.MountpointError) as error:
        click.echo(f"Error: {error}", err=True)
        return status or 1
    return status


def _serve_telling(serve: Callable[[Reporter], int], pipe: daemon.PipeReporter) -> int:
    """Serve a mount; print warnings about its store at the terminal as well as in the log."""

    class Telling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            pipe.warn(record.getMessage())

    logging.getLogger("keepfs.stores").addHandler(Telling(logging.WARNING))
    return serve(pipe)


def _remove_state(path: Path, state_dir: Path) -> None:
    """Remove the state directory that a failed mount has created, if it has only a log."""
    with contextlib.suppress(OSError):
        if runtime.find(path) is None and {it.name for it in state_dir.iterdir()} <= {"log"}:
            (state_dir / "log").unlink(missing_ok=True)
            state_dir.rmdir()


class _Foreground:
    """Reports the start of a foreground mount to the terminal.

    Args:
        is_log_shown: Whether the log goes to standard error.
    """

    def __init__(self, *, is_log_shown: bool) -> None:
        self._is_log_shown = is_log_shown
        self.was_ready = self._has_failed = False

    def waits(self) -> bool:
        """Return whether the mount is still starting."""
        return not (self.was_ready or self._has_failed)

    def ready(self) -> None:
        """Record it; print nothing, since the log has a line."""
        self.was_ready = True

    def failed(self, reason: str) -> None:
        """Print the reason, unless the log has shown it."""
        self._has_failed = True
        if self._is_log_shown and logging.getLogger().hasHandlers():
            return
        click.echo(f"Error: {reason}", err=True)
