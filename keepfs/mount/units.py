"""Units: the text of the systemd units of a mount, and of its example configuration.

A unit is for one mount point. Without one it is for all, by the specifiers `%f` (mount point)
and `%i` (its escaped name): so are the units in systemd/. Nothing is read from the machine,
except by `token_of_service`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keepfs.config.options import SYSTEM_DIRECTORY

if TYPE_CHECKING:
    from pathlib import Path

#: Seconds without a WATCHDOG=1 after which systemd kills and restarts the service.
WATCHDOG_SECONDS = 60
#: Seconds at the stop: --drain-timeout (300 s by default), 25 s to spill the rest, 5 s margin.
_STOP_SECONDS = 330

_LITERAL = re.compile(r"[A-Za-z0-9:_.]")

#: Restrictions that need no mount namespace of the service's own: in one, the mount would
#: not appear on the machine. `docs/service.md` lists the others.
_SANDBOX = """\
# Restrictions. Those that give a service its own mount namespace (ProtectSystem=, PrivateTmp=
# and others) can't be used: the mount would be visible to the service alone.
NoNewPrivileges=yes
# To mount, and to use a local store of any owner.
CapabilityBoundingSet=CAP_SYS_ADMIN CAP_DAC_OVERRIDE
SystemCallFilter=@system-service @mount
SystemCallFilter=~@clock @cpu-emulation @debug @module @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
SystemCallArchitectures=native
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
MemoryDenyWriteExecute=yes
LockPersonality=yes
ProtectHostname=yes
DevicePolicy=closed
DeviceAllow=/dev/fuse rw
KeyringMode=private
UMask=0077
"""


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """The parameters of the units of a mount.

    Attributes:
        command: The words that start keepfs: an absolute path, and more if needed.
        mountpoint: The absolute path; None for a unit of all mount points.
        config: The configuration file to read alone; None for the default ones.
        is_user: Whether the units are for a user's service manager.
    """

    command: tuple[str, ...]
    mountpoint: Path | None = None
    config: Path | None = None
    is_user: bool = False

    @property
    def name(self) -> str:
        """The name of the units' instance: the escaped mount point, empty for all."""
        return "" if self.mountpoint is None else escaped_for_systemd(self.mountpoint)

    def _words(self, *words: str) -> str:
        config = () if self.config is None else ("--config", str(self.config))
        return " ".join([*map(_quoted, (*self.command, words[0], *config)), *words[1:]])

    def service(self) -> str:
        """Return the unit that serves the mount."""
        return "\n".join(filter(None, (self._head(), self._service(), self._install()))) + "\n"

    def _head(self) -> str:
        network = "After=network-online.target\nWants=network-online.target\n"
        return (
            "# Serves the mount of keepfs on the path that is the instance of the unit's name:\n"
            "# `systemd-escape --path /mnt/keep` prints it. docs/service.md describes the unit.\n"
            "# Changes belong in a drop-in: `systemctl edit`.\n"
            "[Unit]\n"
            "Description=Arvados Keep on %f\n"
            "Documentation=man:mount.fuse3(8)\n" + ("" if self.is_user else network)
            # A user's service manager has no such target.
        )

    def _service(self) -> str:
        # `env` fails with 127 if there is no keepfs.
        final = "2 127" if self.command[0] == "/usr/bin/env" else "2"
        lines = [
            "[Service]",
            "Type=notify",
            "NotifyAccess=main",
            "SyslogIdentifier=keepfs",
            "# keepfs itself removes a dead mount that a killed process has left. No",
            "# ExecStopPost= does: it would also detach what another process has mounted there.",
            f"ExecStart={self._words('mount', '--foreground', '%f')}",
            "# On SIGHUP keepfs reads the token file again.",
            "ExecReload=/bin/kill -HUP $MAINPID",
            "# A mount that answers no requests is killed and started again.",
            f"WatchdogSec={WATCHDOG_SECONDS}",
            "TimeoutAbortSec=30",
            "# On SIGTERM keepfs stores unstored files, unmounts and exits. The timeout is",
            "# --drain-timeout (300 s by default), plus 25 s to spill the rest, plus 5 s margin.",
            "# With a longer --drain-timeout, keepfs extends it at the stop.",
            f"TimeoutStopSec={_STOP_SECONDS}",
            "Restart=on-failure",
            "RestartSec=2",
            "# No restart after errors that need an administrator: a wrong setting (2)"
            + (", no keepfs (127)." if " " in final else "."),
            f"RestartPreventExitStatus={final}",
            "# $CONFIGURATION_DIRECTORY: config.toml in it is read, and Arvados's settings.conf.",
            "ConfigurationDirectory=keepfs",
        ]
        if self.is_user:
            lines += [
                "# No restrictions: they imply NoNewPrivileges=; then fusermount3 can't mount.",
            ]
        else:
            lines += [
                "EnvironmentFile=-/etc/keepfs/%i.env",
                "# The token, if the file isn't empty; else Arvados's own settings have it.",
                "LoadCredential=token:/etc/keepfs/%i.token",
                "SetCredential=token:-",
                "StateDirectory=keepfs",
                "StateDirectoryMode=0700",
                "# A killed keepfs breaks all open files: the OOM killer picks it last.",
                "OOMScoreAdjust=-900",
                "",
                _SANDBOX.rstrip("\n"),
            ]
        return "\n".join(lines) + "\n"

    def _install(self) -> str:
        return f"[Install]\nWantedBy={'default' if self.is_user else 'multi-user'}.target"

    def renewal(self) -> str:
        """Return the unit that renews what the mount has stored; a timer starts it."""
        lines = [
            "# Keeps what one mount has stored, also while it is not mounted: see the timer.",
            "[Unit]",
            "Description=Renew what is stored in upload/ of %f",
        ]
        if not self.is_user:
            lines += ["After=network-online.target", "Wants=network-online.target"]
        lines += [
            "",
            "[Service]",
            "Type=oneshot",
            "SyslogIdentifier=keepfs-renew",
            f"ExecStart={self._words('renew', '%f')}",
            "ConfigurationDirectory=keepfs",
        ]
        if not self.is_user:
            lines += [
                "EnvironmentFile=-/etc/keepfs/%i.env",
                "LoadCredential=token:/etc/keepfs/%i.token",
                "SetCredential=token:-",
                "StateDirectory=keepfs",
                "StateDirectoryMode=0700",
            ]
        return "\n".join(lines) + "\n"

    def timer(self) -> str:
        """Return the timer of the renewal."""
        unit = f"keepfs-renew@{self.name or 'mnt-keep'}.timer"
        return f"""\
# For a mount that is not always up: `systemctl enable --now {unit}`.
# A mount that is up renews by itself, and is only asked to. Keep removes blocks that no
# collection names two weeks after they were stored, by default: twice a week is often enough.
[Unit]
Description=Renew what is stored in upload/ of %f, twice a week

[Timer]
OnCalendar=Mon,Thu
RandomizedDelaySec=6h
# One that was missed while the machine was off is made up for.
Persistent=true

[Install]
WantedBy=timers.target
"""

    def files(self) -> dict[str, str]:
        """Return the units: file names and texts."""
        return {
            f"keepfs@{self.name}.service": self.service(),
            f"keepfs-renew@{self.name}.service": self.renewal(),
            f"keepfs-renew@{self.name}.timer": self.timer(),
        }


