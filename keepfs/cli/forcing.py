"""keepfs unmount --force: end a mount that is busy, hangs or is stopped, and lose no spilled file.

Each step has a time limit, and none accesses the mount:

1. SIGTERM and SIGINT: the process stops storing, spills what is not stored, and unmounts. A
   stopped process is continued, because only it has the unstored bytes.
2. If the process has not ended after the time limit, the kernel's connection is aborted: all
   requests fail, and the process ends its mount.
3. The mount is detached lazily, wherever it is left. The process is never killed: it may be
   spilling.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import click

from keepfs.cli.status import status_of
from keepfs.fs.upload.unsaved import GRACE
from keepfs.messages import of_running
from keepfs.mount import mountpoint, runtime

#: Seconds for each of the steps 1 and 2, if the process answers: the drain's limit for
#: spilling, and a margin for the end of the other parts.
_SPILLING = GRACE + 10.0
#: The same if it does not answer, or its event loop is stuck. Guessed: a stopped process that
#: is continued needs less.
_SILENT = 5.0


def unmount(entry: mountpoint.MountEntry | None, running: runtime.RunningMount | None) -> None:
    """End a mount. Blocks, for some 75 s at most.

    Args:
        entry: The mount; None if the kernel has none, and only its process is left.
        running: Its process; None without one, or for another user's.

    Raises:
        click.ClickException: The process still runs, or the mount is still there.
    """
    if running is None:
        if entry is not None:
            mountpoint.abort(entry)
            _detach(entry)
        return
    path = Path(running.mountpoint)
    # A process that is stuck since its start has not recorded its device.
    device = f"0:{running.device}" if running.device > 0 or entry is None else entry.device
    places = mountpoint.places_of(device)
    was_stopped = runtime.is_stopped(running.pid)
    # Two signals of different numbers: two of the same number would arrive as one.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, number)
    if was_stopped:
        click.echo(f"keepfs: process {running.pid} was stopped, and is continued", err=True)
    state = status_of(running).state
    patience = _SPILLING if state in {"serving", "draining", "starting"} else _SILENT
    if not runtime.wait_until_ended(running, patience):
        click.echo(
            f"keepfs: process {running.pid} does not end: the mount's requests are aborted",
            err=True,
        )
        if entry is not None and mountpoint.still_mounted([entry.mountpoint], entry.device):
            mountpoint.abort(entry)
        runtime.wait_until_ended(running, patience)
    for place in mountpoint.still_mounted(places, device):
        left, owner = mountpoint.mounted_at(place), runtime.find(place)
        # Once the process has ended, the next mount may be there, with the same number.
        if left is not None and (owner is None or owner.pid == running.pid):
            _detach(left)
    if runtime.is_served_by(running):
        raise click.ClickException(
            of_running.PROCESS_REMAINS(
                path=path,
                pid=running.pid,
                state=_what_it_does(running),
                directory=running.state_dir,
            )
        )


def _what_it_does(running: runtime.RunningMount) -> str:
    status = status_of(running)
    return status.reason or status.state


def _detach(entry: mountpoint.MountEntry) -> None:
    try:
        mountpoint.detach(entry.mountpoint, lazy=True)
    except mountpoint.MountpointError as error:
        if mountpoint.mounted_at(entry.mountpoint) is not None:
            raise click.ClickException(str(error)) from error
