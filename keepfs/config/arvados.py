"""Arvados settings: from the environment, then from the first `settings.conf` found.

Standard library only; no network. A variable whose name begins with `ARVADOS_`
overrides the settings file if it is set, even if it is empty. The file is parsed
as Arvados's Go programs parse it.
"""

from __future__ import annotations

import itertools
import logging
import os
import pwd
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_log = logging.getLogger(__name__)

#: Values of `ARVADOS_API_HOST_INSECURE` that mean yes, in lower case: the
#: union of those of the SDK and the Go programs.
_YES = frozenset({"1", "t", "true", "y", "yes"})

#: Bundles of certificate authorities, in order of preference. `$SSL_CERT_FILE`
#: precedes them; the bundle of `requests` (certifi) comes last.
CA_FILES = (
    Path("/etc/arvados/ca-certificates.crt"),
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
)

#: The machine's settings file, read if no other exists.
SYSTEM_FILE = Path("/etc/arvados/settings.conf")

#: The settings file of systemd services. A service finds it by $CONFIGURATION_DIRECTORY; a
#: command in a shell for a service's mount lacks that variable, and reads this path.
SERVICES_FILE = Path("/etc/keepfs/settings.conf")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings from the environment and the settings file; empty if unset.

    Attributes:
        api_host: Host, or host:port, of the API server.
        api_token: The token; left out of the `repr`.
        insecure: Whether to skip certificate checks of the API server and Keep.
        keep_services: Base URLs, blank-separated, that replace discovery.
        keep_proxy: The same, used if `keep_services` is empty.
        source: The settings file that was read, or None.
        from_environment: Names of the settings set in the environment.
    """

    api_host: str = ""
    api_token: str = field(default="", repr=False)
    insecure: bool = False
    keep_services: str = ""
    keep_proxy: str = ""
    source: Path | None = None
    from_environment: frozenset[str] = frozenset()

    def origin(self, name: str) -> str:
        """Return the source of a setting, for messages: the environment or a file."""
        if name in self.from_environment or self.source is None:
            return f"{name} in the environment"
        return f"{name} in {self.source}"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the current settings.

    A file of the machine that this user may not read is skipped.

    Args:
        environ: Replaces this process's environment.

    Raises:
        OSError: The user's settings file exists and can't be read.
    """
    environ = os.environ if environ is None else environ
    used = itertools.chain(
        (path for path in _files_of_user(environ) if path.is_file()),
        (path for path in _files_of_machine(environ) if is_readable(path)),
    )
    source = next(used, None)
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


def is_readable(path: Path) -> bool:
    """Return whether a file of the machine exists and this user may read it.

    Raises:
        OSError: It can't be opened for another reason, such as an error of the disk.
    """
    try:
        with path.open("rb"):
            return True
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except PermissionError as error:
        _log.debug("%s is skipped: %s", path, error.strerror)
        return False


def _host_in(text: str) -> str:
    """Return the host of a setting, which may be an https URL."""
    text = text.strip()
    if text.lower().startswith("https://"):
        text = text[len("https://") :].rstrip("/")
    return text


def parse_settings(text: str) -> dict[str, str]:
    """Parse a settings file: `NAME=value` lines, with blanks around both removed.

    Lines that don't begin with `ARVADOS_` or have no `=` are ignored.
    """
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip().startswith("ARVADOS_"):
            values[name.strip()] = value.strip()
    return values


def settings_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield the possible paths of `settings.conf`, in order of precedence."""
    yield from _files_of_user(environ)
    yield from _files_of_machine(environ)


def _files_of_user(environ: Mapping[str, str]) -> Iterator[Path]:
    for directory in _absolute_paths(environ.get("CONFIGURATION_DIRECTORY", "")):
        yield directory / "settings.conf"
    own = list(_absolute_paths(environ.get("XDG_CONFIG_HOME", "")))[:1]
    home = environ["HOME"] if "HOME" in environ else _home_of_user()
    if not own and home:
        own = [Path(home, ".config")]
    for directory in own:
        yield directory / "arvados" / "settings.conf"


def _files_of_machine(environ: Mapping[str, str]) -> Iterator[Path]:
    yield SERVICES_FILE
    for directory in _absolute_paths(environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"):
        yield directory / "arvados" / "settings.conf"
    yield SYSTEM_FILE


def credential(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the file of the token that the service manager passes, or None.

    It is `token` in $CREDENTIALS_DIRECTORY (systemd.exec(5), LoadCredential=). An empty
    one doesn't count, nor does `-`, which the units set where there is no token file.
    """
    directory = (os.environ if environ is None else environ).get("CREDENTIALS_DIRECTORY", "")
    if not directory.startswith("/"):
        return None
    path = Path(directory, "token")
    try:
        return None if path.read_bytes().strip() in {b"", b"-"} else path
    except FileNotFoundError:
        return None


def _home_of_user() -> str:
    """Return this user's home directory, empty if none, for services without $HOME."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""


def is_yes(text: str) -> bool:
    """Return whether the text of a setting means yes."""
    return text.strip().lower() in _YES


def ca_file(
    environ: Mapping[str, str] | None = None, candidates: Iterable[Path] = CA_FILES
) -> Path | None:
    """Return the first bundle of certificate authorities that exists, or None.

    A bundle of the machine that this user may not read is skipped.

    Args:
        environ: Replaces this process's environment.
        candidates: Paths to try after `$SSL_CERT_FILE`.

    Raises:
        PermissionError: This user may not look for `$SSL_CERT_FILE` in its directory.
    """
    named = (os.environ if environ is None else environ).get("SSL_CERT_FILE", "")
    if named and Path(named).is_file():
        return Path(named)
    return next((path for path in candidates if is_readable(path)), None)


def local_store_directory(environ: Mapping[str, str] | None = None) -> str:
    """Return `$KEEP_LOCAL_STORE`, empty if unset; the settings file can't set it."""
    return (os.environ if environ is None else environ).get("KEEP_LOCAL_STORE", "")


def _absolute_paths(directories: str) -> Iterator[Path]:
    return (Path(name) for name in directories.split(":") if name.startswith("/"))
