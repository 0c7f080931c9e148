"""Finds variables KEEPFS_... of the environment that no option reads."""

from __future__ import annotations

import difflib
import os

from keepfs.config.options import CONFIG_KEYS
from keepfs.messages import of_commands

_PREFIX = "KEEPFS_"
#: Options of commands that are no keys of a configuration file.
_FURTHER = ("config",)


def _known() -> set[str]:
    return {f"{_PREFIX}{key.replace('-', '_').upper()}" for key in (*CONFIG_KEYS, *_FURTHER)}


def unknown() -> list[str]:
    """Return the names of variables that begin with KEEPFS_ and that no option reads, sorted."""
    return sorted(name for name in os.environ.keys() - _known() if name.startswith(_PREFIX))


def text_of_unknown(name: str) -> str:
    """Return the message about a variable that no option reads."""
    near = difflib.get_close_matches(name, _known(), 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else "; unset it"
    return of_commands.UNKNOWN_VARIABLE(name=name, hint=hint)
