"""Options that several commands have: kinds of values, and where the blocks are."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from keepfs.cli import reporting
from keepfs.config import options
from keepfs.config.arvados import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Size(click.ParamType[int]):
    """A number of bytes."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Read a size."""
        try:
            return options.parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class FilledPath(click.Path):
    """A path with at least one character: an empty one would be the working directory."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """Refuse an empty path."""
        if not os.fspath(value):
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


class Octal(click.ParamType[int]):
    """File permissions, in octal."""

    name = "octal"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Read permissions."""
        try:
            number = int(str(value), 8)
        except ValueError:
            number = -1
        if not 0 <= number <= 0o777:  # noqa: PLR2004 - rwxrwxrwx
            self.fail(f"not permissions in octal: {value!r} (write 022)", param, ctx)
        return number


#: Where a context keeps what -o said, by parameter.
WORDS = "keepfs.words"


class Setting(click.Option):
    """An option that -o may give too, which is as good as giving it."""

    def consume_value(
        self, ctx: click.Context, opts: Mapping[str, Any]
    ) -> tuple[Any, ParameterSource]:
        """Look for the value where it comes first."""
        words = ctx.meta.get(WORDS, {})
        if self.name in words and self.name not in opts:
            return words[self.name], ParameterSource.COMMANDLINE
        return super().consume_value(ctx, opts)


def setting(name: str, **attributes: Any) -> Callable[[Any], Any]:  # noqa: ANN401 - click's own
    """Make an option that is a KEEPFS_ variable and a key of the configuration file too."""
    variable = f"KEEPFS_{name.strip('-').upper().replace('-', '_')}"
    return click.option(name, cls=Setting, envvar=attributes.pop("envvar", variable), **attributes)


