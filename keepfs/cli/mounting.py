"""keepfs mount and keepfs unmount."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keepfs.cli import executing, progress, reporting, settings, waiting
from keepfs.cli.settings import Setting, setting
from keepfs.collections.names import is_hash, is_uuid
from keepfs.config import options
from keepfs.fs.upload import failed_journal, unsaved
from keepfs.messages import of_commands, of_mounts
from keepfs.mount import daemon, mountpoint, runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.mount.daemon import Reporter

# Options that mount(8) and fstab pass on but that keepfs does not need.
_IGNORED_WORDS = frozenset(
    (
        *("rw", "auto", "noauto", "user", "nouser", "users", "nofail", "_netdev", "defaults"),
        *("nosuid", "nodev", "noatime", "relatime", "async"),  # always the case
    )
)
#: Seconds within which a process notices that its mount is gone.
_NOTICES_AT_ONCE = 2.0
#: Valid user and group numbers; the next one, 2**32 - 1, means none.
_IDS = click.IntRange(0, 2**32 - 2)
_WORDS = {"ro": ("read_only", True)}


def _read_words(context: click.Context, _: click.Parameter, words: tuple[str, ...]) -> None:
    """Read options in the form of mount(8): -o allow_other,cache-size=1G."""
    by_name = {
        parameter.name: parameter
        for parameter in context.command.params
        if isinstance(parameter, Setting)
    }
    found: dict[str, object] = {}
    for word in (word for text in words for word in text.split(",") if word):
        key, equals, value = word.partition("=")
        name, fixed = _WORDS.get(key, (key.replace("-", "_"), None))
        if key in _IGNORED_WORDS or key.startswith("x-"):
            continue
        parameter = by_name.get(name)
        if parameter is None:
            raise click.UsageError(
                of_commands.USAGE(text=f"unknown option: -o {key}; see keepfs mount --help")
            )
        if bool(equals) == bool(parameter.is_flag):
            raise click.UsageError(
                of_commands.BAD_VALUE(
                    text=f"-o {key} takes no value; write -o {key}"
                    if equals
                    else f"-o {key} needs a value; write -o {key}=VALUE"
                )
            )
        found[name] = fixed if fixed is not None else (value if equals else True)
    context.meta[settings.WORDS] = found


def _check_collection(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    """See that a collection is named as collections are."""
    if name is not None and not (is_uuid(name) or is_hash(name)):
        raise click.BadParameter(of_commands.BAD_COLLECTION(name=name))
    return name


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
    callback=_read_words,
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
    help="After that long the uuid of a collection is asked for again when it is looked at.",
)
@setting(
    "--staging-size",
    type=settings.Size(),
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
    type=settings.Octal(),
    default="022",
    show_default=True,
    help="Permissions removed from the mount's root, by_id/ and upload/.",
)
@setting(
    "--allow-other", is_flag=True, help="Let other users access the mount, subject to permissions."
)
@setting("--read-only", is_flag=True, help="Refuse every change.")
@setting("--nonempty", is_flag=True, help="Mount over a directory that has entries.")
@setting(
    "--state-dir",
    type=settings.FilledPath(path_type=Path, file_okay=False),
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
    type=settings.Size(),
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
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
    help="Least severe level that is logged.",
)
@setting(
    "--log-file",
    type=settings.FilledPath(path_type=Path, dir_okay=False),
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

    is_new = not told.state_dir.exists()
    if foreground:
        person = _Foreground()
        with waiting.announced(store, person.waits):
            code = serve(person)
        if is_new and not person.was_ready:
            _remove_state(path, told.state_dir)
        raise SystemExit(code)
    reason = daemon.run_in_background(
        lambda pipe: _serve_telling(serve, pipe),
        lambda: waiting.announce(store),
        lambda warning: click.echo(f"Warning: {warning}", err=True),
    )
    if reason is not None:
        if is_new:
            _remove_state(path, told.state_dir)
        raise click.ClickException(reason)
    if words:
        raise SystemExit(_execute(words, path))


def _execute(words: list[str], path: Path) -> int:
    """Run a program in a mount, unmount, and return the exit status.

    It is the program's, or 1 if that is 0 and not everything is stored.
    """
    status = executing.run_program(words, path)
    running, entry = runtime.find(path), mountpoint.mounted_at(path)
    try:
        if entry is not None and entry.kind == mountpoint.FILE_SYSTEM_TYPE:
            try:
                mountpoint.detach(path, lazy=False)
            except mountpoint.MountpointError as error:
                # What the program left behind loses the mount; nothing of it waits for ever.
                click.echo(f"Warning: {_who_holds(entry) or error}", err=True)
                mountpoint.detach(path, lazy=True)
        if running is not None:
            _end(running)
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
    """Remove the state directory that a failed mount has made, if it has only a log."""
    with contextlib.suppress(OSError):
        if runtime.find(path) is None and {it.name for it in state_dir.iterdir()} <= {"log"}:
            (state_dir / "log").unlink(missing_ok=True)
            state_dir.rmdir()


class _Foreground:
    """Reports the start of a foreground mount to the terminal."""

    def __init__(self) -> None:
        self.was_ready = self._has_failed = False

    def waits(self) -> bool:
        """Return whether the mount is still starting."""
        return not (self.was_ready or self._has_failed)

    def ready(self) -> None:
        """Print nothing: the log has a line."""
        self.was_ready = True

    def failed(self, reason: str) -> None:
        """Print the reason."""
        self._has_failed = True
        click.echo(f"Error: {reason}", err=True)


@click.command("unmount")
@progress.progress_option
@click.argument("mountpoint_", metavar="MOUNTPOINT", type=settings.FilledPath(path_type=Path))
def unmount_command(mountpoint_: Path) -> None:
    """Store everything and unmount MOUNTPOINT.

    Returns when everything is stored and the process has exited. Exits with 1
    if a file could not be stored, if the mount is busy, or if bind mounts of
    it are left. It lists the files, processes or bind mounts.
    """
    with reporting.in_one_line():
        path = mountpoint.resolve(mountpoint_)
        entry = mountpoint.mounted_at(path)
        running = runtime.find(path)
        if running is None and entry is not None:
            running = runtime.find_device(entry.device)  # `path` is a bind mount
        if entry is not None and entry.kind != mountpoint.FILE_SYSTEM_TYPE:
            raise click.ClickException(of_mounts.OTHER_FILE_SYSTEM(path=path, kind=entry.kind))
        if entry is None and running is None:
            raise click.ClickException(of_mounts.NOT_MOUNTED(path=path))
        _check_not_stopped(path, running)
        if entry is not None:
            try:
                mountpoint.detach(path, lazy=running is None and mountpoint.is_dead(path))
            except mountpoint.MountpointError as error:
                raise click.ClickException(_who_holds(entry) or str(error)) from error
        if running is None:
            return
        left = mountpoint.places_of(f"0:{running.device}")
        if not left:
            _end(running)
        elif path == Path(running.mountpoint):
            # Leave the process running: programs may use the bind mounts.
            raise click.ClickException(
                of_mounts.BIND_MOUNTS_LEFT(
                    path=path, pid=running.pid, places=" ".join(map(str, left))
                )
            )


def _end(running: runtime.RunningMount) -> None:
    """Wait until the process has exited; fail if a file isn't stored."""
    path = Path(running.mountpoint)
    if not runtime.wait_until_ended(path, _NOTICES_AT_ONCE):
        # The process hasn't noticed the unmount: a container or service that started
        # during the mount has a copy of it, which keeps it alive in the kernel.
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGTERM)
        _wait_for(path, running)
    if running.state_dir:
        _report_unsaved(path, Path(running.state_dir))


