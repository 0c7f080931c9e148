"""Options shared by several commands, and where their values come from."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from keepfs.cli import reporting, values
from keepfs.config import options
from keepfs.config.arvados import credential, load_settings
from keepfs.messages import of_commands
from keepfs.mount import mountpoint, units

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


#: Key of a context's `meta` for the values given by -o, by parameter.
WORDS = "keepfs.words"


class Setting(click.Option):
    """An option that can also be given by -o, with the same precedence."""

    def consume_value(
        self, ctx: click.Context, opts: Mapping[str, Any]
    ) -> tuple[Any, ParameterSource]:
        """Return the value of the source with the highest precedence."""
        words = ctx.meta.get(WORDS, {})
        if self.name in words and self.name not in opts:
            return words[self.name], ParameterSource.COMMANDLINE
        return super().consume_value(ctx, opts)


def setting(name: str, **attributes: Any) -> Callable[[Any], Any]:  # noqa: ANN401 - click's own
    """Make an option that is also a KEEPFS_ variable and a key of the configuration file."""
    variable = f"KEEPFS_{name.strip('-').upper().replace('-', '_')}"
    return click.option(name, cls=Setting, envvar=attributes.pop("envvar", variable), **attributes)


#: Keys of a context's `meta`: the file given by --config, and the names of the mount point.
_FILE, _NAMES = "keepfs.config", "keepfs.mountpoints"
#: Key of a context's `meta` that is set if a word of -o names the file.
_BY_WORD = "keepfs.config.word"


def _read_file(context: click.Context, param: click.Parameter | None, path: Path | None) -> None:
    """Take defaults from the configuration file that is given, else from the default files.

    `param` is --config, or None for a word of -o, which overrides a variable and the default.
    """
    is_given = context.get_parameter_source("config") is ParameterSource.COMMANDLINE
    if param is not None and context.meta.get(_BY_WORD) and not is_given:
        return
    if path is not None and not path.exists():
        raise click.UsageError(
            of_commands.BAD_CONFIG(text=f"the configuration file {path} doesn't exist")
        )
    context.meta[_FILE] = path
    _set_defaults(context)


def use_file(context: click.Context, path: Path) -> None:
    """Read the configuration from a file alone, unless --config is on the command line.

    Raises:
        click.UsageError: The file does not exist, can't be read, or has an unknown key.
    """
    if context.get_parameter_source("config") is not ParameterSource.COMMANDLINE:
        context.meta[_BY_WORD] = True
        _read_file(context, None, path)


def _set_defaults(context: click.Context) -> None:
    """Set the defaults that the configuration files give; the mount point may be unknown yet."""
    names, file = context.meta.get(_NAMES, ()), context.meta[_FILE]
    try:
        found = (
            options.read_default_files(names)
            if file is None
            else options.read_config_file(file, names)
        )
    except (options.OptionsError, OSError) as error:
        raise click.UsageError(of_commands.BAD_CONFIG(text=error)) from error
    # As text, like values of the environment, so that both are parsed alike.
    context.default_map = {name.replace("-", "_"): str(value) for name, value in found.items()}


def origins_in_files(context: click.Context) -> dict[str, str]:
    """Return the file that gives each key, for a command that has read configuration files.

    Raises:
        OptionsError: A file can't be read, or has an unknown key.
    """
    return options.origins(context.meta.get(_NAMES, ()), context.meta.get(_FILE))


def _note_mountpoint(
    context: click.Context, _: click.Parameter, path: Path | None, *, is_inside: bool = False
) -> Path | None:
    """Use the tables of a mount point in the configuration files."""
    if path is None:
        return None
    with reporting.in_one_line():
        # The name in the file may contain a symlink, so both names are used.
        names = {Path(os.path.normpath(path.absolute())), mountpoint.resolve(path)}
    if is_inside:
        names |= {parent for name in names for parent in name.parents}
    context.meta[_NAMES] = names
    if _FILE in context.meta:
        _set_defaults(context)
    return path


def mountpoint_argument(name: str = "path") -> Callable[[Any], Any]:
    """Make the argument MOUNTPOINT, whose tables in the configuration files apply."""
    return click.argument(
        name,
        metavar="MOUNTPOINT",
        type=values.FilledPath(path_type=Path),
        is_eager=True,
        callback=_note_mountpoint,
    )


def path_argument(metavar: str, *, required: bool = True) -> Callable[[Any], Any]:
    """Make an argument `path` in a mount, whose tables in the configuration files apply."""
    return click.argument(
        "path",
        metavar=metavar,
        required=required,
        type=values.FilledPath(path_type=Path),
        is_eager=True,
        callback=functools.partial(_note_mountpoint, is_inside=True),
    )


#: Gives a command without `store_settings` defaults from the configuration file.
config_file = click.option(
    "--config",
    type=values.FilledPath(path_type=Path),
    envvar="KEEPFS_CONFIG",
    expose_value=False,
    is_eager=True,
    callback=_read_file,
    help="Read the configuration from this file alone.  [default: ~/.config/keepfs/config.toml,"
    " then /etc/keepfs/config.toml]",
)


def _default_token_file() -> Path | None:
    """Return the credential of the service manager, else that of the service of the mount.

    The second is for a command in a shell, such as `keepfs check /mnt/keep`. A token in the
    environment overrides the second, not the first.
    """
    given = credential()
    if given is not None or "ARVADOS_API_TOKEN" in os.environ:
        return given
    context = click.get_current_context(silent=True)
    names = () if context is None else context.meta.get(_NAMES, ())
    found = (units.token_of_service(each) for each in sorted(names, reverse=True))
    return next((path for path in found if path is not None), None)


#: The file of the token, for commands without `store_settings` too.
token_setting = setting(
    "--token-file",
    type=values.FilledPath(path_type=Path, dir_okay=False),
    default=_default_token_file,
    help="Read the token from this file; read it again when it is refused, and on SIGHUP."
    "  [default: the credential `token` of the service, else Arvados's own settings]",
)


def store_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a store to a command; it gets them as one argument `store`.

    The configuration file gives defaults for these and for the command's other settings.
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
        disk_cache: int,
        disk_cache_dir: Path | None,
        retries: int,
        **others: Any,  # noqa: ANN401 - the command's own
    ) -> None:
        # An empty value means none, as in the SDK.
        directory = Path(local_store) if local_store else None
        directory, keep_services = _the_one(directory, keep_services)
        if directory is not None and copies not in {None, 1}:
            if _rank("copies") <= _rank("local_store"):
                raise click.UsageError(
                    of_commands.OPTIONS_CONFLICT(
                        text="--copies can't be used: a local store keeps one copy of each block;"
                        " omit it"
                    )
                )
            copies = None  # its source has lower precedence than the local store's
        store = options.StoreOptions(
            local_store=None if directory is None else absolute(directory),
            keep_services=keep_services,
            storage_classes=None if storage_classes is None else _words(storage_classes),
            token_file=None if token_file is None else absolute(token_file),
            keep_services_from=_source_of("keep_services"),
            copies=copies,
            cache_size=cache_size,
            disk_cache=disk_cache,
            disk_cache_dir=None if disk_cache_dir is None else absolute(disk_cache_dir),
            retries=retries,
        )
        is_size_default = _rank("disk_cache") == _ORDER.index(ParameterSource.DEFAULT)
        # The variable may be meant for `keepfs cache`.
        is_dir_variable = _rank("disk_cache_dir") == _ORDER.index(ParameterSource.ENVIRONMENT)
        if disk_cache_dir is not None and is_size_default and not is_dir_variable:
            click.echo(f"Warning: {of_commands.DISK_CACHE_OFF()}", err=True)
        with reporting.in_one_line():
            if not _is_configured(store):
                raise click.UsageError(of_commands.NOTHING_CONFIGURED())
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
        help="Keep the blocks in this directory. Needs no cluster.",
    ),
    setting(
        "--keep-services",
        metavar="URI...",
        help="Use these Keep services or proxies, separated by blanks."
        "  [default: Arvados's own settings]",
    ),
    setting(
        "--copies",
        type=click.IntRange(1, 1000),
        help="Copies of each block.  [default: the cluster's, else 2; 1 with a local store]",
    ),
    setting(
        "--storage-classes",
        metavar="CLASS,...",
        help="Storage classes that must confirm each block.  [default: the cluster's]",
    ),
    token_setting,
    setting(
        "--retries",
        type=click.IntRange(0),
        default=4,
        show_default=True,
        help="Retry rounds through all services, after the first round.",
    ),
    setting(
        "--cache-size",
        type=values.Size(),
        default="256MiB",
        show_default=True,
        help="Memory for the cache of blocks.",
    ),
    setting(
        "--disk-cache",
        type=values.DiskCacheSize(),
        metavar="SIZE|auto|off",
        default="off",
        show_default=True,
        help="Keep blocks on the disk too; your mounts and commands share them. auto: a tenth of"
        " the disk at most.",
    ),
    setting(
        "--disk-cache-dir",
        type=values.FilledPath(path_type=Path, file_okay=False),
        help="Keep them in this directory.  [default: ~/.cache/keepfs]",
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

#: The sources of a value, highest precedence first.
_ORDER = (
    ParameterSource.COMMANDLINE,
    ParameterSource.PROMPT,
    ParameterSource.ENVIRONMENT,
    ParameterSource.DEFAULT_MAP,
    ParameterSource.DEFAULT,
)


def absolute(path: Path) -> Path:
    """Return a path as absolute, with `~` expanded.

    Raises:
        click.UsageError: The user of `~user` doesn't exist.
        click.ClickException: The working directory was removed.
    """
    try:
        with reporting.in_one_line():
            return path.expanduser().absolute()
    except RuntimeError as error:
        raise click.UsageError(of_commands.NO_SUCH_PATH(path=path, reason=error)) from error


def _is_configured(store: options.StoreOptions) -> bool:
    """Return whether an option or Arvados's own settings name a store."""
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
    """Choose between a directory and services: the source with higher precedence wins."""
    if local_store is None or keep_services is None:
        return local_store, keep_services
    ours, theirs = _rank("local_store"), _rank("keep_services")
    if ours == theirs:
        raise click.UsageError(
            of_commands.OPTIONS_CONFLICT(
                text="both a local store and Keep services are given; use one of --local-store and"
                " --keep-services"
            )
        )
    return (local_store, None) if ours < theirs else (None, keep_services)


