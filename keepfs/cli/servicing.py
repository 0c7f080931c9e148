"""keepfs service: writes systemd units for a mount, and installs the helpers of mount(8)."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from keepfs.cli import reporting, settings, values
from keepfs.config import options
from keepfs.messages import of_commands
from keepfs.mount import mountpoint, units
from keepfs.mount.units import ServicePlan
from keepfs.part_files import part_path

#: The directory in which mount(8) and umount(8) find the helpers of a file system's type.
_HELPERS = Path("/sbin")
#: The names of the helpers, for the types `keepfs` and `fuse.keepfs`, in fstab and in the
#: kernel's table of mounts.
_HELPER_NAMES = ("mount.keepfs", "mount.fuse.keepfs", "umount.keepfs", "umount.fuse.keepfs")
_OTHERS_MAY_WRITE = 0o022


@click.group("service")
def service_command() -> None:
    """Set up mounts as services of systemd, and /etc/fstab."""


@service_command.command("install")
@click.argument("path", metavar="MOUNTPOINT", type=values.FilledPath(path_type=Path))
@click.option("--user", "is_user", is_flag=True, help="A service of this user, without root.")
@click.option(
    "--config",
    type=values.FilledPath(path_type=Path, dir_okay=False),
    help="The configuration file of the mount.  [default: config.toml in /etc/keepfs, with --user"
    " in ~/.config/keepfs; one is written as an example if there is none]",
)
@click.option("--print", "is_printing", is_flag=True, help="Print the files; write nothing.")
def install_command(path: Path, config: Path | None, *, is_user: bool, is_printing: bool) -> None:
    """Write the units that mount MOUNTPOINT, and print the next two commands.

    The service is keepfs@NAME, where NAME is MOUNTPOINT as systemd escapes it;
    keepfs-renew@NAME.timer renews what a mount that is down has stored. Writes
    an example configuration, and makes an empty token file, where there are
    none. Units that are there are replaced.
    """
    with reporting.in_one_line():
        where = mountpoint.resolve(path)
        plan = ServicePlan(
            mountpoint=where,
            command=own_command(),
            config=None if config is None else settings.absolute(config),
            is_user=is_user,
        )
        home = _configuration_directory(is_user=is_user)
        file = plan.config or home / "config.toml"
        token = Path("/etc/keepfs") / f"{plan.name}.token"
        text = units.example_configuration(
            where, "the line ARVADOS_API_TOKEN=... in that file" if is_user else str(token)
        )
        directory = _units_directory(is_user=is_user)
        if is_printing:
            for name, unit in plan.files().items():
                click.echo(f"# {directory / name}\n{unit}")
            if not os.path.exists(file):  # noqa: PTH110 - False if this user may not look
                click.echo(f"# {file}\n{text}", nl=False)
            return
        if not is_user and os.geteuid() != 0:
            raise click.UsageError(
                of_commands.SERVICE_NOT_INSTALLED(
                    reason=f"only root can write to {directory}; run it with sudo, or with --user"
                    " for a service of your own, or with --print"
                )
            )
        if not is_user:
            _warn_of_owner(plan.command[0])
        done = {
            _write(directory / name, unit, is_user=is_user) for name, unit in plan.files().items()
        }
        if not file.exists():
            _write(file, text, 0o600 if is_user else 0o644, is_user=is_user)
        if not is_user:
            _make_token_file(token)
        if not os.path.lexists(where):
            where.mkdir(parents=True)
            click.echo(f"made {where}")
    systemctl, service = f"systemctl{' --user' if is_user else ''}", next(iter(plan.files()))
    if "replaced" in done:
        said = "load the units that have changed, and restart the service"
        commands = (f"{systemctl} daemon-reload", f"{systemctl} restart '{service}'")
    else:
        said = f"say where the blocks are, in the table [{units.toml_key(where)}], and start it"
        commands = (f"${{EDITOR:-vi}} {file}", f"{systemctl} enable --now '{service}'")
    click.echo("\n".join((f"\nNext: {said}:\n", *(f"    {each}" for each in commands))))


@service_command.command("mount-helper")
@click.option("--remove", is_flag=True, help="Remove the links.")
def mount_helper_command(*, remove: bool) -> None:
    """Make `mount -t keepfs`, /etc/fstab and umount work: links in /sbin, as root."""
    helper = own_command()[0] if len(own_command()) == 1 else None
    target = None if helper is None else Path(helper).with_name("mount.keepfs")
    if not remove and (target is None or not target.exists()):
        raise click.ClickException(
            of_commands.SERVICE_NOT_INSTALLED(
                reason="there is no mount.keepfs beside keepfs; install keepfs as a package"
                " (pipx, uv, pip)"
            )
        )
    with reporting.in_one_line():
        for name in _HELPER_NAMES:
            link = _HELPERS / name
            if os.path.lexists(link):
                if not link.is_symlink():
                    raise click.ClickException(
                        of_commands.SERVICE_NOT_INSTALLED(
                            reason=f"{link} is not a link; it is left alone"
                        )
                    )
                link.unlink()
            if not remove and target is not None:
                link.symlink_to(target)
                click.echo(f"{link} -> {target}")


def own_command() -> tuple[str, ...]:
    """Return the words that start this keepfs from anywhere; the first is an absolute path.

    A link to it, such as pipx makes, is not resolved: the link survives an upgrade.
    """
    given = shutil.which(sys.argv[0])
    if given is not None and Path(given).name == "keepfs":
        return (str(Path(os.path.abspath(given))),)  # noqa: PTH100 - resolve() follows links
    beside = Path(sys.executable).with_name("keepfs")
    return (str(beside),) if beside.exists() else (sys.executable, "-m", "keepfs")


def _configuration_directory(*, is_user: bool) -> Path:
    if not is_user:
        return Path("/etc/keepfs")
    file = options.default_config_file()
    if file is None:
        raise click.UsageError(
            of_commands.SERVICE_NOT_INSTALLED(reason="there is no home directory; set HOME")
        )
    return file.parent


def _units_directory(*, is_user: bool) -> Path:
    if not is_user:
        return Path("/etc/systemd/system")
    return _configuration_directory(is_user=True).parent / "systemd" / "user"


def _write(path: Path, text: str, mode: int = 0o644, *, is_user: bool) -> str:
    """Write a file atomically, print its name, and return `wrote`, `replaced` or `unchanged`."""
    try:
        if path.read_text() == text:
            click.echo(f"unchanged {path}")
            return "unchanged"
        said = "replaced"
    except FileNotFoundError:
        said = "wrote"
    if is_user:
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        _make_directory(path.parent)
    part = part_path(path)
    try:
        part.touch(0o600, exist_ok=False)
        part.write_text(text)
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    click.echo(f"{said} {path}")
    return said


def _make_directory(path: Path) -> None:
    """Make a directory, and those above it, that all users can read, whatever root's umask is."""
    if not path.exists():
        _make_directory(path.parent)
        path.mkdir(exist_ok=True)
        path.chmod(0o755)


def _make_token_file(path: Path) -> None:
    if not path.exists():
        _make_directory(path.parent)
        path.touch(0o600)
        click.echo(f"wrote {path}, empty: the token belongs there")


def _warn_of_owner(program: str) -> None:
    """Warn if another user can change the program that root's service runs."""
    real = Path(program).resolve()
    for path in (real, *real.parents):
        status = path.stat()
        is_sticky = path.is_dir() and status.st_mode & 0o1000
        if status.st_uid != 0 or (status.st_mode & _OTHERS_MAY_WRITE and not is_sticky):
            click.echo(
                f"Warning: {of_commands.PROGRAM_CHANGEABLE(program=program, path=path)}",
                err=True,
            )
            return
