"""What a mount can be told: options, where they come from, and sizes as people write them.

Standard library only.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

#: What a size may end in, and how many bytes that is.
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?\Z", re.ASCII | re.IGNORECASE)

MIB = 2**20


class OptionsError(Exception):
    """A setting that can't be: says which, where it came from, and what would do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Where the blocks are, and how to ask for them.

    Attributes:
        local_store: A directory of this machine, instead of services.
        keep_services: Base URLs of services, blank-separated, instead of
            discovery; None for Arvados's own settings.
        copies: Replicas to be confirmed; None for the cluster's default.
        storage_classes: Classes to be confirmed; None for the cluster's default.
        cache_size: Bytes of blocks kept in memory.
        retries: Rounds after the first; the default ones take about a minute.
        token_file: A file with the token, read again when it is refused;
            None for Arvados's own settings.
        keep_services_from: Where `keep_services` was said, for messages.
    """

    local_store: Path | None = None
    keep_services: str | None = None
    copies: int | None = None
    storage_classes: tuple[str, ...] | None = None
    cache_size: int = 256 * MIB
    retries: int = 4
    token_file: Path | None = None
    keep_services_from: str = ""

    def public_settings(self) -> dict[str, str]:
        """Return what the mount's README shows of it: never the token."""
        cache = {"cache-size": format_size(self.cache_size)}
        if self.local_store is not None:
            return {"blocks": str(self.local_store), **cache}  # which knows no classes
        classes = self.storage_classes
        return {
            "blocks": self.keep_services or "at the cluster's services",
            "storage-classes": "the cluster's default" if classes is None else ",".join(classes),
            **cache,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """How to mount.

    Attributes:
        mountpoint: An absolute path.
        store: Where the blocks are.
        lookup: How a lookup learns whether a block is there: `fetch`, `head`
            or `trust`; None for what fits the store.
        lookup_wait: Seconds after which a lookup believes the name.
        collection: Uuid or portable data hash of a collection whose files are mounted
            alone, read-only; None for the whole tree.
        collection_refresh: Seconds after which a collection's uuid is asked for again.
        staging_size: Bytes written but not stored yet that are kept in
            memory; who writes faster waits.
        direct_io: Let the kernel keep no pages of files in upload/.
        uid: Owner of everything; None for whoever makes it.
        gid: Group of everything; None for the maker's.
        umask: Permissions taken from those of the fixed directories.
        allow_other: Let other users in, as far as permissions go.
        read_only: Refuse to change anything.
        nonempty: Mount over a directory that has entries.
        state_dir: Where what must survive is kept, of this mount alone; an
            absolute path.
        request_timeout: Seconds after which a request is given up.
        drain_timeout: Seconds that ending may take to store what isn't yet.
        retain: How stored blocks are kept: `collection`, `put` or `off`; None for what fits
            the store.
        retain_as: Name of the collection, or uuid of an empty one; None for a name made of
            host and mount point.
        read_ahead: Bytes the kernel may read ahead, where we may set it;
            0 leaves it as it is.
        core_dumps: Let the kernel write core dumps of the process.
        log_level: DEBUG, INFO, WARNING or ERROR.
        log_file: An absolute path; None for the state directory's, or
            standard error in the foreground.
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
    read_only: bool = False
    nonempty: bool = False
    state_dir: Path
    request_timeout: float = 600.0
    drain_timeout: float = 300.0
    retain: str | None = None
    retain_as: str | None = None
    read_ahead: int = MIB
    core_dumps: bool = False
    log_level: str = "INFO"
    log_file: Path | None = None

    def public_settings(self) -> dict[str, str]:
        """Return what the mount's README shows of it."""
        return {
            **self.store.public_settings(),
            "staging-size": format_size(self.staging_size),
            "read-only": "yes" if self.read_only else "no",
        }


#: The keys of a configuration file: everything that a mount can be told, as on the
#: command line.
CONFIG_KEYS = frozenset(
    field.name.replace("_", "-")
    for kind in (StoreOptions, MountOptions)
    for field in dataclasses.fields(kind)
    if field.name not in {"mountpoint", "store", "keep_services_from"}
)
#: Those that are paths.
_PATHS = frozenset(("local-store", "state-dir", "token-file", "log-file"))


def parse_size(text: str) -> int:
    """Read a number of bytes: `268435456`, `256M`, `256 MiB`, `1.5g`; units are powers of 1024.

    Raises:
        ValueError: It isn't one.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        raise ValueError(f"not a size: {text!r} (write 256M or 1.5GiB)")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_size(size: int) -> str:
    """Write a number of bytes so that people, and `parse_size`, can read it."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def default_config_file() -> Path | None:
    """Return where the configuration file is looked for; None for whoever has no home."""
    base = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".config"
        except RuntimeError:
            return None
    return base / "keepfs" / "config.toml"


def read_config_file(path: Path) -> dict[str, object]:
    """Read a configuration file; one that isn't there is empty.

    A path in it that is relative is meant from where the file lies.

    Args:
        path: A TOML file of `CONFIG_KEYS`.

    Raises:
        OptionsError: It can't be read or parsed, or has an unknown key.
    """
    try:
        settings = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionsError(f"can't use {path}: {error}") from error
    unknown = sorted(set(settings) - CONFIG_KEYS)
    if unknown:
        raise OptionsError(
            f"{path}: unknown key {unknown[0]!r}; there are: {', '.join(sorted(CONFIG_KEYS))}"
        )
    for key, value in settings.items():
        if isinstance(value, (list, dict)):
            raise OptionsError(f"{path}: {key} is one value, not a {type(value).__name__}")
        if key in _PATHS and isinstance(value, str) and value and not value.startswith("~"):
            settings[key] = str(path.absolute().parent / value)
    return settings