def example_configuration(mountpoint: Path, token_file: str) -> str:
    """Return a configuration file with a table of one mount point, all keys commented out.

    Args:
        mountpoint: The mount's absolute path.
        token_file: The place for the token, as text for people.
    """
    return f"""\
# Settings of keepfs: each option of `keepfs mount --help` is a key. Keys outside tables are
# for all mounts and commands; a table is for the mount on its path. An unknown key is an error.

[{toml_key(mountpoint)}]
# Where the blocks are. On this machine, without a cluster:
#local-store = "/srv/keep"
# Or on a cluster: write these lines to settings.conf, in this directory:
#     ARVADOS_API_HOST=zzzzz.example.org
# and the token to {token_file}.

# For other users, too (docs/several-users.md):
#allow-other = true
#umask = "022"
#cache-size = "1GiB"
"""


def toml_key(path: Path) -> str:
    """Quote a path as a key of TOML, whose basic strings escape as JSON's do."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda it: f"\\u{ord(it[0]):04x}", text) + '"'


def escaped_for_systemd(path: Path) -> str:
    r"""Return a path as in the names of units (systemd.unit(5)): `/mnt/a-b` is `mnt-a\x2db`."""
    text = bytes(path).strip(b"/")
    if not text:
        return "-"
    return "".join(
        "-"
        if char == "/"
        else char
        if _LITERAL.match(char) and (place or char != ".")
        else f"\\x{ord(char):02x}"
        for place, char in enumerate(text.decode("latin-1"))
    )


def token_of_service(path: Path, directory: Path = SYSTEM_DIRECTORY) -> Path | None:
    """Return the file of the token of the service of a mount point.

    None if it does not exist, can't be read by this user, or is empty.

    Args:
        path: The mount point.
        directory: The directory of token files.
    """
    file = directory / f"{escaped_for_systemd(path)}.token"
    try:
        return file if file.read_bytes().strip() else None
    except OSError:
        return None


def variables_of_service(path: Path, directory: Path = SYSTEM_DIRECTORY) -> Path:
    """Return the file of the variables that only the service of a mount point reads.

    Args:
        path: The mount point.
        directory: The directory of these files.
    """
    return directory / f"{escaped_for_systemd(path)}.env"


def _quoted(word: str) -> str:
    """Quote a word of a command in a unit."""
    word = word.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[A-Za-z0-9_@%$+=:,./-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
