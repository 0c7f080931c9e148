"""Arvados's own settings: the environment over the first `settings.conf` there is.

A leaf: standard library only, and nothing here talks to a network. A value
whose name begins with `ARVADOS_` comes from the environment if it is set
there, an empty one too, else from the settings file. The file is read as the
Go programs read it, so one file serves all of them.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: What counts as yes for `ARVADOS_API_HOST_INSECURE`, in lower case: the
#: union of what the SDK and the Go programs take.
_YES = frozenset({"1", "t", "true", "y", "yes"})

#: Bundles of certificate authorities, in the order of preference; `$SSL_CERT_FILE`
#: goes before, the bundle of `requests` (certifi) after.
CA_FILES = (
    Path("/etc/arvados/ca-certificates.crt"),
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment and the settings file say; empty where they don't.

    Attributes:
        api_host: Host, or host:port, of the API server.
        api_token: Secret: not in the `repr`.
        insecure: Whether certificates go unchecked, the API server's and Keep's.
        keep_services: Base URLs, blank-separated, instead of discovery.
        keep_proxy: The same, where `keep_services` is empty.
        source: The settings file that was read, or None.
        from_environment: Names of what the environment says.
    """

    api_host: str = ""
    api_token: str = field(default="", repr=False)
    insecure: bool = False
    keep_services: str = ""
    keep_proxy: str = ""
    source: Path | None = None
    from_environment: frozenset[str] = frozenset()

    def origin(self, name: str) -> str:
        """Say where a setting comes from: the environment, or which file."""
        if name in self.from_environment or self.source is None:
            return f"{name} in the environment"
        return f"{name} in {self.source}"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings as they are now.

    Args:
        environ: Instead of this process's environment.

    Raises:
        OSError: The settings file is there and can't be read.
    """
    environ = os.environ if environ is None else environ
    source = next((path for path in settings_files(environ) if path.is_file()), None)
    values: dict[str, str] = {}
    if source is not None:
        values = parse_settings(source.read_text(encoding="utf-8", errors="replace"))
    ours = {k: v for k, v in environ.items() if k.startswith("ARVADOS_")}
    values.update(ours)
    return Settings(
        api_host=_host_in(values.get("ARVADOS_API_HOST", "")),
        api_token=values.get("ARVADOS_API_TOKEN", "").strip(),
        insecure=is_yes(values.get("ARVADOS_API_HOST_INSECURE", "")),
        keep_services=values.get("ARVADOS_KEEP_SERVICES", "").strip(),
        keep_proxy=values.get("ARVADOS_KEEP_PROXY", "").strip(),
        source=source,
        from_environment=frozenset(ours),
    )


def _host_in(text: str) -> str:
    """Take a host as people write it: an URL with https is as good as its host."""
    text = text.strip()
    if text.lower().startswith("https://"):
        text = text[len("https://") :].rstrip("/")
    return text


def parse_settings(text: str) -> dict[str, str]:
    """Take a settings file's text apart: `NAME=value` lines, blanks around both dropped.

    A line that doesn't begin with `ARVADOS_`, or has no `=`, says nothing.
    """
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip().startswith("ARVADOS_"):
            values[name.strip()] = value.strip()
    return values


def settings_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Name the places of `settings.conf`, the one that counts first."""
    for directory in _absolute_paths(environ.get("CONFIGURATION_DIRECTORY", "")):
        yield directory / "settings.conf"
    own = list(_absolute_paths(environ.get("XDG_CONFIG_HOME", "")))[:1]
    home = environ["HOME"] if "HOME" in environ else _home_of_user()
    if not own and home:
        own = [Path(home, ".config")]
    for directory in (*own, *_absolute_paths(environ.get("XDG_CONFIG_DIRS") or "/etc/xdg")):
        yield directory / "arvados" / "settings.conf"


def _home_of_user() -> str:
    """Return the home directory of this user; empty if there is none. Services have no $HOME."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""


def is_yes(text: str) -> bool:
    """Tell whether a setting's text switches something on."""
    return text.strip().lower() in _YES


def ca_file(
    environ: Mapping[str, str] | None = None, candidates: Iterable[Path] = CA_FILES
) -> Path | None:
    """Choose the bundle of certificate authorities: the first that exists, or None.

    Args:
        environ: Instead of this process's environment.
        candidates: Where to look after `$SSL_CERT_FILE`.
    """
    named = (os.environ if environ is None else environ).get("SSL_CERT_FILE", "")
    paths = (*([Path(named)] if named else []), *candidates)
    return next((path for path in paths if path.is_file()), None)


def local_store_directory(environ: Mapping[str, str] | None = None) -> str:
    """Return `$KEEP_LOCAL_STORE`, which only the environment may set; empty if unset."""
    return (os.environ if environ is None else environ).get("KEEP_LOCAL_STORE", "")


def _absolute_paths(directories: str) -> Iterator[Path]:
    return (Path(name) for name in directories.split(":") if name.startswith("/"))
