"""Finds variables KEEPFS_... of the environment that no option reads."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from keepfs.config.options import CONFIG_KEYS
from keepfs.messages import of_commands

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: Variables that say where the blocks are; each command needs one, or a setting in a file.
PLACES = frozenset(
    (
        *("ARVADOS_API_HOST", "ARVADOS_API_TOKEN", "ARVADOS_KEEP_SERVICES", "ARVADOS_KEEP_PROXY"),
        *("KEEPFS_LOCAL_STORE", "KEEP_LOCAL_STORE", "KEEPFS_KEEP_SERVICES", "KEEPFS_TOKEN_FILE"),
    )
)

_PREFIX = "KEEPFS_"
_ASSIGNMENT = re.compile(r"^\s*([A-Za-z_][A-Za-z0-9_]*)=", re.MULTILINE)
#: Options of commands that are no keys of a configuration file.
_FURTHER = ("config",)


def _known() -> set[str]:
    return {f"{_PREFIX}{key.replace('-', '_').upper()}" for key in (*CONFIG_KEYS, *_FURTHER)}


def unknown(names: Iterable[str]) -> list[str]:
    """Return those of these names that begin with KEEPFS_ and that no option reads, sorted."""
    return sorted(name for name in {*names} - _known() if name.startswith(_PREFIX))


def names_in(file: Path) -> list[str]:
    """Return the names of the variables that a file sets, in the format of EnvironmentFile=.

    Empty if it does not exist, or can't be read by this user.
    """
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return []
    return list(dict.fromkeys(_ASSIGNMENT.findall(text)))


def text_of_unknown(name: str) -> str:
    """Return the message about a variable that no option reads."""
    near = difflib.get_close_matches(name, _known(), 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else "; unset it"
    return of_commands.UNKNOWN_VARIABLE(name=name, hint=hint)