def _read_file(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Take defaults from the configuration file."""
    try:
        if path is not None and not path.exists():
            raise click.UsageError(f"there is no configuration file {path}")
        file = path or options.default_config_file()
        found = {} if file is None else options.read_config_file(file)
    except (options.OptionsError, OSError) as error:
        raise click.UsageError(str(error)) from error
    if isinstance(found.get("umask"), int):
        raise click.UsageError('the configuration file\'s umask is text: umask = "022"')
    # As text, as from the environment: so both are read, and refused, alike.
    defaults = {name.replace("-", "_"): str(value) for name, value in found.items()}
    context.default_map = {**(context.default_map or {}), **defaults}


#: Gives a command without `store_settings` what the configuration file says of its settings.
config_file = click.option(
    "--config",
    type=FilledPath(path_type=Path),
    envvar="KEEPFS_CONFIG",
    expose_value=False,
    is_eager=True,
    callback=_read_file,
    help="Configuration file.  [default: ~/.config/keepfs/config.toml]",
)


def store_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where the blocks are, as one argument `store`.

    It gets what the configuration file says of these, and of its other settings.
    """

    @functools.wraps(command)
    def with_store(
        *,
        local_store: str | None,
        keep_services: str | None,
        storage_classes: str | None,
        token_file: Path | None,
        copies: int | None,
        cache_size: int,
        retries: int,
        **others: Any,  # noqa: ANN401 - the command's own
    ) -> None:
        # An empty name, as for the SDK, means none.
        directory = Path(local_store) if local_store else None
        directory, keep_services = _the_one(directory, keep_services)
        if directory is not None and copies not in {None, 1}:
            if _rank("copies") <= _rank("local_store"):
                raise click.UsageError("a local store keeps one copy of each block: no --copies")
            copies = None  # said for services, where this would not be a local store
        store = options.StoreOptions(
            local_store=None if directory is None else absolute(directory),
            keep_services=keep_services,
            storage_classes=None if storage_classes is None else _words(storage_classes),
            token_file=None if token_file is None else absolute(token_file),
            keep_services_from=_source_of("keep_services"),
            copies=copies,
            cache_size=cache_size,
            retries=retries,
        )
        with reporting.in_one_line():
            if not _is_configured(store):
                raise click.UsageError(reporting.NOTHING_CONFIGURED)
        command(store=store, **others)

    decorated: Callable[..., None] = with_store
    for decorate in reversed((config_file, *_STORE_SETTINGS)):
        decorated = decorate(decorated)
    return decorated


_STORE_SETTINGS = (
    setting(
        "--local-store",
        type=click.Path(path_type=str, file_okay=False),
        envvar=["KEEPFS_LOCAL_STORE", "KEEP_LOCAL_STORE"],
        help="Keep the blocks in this directory; needs no cluster.",
    ),
    setting(
        "--keep-services",
        metavar="URI...",
        help="Keep services or proxies, blank-separated.  [default: Arvados's own settings]",
    ),
    setting(
        "--copies",
        type=click.IntRange(1, 1000),
        help="Of each block.  [default: the cluster's, else 2; 1 with a local store]",
    ),
    setting(
        "--storage-classes",
        metavar="CLASS,...",
        help="That confirm each block.  [default: the cluster's]",
    ),
    setting(
        "--token-file",
        type=FilledPath(path_type=Path, dir_okay=False),
        help="Read the token from there, and again when it is refused, or on SIGHUP.",
    ),
    setting(
        "--retries",
        type=click.IntRange(0),
        default=4,
        show_default=True,
        help="Rounds through the services after the first.",
    ),
    setting(
        "--cache-size",
        type=Size(),
        default="256MiB",
        show_default=True,
        help="Memory for blocks that were read.",
    ),
)


retain_setting = setting(
    "--retain",
    type=click.Choice(["collection", "put", "off"]),
    help="How the cluster is made to keep what is in upload/: by a collection, by storing blocks"
    " again before they are due, or not at all.  [default: collection; put without an API server;"
    " off with a local store]",
)
retain_as_setting = setting(
    "--retain-as",
    metavar="NAME|UUID",
    help="The collection's name, or an empty one that is there.  [default: keepfs upload/ of"
    " HOST:MOUNTPOINT]",
)

#: Where a value may come from, what counts most first.
_ORDER = (
    ParameterSource.COMMANDLINE,
    ParameterSource.PROMPT,
    ParameterSource.ENVIRONMENT,
    ParameterSource.DEFAULT_MAP,
    ParameterSource.DEFAULT,
)


def absolute(path: Path) -> Path:
    """Return a path as it is meant from here.

    Raises:
        click.UsageError: There is no such user, or no directory here any more.
    """
    try:
        return path.expanduser().absolute()
    except (RuntimeError, OSError) as error:
        raise click.UsageError(f"can't tell where {path} is: {error}") from error


def _is_configured(store: options.StoreOptions) -> bool:
    """Tell whether anything says where the blocks are, Arvados's own settings included."""
    arvados = load_settings()
    return bool(
        store.local_store
        or store.keep_services
        or arvados.keep_services
        or arvados.keep_proxy
        or arvados.api_host
    )


def _the_one(
    local_store: Path | None, keep_services: str | None
) -> tuple[Path | None, str | None]:
    """Choose between a directory and services: what the command line says comes first."""
    if local_store is None or keep_services is None:
        return local_store, keep_services
    ours, theirs = _rank("local_store"), _rank("keep_services")
    if ours == theirs:
        raise click.UsageError("a local store or Keep services, not both")
    return (local_store, None) if ours < theirs else (None, keep_services)


def _rank(name: str) -> int:
    """Return how much the source of a parameter's value counts; 0 is the most."""
    source = click.get_current_context().get_parameter_source(name)
    return _ORDER.index(source or ParameterSource.DEFAULT)


def _source_of(name: str) -> str:
    """Say where a parameter's value comes from."""
    source = click.get_current_context().get_parameter_source(name)
    return {
        ParameterSource.COMMANDLINE: "the command line",
        ParameterSource.ENVIRONMENT: f"KEEPFS_{name.upper()} in the environment",
        ParameterSource.DEFAULT_MAP: "the configuration file",
    }.get(source or ParameterSource.DEFAULT, "")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def default_state_dir(path: Path) -> Path:
    """Return the state directory of a mount point: named for it, so that people find it.

    Raises:
        click.UsageError: The user has no home directory.
    """
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    name = f"{str(path).strip('/').replace('/', '-')[:60] or 'root'}-{digest}"
    if os.geteuid() == 0:
        return Path("/var/lib/keepfs") / name
    import platformdirs  # noqa: PLC0415 - 25 ms that most commands needn't spend

    try:
        return Path(platformdirs.user_state_dir("keepfs")) / name
    except RuntimeError as error:
        raise click.UsageError(
            "can't tell where to keep the mount's state, as there is no home directory:"
            " set HOME, or give --state-dir"
        ) from error
