"""Setting sources: the values of a mount's settings as users write them, and their sources."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from keepfs.cli import settings, values
from keepfs.cli.scrubbing import Scrubber
from keepfs.config.arvados import load_settings
from keepfs.config.options import AUTOMATIC, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    import click


def sources_of(context: click.Context, parameters: Iterable[click.Parameter]) -> dict[str, str]:
    """Return each setting that is not the default: its value, and the source in parentheses.

    The source is the command line, a variable, or the path of a file. Secrets are replaced.

    Args:
        context: The context of a parsed command with the options of `keepfs mount`.
        parameters: Its parameters.
    """
    in_files = settings.origins_in_files(context)
    scrubber = Scrubber()
    found = {}
    for each in parameters:
        if not isinstance(each, settings.Setting):
            continue
        value, source = context.params.get(each.name or ""), _source(context, each, in_files)
        if source:
            found[each.opts[0]] = f"{scrubber.scrubbed(_written(each, value))}  ({source})"
    arvados = load_settings()
    for name, value in (
        ("ARVADOS_API_HOST", arvados.api_host),
        ("ARVADOS_API_TOKEN", "(set)" if arvados.api_token else ""),
        ("ARVADOS_API_HOST_INSECURE", "yes" if arvados.insecure else ""),
        ("ARVADOS_KEEP_SERVICES", arvados.keep_services),
        ("ARVADOS_KEEP_PROXY", arvados.keep_proxy),
    ):
        if value:
            origin = arvados.origin(name).partition(" in ")[2]
            found[name] = f"{scrubber.scrubbed(value)}  ({origin})"
    return found


def _source(context: click.Context, each: settings.Setting, in_files: dict[str, str]) -> str:
    """Return the source of a value; empty for a default."""
    source = context.get_parameter_source(each.name or "")
    name = "" if source is None else source.name
    if name == "DEFAULT" and each.name == "token_file" and context.params.get("token_file"):
        return "the token of the service"
    names = [each.envvar] if isinstance(each.envvar, str) else [*(each.envvar or ())]
    variable = next((it for it in names if os.environ.get(it)), "")
    return {
        "COMMANDLINE": "command line",
        "ENVIRONMENT": f"environment {variable}".strip(),
        "DEFAULT_MAP": in_files.get(each.opts[0].lstrip("-"), "configuration file"),
        "DEFAULT": "",
    }.get(name, name.lower())


def _written(each: settings.Setting, value: object) -> str:
    """Return a value as a user writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(each.type, values.Octal) and isinstance(value, int):
        return f"{value:03o}"
    if isinstance(each.type, values.Size) and isinstance(value, int):
        return "auto" if value == AUTOMATIC else format_size(value)
    if isinstance(value, tuple):  # an address
        host, port = value
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(value)
