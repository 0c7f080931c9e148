"""Words of -o: the options of a mount as mount(8) and /etc/fstab write them."""

from __future__ import annotations

import re
from pathlib import Path

import click

from keepfs.cli import settings
from keepfs.cli.settings import Setting
from keepfs.messages import of_commands

# Options that mount(8) and fstab pass on but that keepfs does not need.
_IGNORED_WORDS = frozenset(
    (
        *("rw", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail"),
        *("_netdev", "defaults", "comment", "exec", "silent"),
        # True of each keepfs mount.
        *("nosuid", "nodev", "noatime", "nodiratime", "relatime", "async", "nomand"),
    )
)
#: Words that are refused, with the reason and what to do.
_REFUSED_WORDS = {
    "remount": "a keepfs mount can't be changed; unmount it and mount it again",
    "suid": "programs on a keepfs mount never get their owner's rights; omit it",
    "dev": "there are no devices on a keepfs mount; omit it",
    "foreground": "mount(8) waits until the mount is ready; omit it, or use keepfs mount -f",
}
#: A word of -o: up to a comma that is neither quoted nor behind a backslash.
_WORD = re.compile(r'(?:[^,"\\]|\\.|"[^"]*"?|\\\Z)+')
#: Words with another name on the command line.
_WORDS = {"ro": ("read_only", True)}
#: The word for --config; it is not a key of a configuration file.
_CONFIG = "config"


def read_words(context: click.Context, _: click.Parameter, words: tuple[str, ...]) -> None:
    """Read options in the form of mount(8): -o allow_other,cache-size=1G.

    Raises:
        click.UsageError: A word is unknown or refused, lacks a value, or has one in excess.
    """
    by_name = {
        parameter.name: parameter
        for parameter in context.command.params
        if isinstance(parameter, Setting)
    }
    found: dict[str, object] = {}
    for word in (word for text in words for word in split_words(text)):
        key, equals, value = word.partition("=")
        name, fixed = _WORDS.get(key, (key.replace("-", "_"), None))
        if key in _IGNORED_WORDS or key.startswith(("x-", "X-")):
            continue
        if key in _REFUSED_WORDS:
            raise click.UsageError(of_commands.BAD_VALUE(text=f"-o {key}: {_REFUSED_WORDS[key]}"))
        parameter, is_config = by_name.get(name), key == _CONFIG
        if parameter is None and not is_config:
            raise click.UsageError(
                of_commands.USAGE(text=f"unknown option: -o {key}; see keepfs mount --help")
            )
        is_flag = parameter is not None and bool(parameter.is_flag)
        if bool(equals) == is_flag or (is_config and not value):
            raise click.UsageError(
                of_commands.BAD_VALUE(
                    text=f"-o {key} takes no value; write -o {key}"
                    if is_flag
                    else f"-o {key} needs a value; write -o {key}=VALUE"
                )
            )
        if is_config:
            settings.use_file(context, Path(value))
            continue
        found[name] = fixed if fixed is not None else (value if equals else True)
    context.meta[settings.WORDS] = found


def split_words(text: str) -> list[str]:
    """Split options in the form of mount(8) at commas, but not in "quotes" or behind a backslash.

    The quotes and backslashes are removed.
    """
    return [re.sub(r'\\(.)|"', lambda it: it[1] or "", found[0]) for found in _WORD.finditer(text)]


def is_known_word(word: str, command: click.Command) -> bool:
    """Return whether a word of -o is one that the command has, or accepts and ignores."""
    key = word.partition("=")[0]
    names = {it.name for it in command.params if isinstance(it, Setting)}
    return (
        key in _IGNORED_WORDS
        or key in _WORDS
        or key == _CONFIG
        or key.startswith(("x-", "X-"))
        or key.replace("-", "_") in names
    )
