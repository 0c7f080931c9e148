"""keepfs unmount."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import click

from keepfs.cli import forcing, progress, reporting, settings
from keepfs.cli.status import status_of
from keepfs.fs.upload import failed_journal, unsaved
from keepfs.messages import of_mounts
from keepfs.mount import mountpoint, runtime

#: Seconds within which a process usually ends after its mount is gone; interval of checks.
_NOTICES_AT_ONCE = 2.0
#: Seconds between two looks at what is left, for the progress.
_LOOKS = 0.5


@click.command("unmount")
@settings.mountpoint_argument("mountpoint_")
@progress.progress_option
@click.option(
    "--force",
    is_flag=True,
    help="Do not wait: write unstored files to the disk, fail all requests, and unmount, also if"
    " the mount is busy, hangs or is stopped.",
)
def unmount_command(mountpoint_: Path, *, force: bool) -> None:
    """Store everything and unmount MOUNTPOINT.

    Returns when everything is stored and the process has exited. Exits with 1
    if a file could not be stored, if the mount is busy, or if bind mounts of
    it are left. It lists the files, processes or bind mounts.
    """
    with reporting.in_one_line():
        path = mountpoint.resolve(mountpoint_)
        entry, running = _found(path)
        if force:
            forcing.unmount(entry, running)
            if running is not None and running.state_dir:
                _report_unsaved(path, Path(running.state_dir))
        else:
            _unmount(path, entry, running)


def _found(path: Path) -> tuple[mountpoint.MountEntry | None, runtime.RunningMount | None]:
    """Return the mount at a resolved path, and its process.

    Raises:
        click.ClickException: There is neither, or a mount of another kind.
    """
    entry = mountpoint.mounted_at(path)
    running = runtime.find(path)
    if running is None and entry is not None:
        running = runtime.find_device(entry.device)  # `path` is a bind mount
    if entry is not None and entry.kind != mountpoint.FILE_SYSTEM_TYPE:
        raise click.ClickException(of_mounts.OTHER_FILE_SYSTEM(path=path, kind=entry.kind))
    if running is None and os.geteuid() != 0:
        mountpoint.check_ours(path)  # fusermount3's reason would be another
    if entry is None and running is None:
        raise click.ClickException(of_mounts.NOT_MOUNTED(path=path))
    return entry, running


def _unmount(
    path: Path, entry: mountpoint.MountEntry | None, running: runtime.RunningMount | None
) -> None:
    """Unmount, and wait until everything is stored."""
    _check_not_stopped(path, running)
    device = f"0:{running.device}" if running is not None else ""
    places = mountpoint.places_of(device)
    if entry is not None:
        try:
            mountpoint.detach(path, lazy=running is None and mountpoint.is_dead(path))
        except mountpoint.MountpointError as error:
            raise click.ClickException(who_holds(entry) or str(error)) from error
    if running is None:
        return
    left = mountpoint.still_mounted(places, device)
    if not left:
        end(running)
    elif path == Path(running.mountpoint):
        # Leave the process running: programs may use the bind mounts.
        raise click.ClickException(
            of_mounts.BIND_MOUNTS_LEFT(path=path, pid=running.pid, places=" ".join(map(str, left)))
        )


def end(running: runtime.RunningMount) -> None:
    """Wait until the process has exited; fail if a file isn't stored."""
    path = Path(running.mountpoint)
    if not runtime.wait_until_ended(running, _NOTICES_AT_ONCE):
        # The process hasn't noticed the unmount: a container or service that started
        # during the mount has a copy of it, which keeps it alive in the kernel.
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGTERM)
        _wait_for(path, running)
    if running.state_dir:
        _report_unsaved(path, Path(running.state_dir))


def _wait_for(path: Path, running: runtime.RunningMount) -> None:
    """Wait without a limit until the mount's process has exited; print a notice once."""
    if runtime.wait_until_ended(running, _NOTICES_AT_ONCE):
        return
    _check_not_stopped(path, running)
    click.echo(f"keepfs: waiting until process {running.pid} has stored everything", err=True)
    left = _bytes_left(running) if progress.is_wanted() else None
    with progress.shown("storing what is left", left, is_bytes=left is not None) as advance:
        interval = _LOOKS if left is not None else _NOTICES_AT_ONCE
        while not runtime.wait_until_ended(running, interval):
            _check_not_stopped(path, running)
            if left is not None and (now := _bytes_left(running)) is not None:
                advance(left - now)
                left = now


def _bytes_left(running: runtime.RunningMount) -> int | None:
    """Return the bytes that the mount has not stored yet; None if it does not tell."""
    figures = status_of(running).figures
    return None if figures is None else int(figures["uploads"]["staged"])


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
    spilled, _ = unsaved.find_records(state_dir)
    if spilled:
        raise click.ClickException(of_mounts.FILES_UNSAVED(count=len(spilled), path=path))


def who_holds(entry: mountpoint.MountEntry) -> str | None:
    """Return a message that names what keeps a mount busy; None if nothing is found."""
    held = mountpoint.holders(entry)
    for other in mountpoint.mounts():
        if other.mountpoint != entry.mountpoint and other.mountpoint.is_relative_to(
            entry.mountpoint
        ):
            return of_mounts.BUSY(
                path=entry.mountpoint,
                holders=f"{other.mountpoint} is mounted in it; unmount that first",
            )
    users = [
        f"{each.command} (process {each.pid}) uses {each.path}"
        for each in held
        if each.pid != os.getpid()
    ]
    if mountpoint.has_working_directory(entry):
        users.append("the working directory of this command is in it: leave the directory")
    if not users:
        return None
    return of_mounts.BUSY(path=entry.mountpoint, holders="; ".join(users))