def _wait_for(path: Path, running: runtime.RunningMount) -> None:
    """Wait without a limit until the mount's process has exited; print a notice once."""
    if runtime.wait_until_ended(path, _NOTICES_AT_ONCE):
        return
    click.echo(f"keepfs: waiting until process {running.pid} has stored everything", err=True)
    with progress.shown("storing what is left"):
        _check_not_stopped(path, running)
        while not runtime.wait_until_ended(path, _NOTICES_AT_ONCE):
            _check_not_stopped(path, running)


def _check_not_stopped(path: Path, running: runtime.RunningMount | None) -> None:
    """Check that the mount's process is not stopped.

    Raises:
        click.ClickException: The process is stopped, so waiting for it would not end.
    """
    if running is not None and runtime.is_stopped(running.pid):
        raise click.ClickException(of_mounts.PROCESS_STOPPED(path=path, pid=running.pid))


def _report_unsaved(path: Path, state_dir: Path) -> None:
    """Fail if a file isn't stored."""
    lost = failed_journal.read(state_dir)
    if lost:
        names = ", ".join(about.path for about in lost)
        raise click.ClickException(of_mounts.FILES_LOST(names=names, directory=state_dir))
    spilled, _ = unsaved.find_all(state_dir)
    if spilled:
        raise click.ClickException(of_mounts.FILES_UNSAVED(count=len(spilled), path=path))


def _who_holds(entry: mountpoint.MountEntry) -> str | None:
    held = mountpoint.holders(entry)
    for other in mountpoint.mounts():
        if other.mountpoint != entry.mountpoint and other.mountpoint.is_relative_to(
            entry.mountpoint
        ):
            return of_mounts.BUSY(
                path=entry.mountpoint,
                holders=f"{other.mountpoint} is mounted in it; unmount that first",
            )
    if not held:
        return None
    users = (f"{each.command} (process {each.pid}) uses {each.path}" for each in held)
    return of_mounts.BUSY(path=entry.mountpoint, holders="; ".join(users))