def _rank(name: str) -> int:
    """Return the precedence of the source of a parameter's value; 0 is the highest."""
    source = click.get_current_context().get_parameter_source(name)
    return _ORDER.index(source or ParameterSource.DEFAULT)


def _source_of(name: str) -> str:
    """Return the source of a parameter's value, in words."""
    source = click.get_current_context().get_parameter_source(name)
    return {
        ParameterSource.COMMANDLINE: "the command line",
        ParameterSource.ENVIRONMENT: f"KEEPFS_{name.upper()} in the environment",
        ParameterSource.DEFAULT_MAP: "the configuration file",
    }.get(source or ParameterSource.DEFAULT, "")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def default_state_dir(path: Path) -> Path:
    """Return the state directory of a mount point; its name contains that of the mount point.

    Raises:
        click.UsageError: The user has no home directory.
    """
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    name = f"{str(path).strip('/').replace('/', '-')[:60] or 'root'}-{digest}"
    if os.geteuid() == 0:
        return Path("/var/lib/keepfs") / name
    import platformdirs  # noqa: PLC0415 - takes 25 ms, and most commands don't need it

    try:
        return Path(platformdirs.user_state_dir("keepfs")) / name
    except RuntimeError as error:
        raise click.UsageError(of_commands.NO_HOME()) from error
