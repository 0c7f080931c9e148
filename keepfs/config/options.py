"""Options of a mount, the configuration file, and sizes in human-readable form.

Standard library only.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keepfs.config.arvados import is_readable

if TYPE_CHECKING:
    from collections.abc import Container

#: Unit of a size: its number of bytes.
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?\Z", re.ASCII | re.IGNORECASE)
#: The largest size: that of a file in Linux, nearly 8 EiB. A float has it exactly.
_MOST_BYTES = 2**63 - 2**10
#: Characters of a wrong value that a message shows.
_MOST_SHOWN = 50

MIB = 2**20
#: The size of a disk cache that depends on the disk.
AUTOMATIC = -1

#: The directory of the machine's configuration file.
SYSTEM_DIRECTORY = Path("/etc/keepfs")


class OptionsError(Exception):
    """A setting is invalid. The message has the setting, its source and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Where the blocks are, and how to request them.

    Attributes:
        local_store: A directory of this machine, used instead of services.
        keep_services: Base URLs of services, blank-separated, instead of
            discovery; None for Arvados's own settings.
        copies: Replicas to be confirmed; None for the cluster's default.
        storage_classes: Classes to be confirmed; None for the cluster's default.
        cache_size: Bytes of blocks kept in memory.
        disk_cache: Bytes of blocks kept on the disk; 0 for none, `AUTOMATIC` for a tenth of
            the disk or a quarter of what is free or its own, whichever is less.
        disk_cache_dir: The directory of the disk cache; None for the default one of the user.
        retries: Retry rounds after the first; the default takes about a minute.
        token_file: A file with the token, read again when the token is
            refused; None for Arvados's own settings.
        keep_services_from: The source of `keep_services`, for messages.
    """

    local_store: Path | None = None
    keep_services: str | None = None
    copies: int | None = None
    storage_classes: tuple[str, ...] | None = None
    cache_size: int = 256 * MIB
    disk_cache: int = 0
    disk_cache_dir: Path | None = None
    retries: int = 4
    token_file: Path | None = None
    keep_services_from: str = ""

    def public_settings(self) -> dict[str, str]:
        """Return the settings that the mount's README shows; the token is never one of them."""
        cache = {"cache-size": format_size(self.cache_size)}
        if self.disk_cache:
            automatic = self.disk_cache == AUTOMATIC
            cache["disk-cache"] = "auto" if automatic else format_size(self.disk_cache)
        if self.local_store is not None:
            return {"blocks": str(self.local_store), **cache}  # it has no storage classes
        classes = self.storage_classes
        return {
            "blocks": self.keep_services or "at the cluster's services",
            "storage-classes": "the cluster's default" if classes is None else ",".join(classes),
            **cache,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """The options of a mount.

    Attributes:
        mountpoint: An absolute path.
        store: Where the blocks are.
        lookup: How a lookup checks whether a block exists: `fetch`, `head`
            or `trust`; None for the default of the store.
        lookup_wait: Seconds after which a lookup trusts the name.
        collection: Uuid or portable data hash of the one collection to mount,
            read-only; None for the whole tree.
        collection_refresh: Seconds after which a collection's uuid is looked
            up again.
        staging_size: Most bytes of memory for unstored writes; a faster
            writer waits.
        direct_io: Bypass the page cache for files in upload/.
        uid: Owner of everything; None for the creator of each entry.
        gid: Group of everything; None for the creator's group.
        umask: Permission bits removed from the fixed directories.
        allow_other: Let other users access the mount, subject to permissions.
        share_signatures: Let a name without a signature use one that this mount has seen.
        read_only: Refuse every change.
        noexec: Let no program of the mount be run.
        nonempty: Mount over a directory that has entries.
        state_dir: Directory for the catalog, spill records and log of this
            mount alone; an absolute path.
        request_timeout: Seconds after which a request fails with a timeout.
        drain_timeout: Seconds to store unstored files at unmount.
        retain: How stored blocks are kept: `collection`, `put` or `off`; None for the
            default of the store.
        retain_as: Name of the collection, or uuid of an empty one; None for a name made of
            host and mount point.
        read_ahead: Bytes the kernel may read ahead, if this process may set it;
            0 leaves the kernel's value.
        core_dumps: Let the kernel write core dumps of the process.
        metrics: Host and port on which metrics are served; None: on none. Port 0: a free one.
        metrics_file: File of node-exporter's text format, written every 15 s; None for none.
        log_level: DEBUG, INFO, WARNING or ERROR.
        log_file: An absolute path; None for the log in the state directory,
            or standard error in the foreground.
    """

    mountpoint: Path
    store: StoreOptions
    lookup: str | None = None
    lookup_wait: float = 2.0
    collection: str | None = None
    collection_refresh: float = 15.0
    staging_size: int = 512 * MIB
    direct_io: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int = 0o022
    allow_other: bool = False
    share_signatures: bool = False
    read_only: bool = False
    noexec: bool = False
    nonempty: bool = False
    state_dir: Path
    request_timeout: float = 600.0
    drain_timeout: float = 300.0
    retain: str | None = None
    retain_as: str | None = None
    read_ahead: int = MIB
    core_dumps: bool = False
    metrics: tuple[str, int] | None = None
    metrics_file: Path | None = None
    log_level: str = "INFO"
    log_file: Path | None = None

    def public_settings(self) -> dict[str, str]:
        """Return the settings that the mount's README shows."""
        return {
            **self.store.public_settings(),
            "staging-size": format_size(self.staging_size),
            "read-only": "yes" if self.read_only else "no",
        }


#: The keys of a configuration file: all options of a mount, named as on the command line.
CONFIG_KEYS = frozenset(
    field.name.replace("_", "-")
    for kind in (StoreOptions, MountOptions)
    for field in dataclasses.fields(kind)
    if field.name not in {"mountpoint", "store", "keep_services_from"}
)
#: The keys that name the store; one excludes the other.
_PLACES = frozenset(("local-store", "keep-services"))
#: The keys whose values are paths.
_PATHS = frozenset(
    ("local-store", "state-dir", "token-file", "log-file", "metrics-file", "disk-cache-dir")
)


def parse_size(text: str) -> int:
    """Parse a number of bytes: `268435456`, `256M`, `256 MiB`, `1.5g`; units are powers of 1024.

    Raises:
        ValueError: `text` isn't a size.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        raise ValueError(f"{_shortened(text)} isn't a size; write it as 256M or 1.5GiB")
    size = float(match[1]) * _UNITS[match[2].lower()]
    if size > _MOST_BYTES:
        raise ValueError(f"{_shortened(text)} is larger than any disk; write it as 256M or 1.5GiB")
    return int(size)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")


def format_size(size: int) -> str:
    """Format a number of bytes for people; `parse_size` reads the result."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def default_config_file() -> Path | None:
    """Return the path of the user's configuration file; None without a home directory."""
    base = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".config"
        except RuntimeError:
            return None
    return base / "keepfs" / "config.toml"


def default_config_files(system: Path = SYSTEM_DIRECTORY) -> list[Path]:
    """Return the paths of the configuration files, highest precedence first.

    They are `config.toml` in each directory of $CONFIGURATION_DIRECTORY, which systemd sets
    for a service with ConfigurationDirectory=, then the user's, then the machine's.

    Args:
        system: The directory of the machine's file.
    """
    listed = os.environ.get("CONFIGURATION_DIRECTORY", "").split(":")
    found = [Path(each) / "config.toml" for each in listed if each.startswith("/")]
    own = default_config_file()
    found += [] if own is None else [own]
    return list(dict.fromkeys([*found, system / "config.toml"]))


def read_default_files(
    mountpoints: Container[Path] = (), system: Path = SYSTEM_DIRECTORY
) -> dict[str, object]:
    """Read the default configuration files; the first file that has a key sets its value.

    A machine's file that this user may not read is skipped, with a line in the log (DEBUG).

    Args:
        mountpoints: The names of the mount point whose tables apply; see `read_config_file`.
        system: The directory of the machine's file.

    Raises:
        OptionsError: As `read_config_file`.
    """
    settings: dict[str, object] = {}
    for path in reversed(default_config_files(system)):
        if path.parent == system and not is_readable(path):
            continue
        settings = _overridden(settings, read_config_file(path, mountpoints))
    return settings


def origins(mountpoints: Container[Path], file: Path | None = None) -> dict[str, str]:
    """Return the path of the file that gives the value of each key.

    Args:
        mountpoints: As for `read_default_files`.
        file: The file that is read alone; None for the default files.

    Raises:
        OptionsError: As `read_config_file`.
    """
    found: dict[str, str] = {}
    for path in reversed(default_config_files() if file is None else [file]):
        if file is None and path.parent == SYSTEM_DIRECTORY and not is_readable(path):
            continue
        own, general = read_config_file(path, mountpoints), read_config_file(path)
        for key, value in own.items():
            is_general = key in general and general[key] == value
            found[key] = str(path) if is_general else f"{path}, table of the mount point"
    return found


def read_config_file(path: Path, mountpoints: Container[Path] = ()) -> dict[str, object]:
    """Read a configuration file; a missing file has no settings.

    A table whose name is an absolute path, `["/mnt/keep"]`, has settings of the mount on
    that path; they override those outside tables. Relative paths in the file are resolved
    against the file's directory.

    Args:
        path: A TOML file with keys of `CONFIG_KEYS`.
        mountpoints: The tables of these mount points apply; the keys of all tables are checked.

    Raises:
        OptionsError: The file can't be read or parsed, or has an unknown key.
    """
    try:
        settings = tomllib.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionsError(f"can't read the configuration file {path}: {error}") from error
    tables = {key: settings.pop(key) for key in list(settings) if key.startswith("/")}
    _check_keys(path, settings)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise OptionsError(
                f"{path}: {name} is a mount point and must be a table; write a line [{name!r}]"
            )
        _check_keys(path, table, f"[{name!r}] ")
        if Path(os.path.normpath(name)) in mountpoints:
            settings = _overridden(settings, table)
    return settings


def _check_keys(path: Path, settings: dict[str, object], where: str = "") -> None:
    """Check the keys of a file or table, and make its relative paths absolute."""
    unknown = sorted(set(settings) - CONFIG_KEYS)
    if unknown:
        raise OptionsError(
            f"{path}: {where}unknown key {unknown[0]!r};"
            f" valid keys: {', '.join(sorted(CONFIG_KEYS))}"
        )
    for key, value in settings.items():
        if isinstance(value, (list, dict)):
            kind = type(value).__name__
            raise OptionsError(f"{path}: {where}{key} is a {kind}; write a single value")
        if key == "umask" and isinstance(value, int):
            raise OptionsError(f'{path}: {where}umask is a number; write text: umask = "022"')
        if key in _PATHS and isinstance(value, str) and value and not value.startswith("~"):
            settings[key] = str(path.absolute().parent / value)


def _overridden(below: dict[str, object], above: dict[str, object]) -> dict[str, object]:
    """Return the settings of both; `above` overrides, and its store replaces that of `below`."""
    if _PLACES & above.keys():
        below = {key: value for key, value in below.items() if key not in _PLACES}
    return {**below, **above}
