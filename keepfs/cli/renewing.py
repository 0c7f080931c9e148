"""keepfs renew: renews the retention and the signatures of stored files of upload/."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keepfs.cli import progress, reporting, settings, values
from keepfs.cli.settings import setting, store_settings
from keepfs.cli.unsaved_files import existing_state_dir
from keepfs.config import options
from keepfs.mount import mountpoint, runtime

if TYPE_CHECKING:
    from keepfs.config.options import StoreOptions


@click.command("renew")
@progress.progress_option
@settings.mountpoint_argument()
@store_settings
@settings.retain_setting
@settings.retain_as_setting
@setting(
    "--state-dir",
    type=values.FilledPath(path_type=Path, file_okay=False),
    help="As given to mount.",
)
def renew_command(
    path: Path,
    store: StoreOptions,
    retain: str | None,
    retain_as: str | None,
    state_dir: Path | None,
) -> None:
    """Keep what is stored in upload/ of MOUNTPOINT, and renew its signatures.

    A running mount renews by itself; this makes it renew now. For a mount
    that is down, run this with the options of the mount, more often than
    every second week. It lists the files that are lost.
    """
    with reporting.in_one_line():
        where = mountpoint.resolve(path)
        running = runtime.find(where)
        if running is not None:
            os.kill(running.pid, signal.SIGUSR1)
            return
        told = options.MountOptions(
            mountpoint=where,
            store=store,
            state_dir=existing_state_dir(path, state_dir),
            retain=retain,
            retain_as=retain_as,
        )
        # Imported here: a signal to a running mount needs neither trio nor requests.
        from keepfs.mount import retaining  # noqa: PLC0415

        with progress.shown("renewing"):
            retaining.renew(told)
